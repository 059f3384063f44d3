package rig

import (
	"fmt"
	"os"
	"path/filepath"
)

// Root returns the folder of this module's go.mod at or above the working
// directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no go.mod at or above %s: run this inside the repository", dir)
		}
	}
}

// GuestImage returns the kernel and the initramfs of the test guest.
func GuestImage() (kernel, initrd string, err error) {
	root, err := Root()
	if err != nil {
		return "", "", err
	}
	kernel = filepath.Join(root, "build", "guest", "vmlinuz")
	initrd = filepath.Join(root, "build", "guest", "initramfs.cpio.gz")
	for _, path := range []string{kernel, initrd} {
		if _, err := os.Stat(path); err != nil {
			return "", "", fmt.Errorf("the test guest is not built: %w; run 'make guest'", err)
		}
	}
	return kernel, initrd, nil
}
