package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// metaPackage depends on the current kernel of this release of Debian.
const metaPackage = "linux-image-amd64"

// wanted are the modules the guest needs; their dependencies come along.
var wanted = []string{"virtio_pci", "virtio_net"}

// fetchKernel puts vmlinuz and modules/ into out, unless they are there.
func fetchKernel(ctx context.Context, out string) error {
	stamp := filepath.Join(out, "kernel.stamp")
	if _, err := os.Stat(stamp); err == nil {
		return nil
	}
	pkg, err := kernelPackage(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("guest kernel: downloading %s\n", pkg)
	tmp, err := os.MkdirTemp(out, "kernel-*.tmp")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	download := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download", pkg)
	download.Dir = tmp
	if err := run(download); err != nil {
		return fmt.Errorf("download the guest's kernel: %w", err)
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		return fmt.Errorf("download the guest's kernel: %d packages came for %s, want 1", len(debs), pkg)
	}
	root := filepath.Join(tmp, "root")
	if err := run(exec.CommandContext(ctx, "dpkg", "-x", debs[0], root)); err != nil {
		return err
	}
	release := strings.TrimSuffix(strings.TrimPrefix(pkg, "linux-image-"), "-unsigned")
	if err := collectModules(ctx, root, release, filepath.Join(out, "modules")); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(root, "boot", "vmlinuz-"+release), filepath.Join(out, "vmlinuz")); err != nil {
		return err
	}
	return os.WriteFile(stamp, []byte(filepath.Base(debs[0])+"\n"), 0o644)
}

// kernelPackage asks apt which kernel metaPackage stands for.
func kernelPackage(ctx context.Context) (string, error) {
	for _, refresh := range []bool{false, true} {
		if refresh {
			if err := run(exec.CommandContext(ctx, "apt-get", "-q", "-o", "Acquire::Retries=3", "update")); err != nil {
				return "", fmt.Errorf("refresh the package lists: %w", err)
			}
		}
		text, err := output(exec.CommandContext(ctx, "apt-cache", "depends", metaPackage))
		if err != nil {
			continue // unknown before the lists are fetched
		}
		for line := range strings.Lines(text) {
			if pkg, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
				return "linux-image-" + pkg, nil
			}
		}
	}
	return "", fmt.Errorf("apt knows no kernel behind %s: this needs Debian on amd64 with its main archive in sources.list", metaPackage)
}

// collectModules copies the wanted modules and all they depend on to dir, and
// writes dir/list with one file name a line, dependencies first.
func collectModules(ctx context.Context, root, release, dir string) error {
	if err := run(exec.CommandContext(ctx, "depmod", "-b", root, release)); err != nil {
		return err
	}
	base := filepath.Join(root, "lib", "modules", release)
	dep, err := os.ReadFile(filepath.Join(base, "modules.dep"))
	if err != nil {
		return err
	}
	paths, err := loadOrder(string(dep), wanted)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var list bytes.Buffer
	for _, path := range paths {
		content, err := readModule(ctx, filepath.Join(base, path))
		if err != nil {
			return err
		}
		name := moduleName(path) + ".ko"
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
		fmt.Fprintln(&list, name)
	}
	return os.WriteFile(filepath.Join(dir, "list"), list.Bytes(), 0o644)
}

// readModule reads a module, unpacked: not every kernel unpacks them itself.
func readModule(ctx context.Context, path string) ([]byte, error) {
	switch filepath.Ext(path) {
	case ".ko":
		return os.ReadFile(path)
	case ".xz":
		text, err := output(exec.CommandContext(ctx, "xz", "-dc", path))
		if errors.Is(err, exec.ErrNotFound) {
			return nil, fmt.Errorf("unpack %s: %w; apt-get install xz-utils", path, err)
		}
		return []byte(text), err
	}
	return nil, fmt.Errorf("unpack %s: want a .ko or .ko.xz", path)
}

// loadOrder returns the paths of the named modules and their dependencies, as
// listed in modules.dep, in the order in which they can be loaded.
func loadOrder(modulesDep string, names []string) ([]string, error) {
	deps := map[string][]string{} // path -> paths
	byName := map[string]string{} // name -> path
	for line := range strings.Lines(modulesDep) {
		path, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		deps[path] = strings.Fields(rest)
		byName[moduleName(path)] = path
	}
	var order []string
	var add func(path string)
	add = func(path string) {
		if slices.Contains(order, path) {
			return
		}
		// depmod writes no cycles: it refuses them.
		for _, d := range deps[path] {
			add(d)
		}
		order = append(order, path)
	}
	for _, name := range names {
		path, ok := byName[name]
		if !ok {
			return nil, fmt.Errorf("the kernel package has no module %s", name)
		}
		add(path)
	}
	return order, nil
}

// moduleName maps kernel/net/core/x-y.ko.xz to x_y.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}
