package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cavaliergopher/cpio"
)

// entry is one file of the archive; a nil content is a folder.
type entry struct {
	name    string
	mode    cpio.FileMode
	content []byte
}

// writeInitramfs writes the archive to path unless the one there was made from
// the same contents, which path+".sum" tells. Beside the init and the modules
// it holds what extra names.
func writeInitramfs(path, init, modules string, extra ...entry) error {
	entries, err := collect(init, modules)
	if err != nil {
		return err
	}
	entries = append(entries, extra...)
	sum := digest(entries)
	if old, err := os.ReadFile(path + ".sum"); err == nil && string(old) == sum {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), "initramfs-*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := writeArchive(f, entries); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	fmt.Printf("guest initramfs: wrote %s\n", path)
	return os.WriteFile(path+".sum", []byte(sum), 0o644)
}

func collect(init, modules string) ([]entry, error) {
	entries := []entry{
		{"dev", cpio.TypeDir | 0o755, nil}, {"proc", cpio.TypeDir | 0o755, nil}, {"sys", cpio.TypeDir | 0o755, nil},
		{"lib", cpio.TypeDir | 0o755, nil}, {"lib/modules", cpio.TypeDir | 0o755, nil},
	}
	content, err := os.ReadFile(init)
	if err != nil {
		return nil, err
	}
	entries = append(entries, entry{"init", cpio.TypeReg | 0o755, content})
	names, err := os.ReadDir(modules)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		content, err := os.ReadFile(filepath.Join(modules, n.Name()))
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{"lib/modules/" + n.Name(), cpio.TypeReg | 0o644, content})
	}
	return entries, nil
}

func digest(entries []entry) string {
	h := sha256.New()
	for _, e := range entries {
		fmt.Fprintf(h, "%s %o %d\n", e.name, e.mode, len(e.content))
		h.Write(e.content)
	}
	return fmt.Sprintf("%x\n", h.Sum(nil))
}

// writeArchive writes a gzipped newc archive; see the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst.
func writeArchive(w io.Writer, entries []entry) error {
	buf := bufio.NewWriterSize(w, 1<<20)
	// Speed, not size: the guest unpacks it under an emulator.
	z, err := gzip.NewWriterLevel(buf, gzip.BestSpeed)
	if err != nil {
		return err
	}
	a := cpio.NewWriter(z)
	for i, e := range entries {
		h := &cpio.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.content)), Links: 1, Inode: int64(i + 1)}
		if err := a.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(a, bytes.NewReader(e.content)); err != nil {
			return err
		}
	}
	if err := a.Close(); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return buf.Flush()
}
