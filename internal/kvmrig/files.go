package kvmrig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// File is a file of the host that the VM has as well.
type File struct {
	Path string // in the VM, absolute
	From string // on the host
}

// Installed returns installed files at their own paths, each program and library
// with the libraries that the dynamic linker would load for it.
func Installed(ctx context.Context, paths ...string) ([]File, error) {
	var all []string
	for _, path := range paths {
		all = append(all, path)
		text, err := exec.CommandContext(ctx, "ldd", path).CombinedOutput()
		if err != nil {
			if strings.Contains(string(text), "not a dynamic executable") {
				continue
			}
			return nil, fmt.Errorf("libraries of %s: %w: %s", path, err, strings.TrimSpace(string(text)))
		}
		for line := range strings.Lines(string(text)) {
			// "libz.so.1 => /lib/…/libz.so.1 (0x…)", "/lib64/ld-linux-x86-64.so.2 (0x…)"
			for word := range strings.FieldsSeq(line) {
				if word == "not" {
					return nil, fmt.Errorf("libraries of %s: %s", path, strings.TrimSpace(line))
				}
				if filepath.IsAbs(word) {
					all = append(all, word)
				}
			}
		}
	}
	slices.Sort(all)
	var files []File
	for _, path := range slices.Compact(all) {
		files = append(files, File{Path: path, From: path})
	}
	return files, nil
}

// QEMU returns what a system emulator for x86-64 without display needs, as Debian
// packages it: the program, its modules, the firmware.
func QEMU(ctx context.Context) ([]File, error) {
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return nil, fmt.Errorf("%w (apt-get install qemu-system-x86)", err)
	}
	if program, err = filepath.EvalSymlinks(program); err != nil {
		return nil, err
	}
	paths := []string{program}
	modules, _ := filepath.Glob("/usr/lib/*/qemu/accel-tcg-x86_64.so") // none where it is built in
	paths = append(paths, modules...)
	files, err := Installed(ctx, paths...)
	if err != nil {
		return nil, err
	}
	for _, pattern := range []string{"/usr/share/seabios/bios*.bin", "/usr/share/qemu/*.rom", "/usr/share/qemu/kvmvapic.bin", "/usr/share/qemu/linuxboot*.bin"} {
		found, _ := filepath.Glob(pattern) // the patterns are good
		for _, f := range found {
			files = append(files, File{Path: f, From: f})
		}
	}
	if !slices.ContainsFunc(files, func(f File) bool { return strings.HasPrefix(f.Path, "/usr/share/seabios/") }) {
		return nil, fmt.Errorf("no BIOS in /usr/share/seabios (apt-get install seabios)")
	}
	for i := range files { // links lead to where nothing is in the VM
		if to, err := filepath.EvalSymlinks(files[i].From); err == nil {
			files[i].From = to
		}
	}
	return files, nil
}

// KernelModules returns modules of a Debian kernel release, in the order in which
// they are named, from its package, which is downloaded below dir unless it is there.
func KernelModules(ctx context.Context, dir, release string, names ...string) ([]string, error) {
	to := filepath.Join(dir, "modules-"+release)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return nil, err
	}
	var paths []string
	missing := false
	for _, n := range names {
		path := filepath.Join(to, n+".ko")
		paths = append(paths, path)
		if _, err := os.Stat(path); err != nil {
			missing = true
		}
	}
	if !missing {
		return paths, nil
	}
	err := withKernelPackage(ctx, dir, release, func(root string) error {
		for i, n := range names {
			found, err := findModule(root, n+".ko")
			if err != nil {
				return fmt.Errorf("kernel %s: %w", release, err)
			}
			if packed, ok := strings.CutSuffix(found, ".xz"); ok {
				if _, err := output(exec.CommandContext(ctx, "xz", "-d", found)); err != nil {
					return err
				}
				found = packed
			}
			if err := os.Rename(found, paths[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return paths, err
}

func findModule(root, name string) (string, error) {
	var found string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && (d.Name() == name || d.Name() == name+".xz") {
			found = path
			return filepath.SkipAll
		}
		return err
	})
	if err == nil && found == "" {
		err = fmt.Errorf("no module %s", name)
	}
	return found, err
}
