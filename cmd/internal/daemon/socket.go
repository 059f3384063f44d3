package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockName is the lock file in the state directory; it holds the owner's pid.
const lockName = "pagewarpd.lock"

// prepareDir makes dir with mode 0700 or checks that nobody else can write to
// the one that is there.
func prepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("make state directory: %w; run the daemon as root, or give it a directory of its own with --state-dir", err)
	} else if err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at state directory: %w", err)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		// It holds sockets that control machines. Tightening it is right for a
		// directory of our own and wrong for /tmp, so it is left to the operator.
		return fmt.Errorf("state directory %s has mode %04o, others can reach into it; use a directory of its own (state_dir) or `chmod 700 %s`", dir, fi.Mode().Perm(), dir)
	}
	return nil
}

// outlivesReboot reports whether dir is on another file system than tmpfs or ramfs.
func outlivesReboot(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type != unix.TMPFS_MAGIC && fs.Type != unix.RAMFS_MAGIC
}

// lockDir makes this process the only daemon of the state directory. The lock
// ends with the process, however it ends.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w; run pagewarpd as root, or give it a --state-dir of its own", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		b := make([]byte, 32)
		n, _ := f.Read(b)
		who := "another pagewarpd"
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n]))); err == nil {
			who = fmt.Sprintf("pagewarpd with pid %d", pid)
		}
		return nil, fmt.Errorf("%s uses state directory %s already; stop it, or give this one its own --state-dir", who, dir)
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return f, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// listenSocket listens on a unix socket of mode 0600. A socket that a dead
// daemon left is replaced; one that somebody answers on is an error.
func listenSocket(path string) (net.Listener, error) {
	if err := clearStale(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of the API socket: %w", err)
	}
	// The mode must be right from the first moment: between bind and chmod
	// somebody could connect. Umask is the process's, so this runs before
	// anything else makes files.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on API socket: %w", err)
	}
	return l, nil
}

func clearStale(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at API socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is no socket; remove it or choose another api.socket", path)
	}
	c, err := net.DialTimeout("unix", path, 2*time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("another program answers on %s; stop it or choose another api.socket", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("look whether %s is in use: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the socket of a dead daemon: %w", err)
	}
	return nil
}
