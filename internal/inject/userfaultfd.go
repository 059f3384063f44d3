package inject

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/uffd"
)

const userfaultfdLink = "anon_inode:[userfaultfd]"

// Options say how to take a userfaultfd. The zero value is good.
type Options struct {
	// KeepRemote leaves the process's own descriptor open: it keeps the
	// userfaultfd alive when we die, so that Retake can go on with it.
	KeepRemote bool
	// Timeout bounds it all; 0 is 5 s.
	Timeout time.Duration
}

// Taken is a userfaultfd of another process.
type Taken struct {
	// FD is ours, the caller closes it. It has had no handshake.
	FD *uffd.FD
	// Remote is the number of the process's own descriptor, or -1 if closed.
	Remote int
}

// Userfaultfd has process pid create a userfaultfd, non-blocking and closed on
// exec, and takes it. Where the process lacks the privilege for the system call,
// it goes by /dev/userfaultfd as far as the process may open that.
func Userfaultfd(pid int, o Options) (Taken, error) {
	taken := Taken{Remote: -1}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return taken, fmt.Errorf("take userfaultfd of process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	err = Do(pid, o.Timeout, func(t *Tracee) error {
		const flags = uffd.CloseOnExec | uffd.NonBlock
		remote, err := t.Syscall(unix.SYS_USERFAULTFD, flags)
		if errors.Is(err, unix.EPERM) {
			var derr error
			if remote, derr = t.viaDevice(flags); derr != nil {
				return fmt.Errorf("create userfaultfd: %w%s; by device: %w", err, adviseRefused(pid), derr)
			}
		} else if err != nil {
			return fmt.Errorf("create userfaultfd: %w", err)
		}
		taken.FD, err = fetch(pid, pidfd, int(remote))
		if err == nil && o.KeepRemote {
			taken.Remote = int(remote)
			return nil
		}
		if _, cerr := t.Syscall(unix.SYS_CLOSE, remote); cerr != nil {
			err = errors.Join(err, fmt.Errorf("close its descriptor %d: %w", remote, cerr))
		}
		return err
	})
	if err != nil {
		if taken.FD != nil {
			taken.FD.Close()
		}
		return Taken{Remote: -1}, fmt.Errorf("take userfaultfd of process %d: %w", pid, err)
	}
	return taken, nil
}

// viaDevice has the process make a userfaultfd by the device.
func (t *Tracee) viaDevice(flags uint64) (remote uint64, err error) {
	const (
		path         = "/dev/userfaultfd"
		iocNew       = 0xAA << 8 // USERFAULTFD_IOC_NEW
		atCwd        = ^uint64(99)
		scratchBytes = 4096
	)
	scratch, err := t.Syscall(unix.SYS_MMAP, 0, scratchBytes, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
	if err != nil {
		return 0, fmt.Errorf("map a scratch page: %w", err)
	}
	dev, err := uint64(0), t.WriteMemory(scratch, append([]byte(path), 0))
	if err == nil {
		if dev, err = t.Syscall(unix.SYS_OPENAT, atCwd, scratch, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			err = fmt.Errorf("open %s: %w", path, err)
		} else {
			if remote, err = t.Syscall(unix.SYS_IOCTL, dev, iocNew, flags); err != nil {
				err = fmt.Errorf("new userfaultfd from %s: %w", path, err)
			}
			if _, cerr := t.Syscall(unix.SYS_CLOSE, dev); cerr != nil {
				err = errors.Join(err, cerr)
			}
		}
	}
	if _, uerr := t.Syscall(unix.SYS_MUNMAP, scratch, scratchBytes); uerr != nil {
		err = errors.Join(err, uerr)
	}
	return remote, err
}

// adviseRefused says why a process may not have a userfaultfd.
func adviseRefused(pid int) string {
	if mode := statusField(pid, "Seccomp"); mode != "" && mode != "0" {
		return " (the process has a seccomp filter, which may forbid it)"
	}
	return " (its user needs sysctl vm.unprivileged_userfaultfd=1 or CAP_SYS_PTRACE, or access to /dev/userfaultfd)"
}

// fetch copies descriptor remote of the process behind pidfd, and adopts it.
func fetch(pid, pidfd, remote int) (*uffd.FD, error) {
	fd, err := unix.PidfdGetfd(pidfd, remote, 0)
	if err != nil {
		return nil, fmt.Errorf("copy descriptor %d of process %d: %w", remote, pid, err)
	}
	u, err := uffd.Open(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("descriptor %d of process %d: %w", remote, pid, err)
	}
	return u, nil
}

// Retake takes a userfaultfd again that process pid has kept open as descriptor
// remote; it has had its handshake, and its registrations stand.
func Retake(pid, remote int) (*uffd.FD, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("retake userfaultfd of process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	u, err := fetch(pid, pidfd, remote)
	if err != nil {
		return nil, fmt.Errorf("retake userfaultfd: %w", err)
	}
	return u, nil
}

// FindUserfaultfds returns the numbers of the descriptors of process pid that
// are userfaultfds, in rising order.
func FindUserfaultfds(pid int) ([]int, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	ents, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list descriptors of process %d: %w", pid, err)
	}
	var fds []int
	for _, e := range ents {
		link, err := os.Readlink(dir + "/" + e.Name())
		if err != nil || link != userfaultfdLink {
			continue // closed meanwhile, or something else
		}
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("list descriptors of process %d: entry %q is not a number", pid, e.Name())
		}
		fds = append(fds, n)
	}
	// The directory is in the order of names, so 10 comes before 9.
	slices.Sort(fds)
	return fds, nil
}
