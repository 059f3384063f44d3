package kvmrig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Kernel downloads the package of a Debian kernel release below dir, unless it is
// there, and returns the path of its bzImage.
func Kernel(ctx context.Context, dir, release string) (string, error) {
	path := filepath.Join(dir, "vmlinuz-"+release)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(dir, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	err = withKernelPackage(ctx, dir, release, func(root string) error {
		return os.Rename(filepath.Join(root, "boot", "vmlinuz-"+release), path)
	})
	return path, err
}

// withKernelPackage downloads the package of a kernel release and calls f with the
// folder into which it was unpacked, which goes afterwards.
func withKernelPackage(ctx context.Context, dir, release string, f func(root string) error) error {
	tmp, err := os.MkdirTemp(dir, "kernel-*.tmp")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	download := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3",
		"download", "linux-image-"+release)
	download.Dir = tmp
	if _, err := output(download); err != nil {
		return fmt.Errorf("download kernel %s: %w", release, err)
	}
	root := filepath.Join(tmp, "root")
	if err := unpack(ctx, tmp, root); err != nil {
		return err
	}
	return f(root)
}
