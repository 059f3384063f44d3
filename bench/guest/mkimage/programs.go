package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// program is a program of Debian: the packages that hold it, and libraries that
// a small installation lacks, and where it is in them.
type program struct {
	packages []string
	path     string
}

var programs = map[string]program{
	"redis": {[]string{"redis-server", "redis-tools", "libatomic1", "libjemalloc2", "liblzf1", "libssl3", "libsystemd0"}, "usr/bin/redis-server"},
	"nginx": {[]string{"nginx", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"}, "usr/sbin/nginx"},
}

// libraryDirs is where libraries are looked for, in the packages and then, for
// those that every installation of Debian has, on this machine.
var libraryDirs = []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64"}

// maxProgramBytes bounds what the programs add to the guest's image, unpacked.
const maxProgramBytes = 40 << 20

// fetchPrograms puts the named programs' packages into dir, unless they are
// there, and returns the programs and their libraries as entries of an archive.
func fetchPrograms(ctx context.Context, dir string, names []string) ([]entry, error) {
	var entries []entry
	for _, name := range names {
		p, known := programs[name]
		if !known {
			return nil, fmt.Errorf("program %q: there are redis and nginx", name)
		}
		root := filepath.Join(dir, name)
		if err := fetchProgram(ctx, root, name, p); err != nil {
			return nil, err
		}
		more, err := withLibraries(root, p.path)
		if err != nil {
			return nil, fmt.Errorf("program %s: %w", name, err)
		}
		entries = append(entries, more...)
	}
	entries = withFolders(entries)
	size := 0
	for _, e := range entries {
		size += len(e.content)
	}
	if size > maxProgramBytes {
		return nil, fmt.Errorf("the programs and their libraries have %d MiB, at most %d are wanted in the guest", size>>20, maxProgramBytes>>20)
	}
	return entries, nil
}

// fetchProgram downloads and unpacks the program's packages into root.
func fetchProgram(ctx context.Context, root, name string, p program) error {
	if _, err := os.Stat(root); err == nil {
		return nil
	}
	fmt.Printf("guest program: downloading %s\n", strings.Join(p.packages, ", "))
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(root), name+"-*.tmp")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	args := append([]string{"-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download"}, p.packages...)
	download := exec.CommandContext(ctx, "apt-get", args...)
	download.Dir = tmp
	if err := run(download); err != nil {
		return fmt.Errorf("download the packages of %s: %w", name, err)
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	unpacked := filepath.Join(tmp, "root")
	for _, deb := range debs {
		if err := run(exec.CommandContext(ctx, "dpkg", "-x", deb, unpacked)); err != nil {
			return err
		}
	}
	return os.Rename(unpacked, root)
}

// withLibraries returns a program and all libraries that it needs, and the
// program that loads them, as entries.
func withLibraries(root, programPath string) ([]entry, error) {
	content, err := os.ReadFile(filepath.Join(root, programPath))
	if err != nil {
		return nil, err
	}
	entries := []entry{{programPath, cpio.TypeReg | 0o755, content}}
	done := map[string]bool{}
	todo := []string{filepath.Join(root, programPath)}
	for len(todo) > 0 {
		file := todo[0]
		todo = todo[1:]
		names, loader, err := needs(file)
		if err != nil {
			return nil, err
		}
		if loader != "" {
			names = append(names, filepath.Base(loader))
		}
		for _, name := range names {
			if done[name] {
				continue
			}
			done[name] = true
			at, err := findLibrary(root, name)
			if err != nil {
				return nil, err
			}
			content, err := os.ReadFile(at)
			if err != nil {
				return nil, err
			}
			to := path.Join("lib/x86_64-linux-gnu", name)
			if loader != "" && name == filepath.Base(loader) {
				to = strings.TrimPrefix(loader, "/")
			}
			entries = append(entries, entry{to, cpio.TypeReg | 0o755, content})
			todo = append(todo, at)
		}
	}
	return entries, nil
}

// needs returns the libraries that an ELF file names, and its loader.
func needs(file string) (libraries []string, loader string, err error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, "", fmt.Errorf("read %s: %w", file, err)
	}
	defer f.Close()
	if libraries, err = f.ImportedLibraries(); err != nil {
		return nil, "", fmt.Errorf("read %s: %w", file, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			text := make([]byte, p.Filesz)
			if _, err := p.ReadAt(text, 0); err != nil {
				return nil, "", fmt.Errorf("read the loader of %s: %w", file, err)
			}
			loader = strings.TrimRight(string(text), "\x00")
		}
	}
	return libraries, loader, nil
}

func findLibrary(root, name string) (string, error) {
	for _, base := range []string{root, "/"} {
		for _, dir := range libraryDirs {
			at := filepath.Join(base, dir, name)
			if _, err := os.Stat(at); err == nil {
				return at, nil
			} else if !errors.Is(err, os.ErrNotExist) {
				return "", err
			}
		}
	}
	return "", fmt.Errorf("no library %s in the packages or on this machine: find its package with 'apt-file search %s' and add it to mkimage's list", name, name)
}

// withFolders adds the folders above the entries, each before what is in it,
// and drops files that came twice. What the guest's base archive holds is not
// repeated.
func withFolders(entries []entry) []entry {
	base := []string{".", "lib", "dev", "proc", "sys"}
	seen := map[string]bool{}
	var folders []string
	var files []entry
	for _, e := range entries {
		if seen[e.name] {
			continue
		}
		seen[e.name] = true
		files = append(files, e)
		for dir := path.Dir(e.name); !slices.Contains(base, dir) && !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			folders = append(folders, dir)
		}
	}
	slices.Sort(folders) // a folder sorts before what is in it
	out := make([]entry, 0, len(folders)+len(files))
	for _, dir := range folders {
		out = append(out, entry{dir, cpio.TypeDir | 0o755, nil})
	}
	return append(out, files...)
}
