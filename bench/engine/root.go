package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

const (
	rootSuite  = "unstable"
	rootMirror = "http://deb.debian.org/debian"
	// rootLimit bounds the making of a root: it takes about 15 s, most of it for
	// the packages to come.
	rootLimit = 10 * time.Minute
)

// rootPackages are unpacked, with what they depend on.
var rootPackages = []string{"qemu-system-x86", "criu", "patchelf"}

// rootPrograms are made to run from where they are.
var rootPrograms = []string{"usr/bin/" + hostQEMU, "usr/sbin/criu"}

// RootCommand is the command that unpacks Debian's newest packages into dir.
// Their install scripts are not run: nothing but the programs is wanted.
func RootCommand(dir, mirror string) []string {
	return []string{
		"mmdebstrap", "--mode=root", "--variant=extract", "--format=directory",
		// A mirror's snapshot may be older than its own word on how long it holds.
		`--aptopt=Acquire::Check-Valid-Until "false"`,
		`--aptopt=APT::Install-Recommends "false"`,
		"--include=" + strings.Join(rootPackages, ","),
		rootSuite, dir, mirror,
	}
}

// PatchCommand is the command, run with the root's own loader, that makes a
// program of the root use that loader and the root's libraries. So it runs as any
// program does, without chroot(2), and knows its own path, which is where QEMU
// looks for its modules and firmware.
func PatchCommand(dir, program string) []string {
	lib := filepath.Join(dir, "usr", "lib", "x86_64-linux-gnu")
	loader := filepath.Join(lib, "ld-linux-x86-64.so.2")
	return []string{
		loader, "--library-path", lib, filepath.Join(dir, "usr", "bin", "patchelf"),
		// RPATH, not RUNPATH: modules that QEMU loads inherit it.
		"--force-rpath", "--set-rpath", lib, "--set-interpreter", loader,
		"--output", filepath.Join(dir, program) + ".patched", filepath.Join(dir, program),
	}
}

// MakeRoot makes a folder with the newest QEMU and CRIU that Debian carries, in
// the folder dir, which must not exist or be empty; mirror is by default
// Debian's. It needs root, a network and mmdebstrap. What was begun is removed
// on an error.
func MakeRoot(ctx context.Context, dir, mirror string, step func(string)) (_ Facts, err error) {
	if runtime.GOARCH != "amd64" {
		return Facts{}, fmt.Errorf("make a root: its programs are for amd64, this machine is %s", runtime.GOARCH)
	}
	if os.Geteuid() != 0 {
		return Facts{}, errors.New("make a root: mmdebstrap needs root here; run this with sudo")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return Facts{}, fmt.Errorf("make a root: %w; apt-get install mmdebstrap", err)
	}
	if mirror == "" {
		mirror = rootMirror
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return Facts{}, err
	}
	switch entries, err := os.ReadDir(dir); {
	case err == nil && len(entries) > 0:
		return Facts{}, fmt.Errorf("make a root: %s is not empty; remove it first, or choose another folder with --qemu-root", dir)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return Facts{}, fmt.Errorf("make a root: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, rootLimit, fmt.Errorf("not done within %v", rootLimit))
	defer cancel()
	step(fmt.Sprintf("unpack %s of Debian %s into %s", strings.Join(rootPackages, ", "), rootSuite, dir))
	if err := runCommand(ctx, RootCommand(dir, mirror)); err != nil {
		return Facts{}, fmt.Errorf("make a root: %w", err)
	}
	for _, program := range rootPrograms {
		if err := runCommand(ctx, PatchCommand(dir, program)); err != nil {
			return Facts{}, fmt.Errorf("make %s run from its root: %w", program, err)
		}
		path := filepath.Join(dir, program)
		if err := os.Rename(path+".patched", path); err != nil {
			return Facts{}, err
		}
	}
	return probe(ctx, RootQEMU(dir))
}

// runCommand runs a command whose last words are its error.
func runCommand(ctx context.Context, argv []string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it cleans up after itself
	cmd.WaitDelay = 10 * time.Second
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		text := strings.TrimSpace(said.String())
		return fmt.Errorf("%s: %w: %s", argv[0], err, text[max(0, len(text)-1000):])
	}
	return nil
}
