package report

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Writable reports whether WriteFile could write a file of that path, or any file
// into the folder that a path with a slash at its end names. The folder is made.
func Writable(path string) error {
	path, direct := destination(path)
	if direct {
		if err := unix.Access(path, unix.W_OK); err != nil {
			return fmt.Errorf("write to %s: %w", path, err)
		}
		return nil
	}
	dir, name := filepath.Split(path)
	dir = filepath.Clean(dir) // "." for none
	if info, err := os.Stat(path); name != "" && err == nil && info.IsDir() {
		return fmt.Errorf("%s is a folder", path)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the report's folder: %w", err)
	}
	f, err := os.CreateTemp(dir, ".writable.*")
	if err != nil {
		return fmt.Errorf("write to folder %s: %w", dir, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// destination is where a file of that path is to be written: what a symbolic link
// leads to, or as direct what is no ordinary file, such as /dev/null or /dev/stdout,
// which must not be replaced by one.
func destination(path string) (to string, direct bool) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().IsRegular() || info.IsDir() {
		return path, false
	}
	if info.Mode().Type() == os.ModeSymlink && !strings.HasPrefix(path, "/dev/") && !strings.HasPrefix(path, "/proc/") {
		target, err := filepath.EvalSymlinks(path)
		if err != nil {
			return path, false // it leads nowhere, and is replaced
		}
		if info, err := os.Stat(target); err == nil && (info.Mode().IsRegular() || info.IsDir()) {
			return target, false
		}
	}
	return path, true
}

// WriteFile stores b at path, creating the folder. The file appears complete or
// not at all. What is there already and no ordinary file, such as a device or a pipe,
// is written to.
func WriteFile(path string, b []byte) error {
	path, direct := destination(path)
	if direct {
		// A pipe that nobody reads is an error, and no wait.
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("write report: %w", err)
		}
		if _, err = f.Write(b); err != nil {
			err = fmt.Errorf("write report %s: %w", path, err)
		}
		return errors.Join(err, f.Close())
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the report's folder: %w", err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chmod(f.Name(), 0o644)
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write report %s: %w", path, err)
	}
	return nil
}
