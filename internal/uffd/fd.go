package uffd

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// devicePath is the device that hands out userfaultfds by file permission
// instead of by privilege, from Linux 6.1 on.
const devicePath = "/dev/userfaultfd"

// FD is a userfaultfd. Its methods may be called by several goroutines at a
// time, except Close, which must come after the last of them has returned.
type FD struct {
	fd int // immutable until Close
}

// Create makes a userfaultfd for our own address space by the system call, and
// if that is refused for want of privilege, by /dev/userfaultfd. flags are
// CloseOnExec, NonBlock and UserModeOnly. A descriptor made here must be given a
// handshake ([FD.API]) before anything else.
func Create(flags int) (*FD, error) {
	n, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, uintptr(flags), 0, 0)
	if errno == 0 {
		return &FD{fd: int(n)}, nil
	}
	if errno != unix.EPERM {
		return nil, fmt.Errorf("create userfaultfd: %w%s", errno, adviseCreate(errno))
	}
	u, err := CreateByDevice(flags &^ UserModeOnly)
	if err != nil {
		return nil, fmt.Errorf("create userfaultfd by system call: %w%s; by device: %w",
			errno, adviseCreate(errno), err)
	}
	return u, nil
}

// CreateByDevice makes a userfaultfd for our own address space by
// /dev/userfaultfd. flags are CloseOnExec and NonBlock.
func CreateByDevice(flags int) (*FD, error) {
	dev, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w (Linux 6.1 or later has it; its mode and owner say who may use it)",
			devicePath, err)
	}
	defer unix.Close(dev)
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), reqNewDevice, uintptr(flags))
	if errno != 0 {
		return nil, fmt.Errorf("new userfaultfd from %s: %w", devicePath, errno)
	}
	return &FD{fd: int(n)}, nil
}

// Open adopts fd, a userfaultfd of whatever process, and owns it from then on.
// It fails, and leaves fd alone, if fd is something else.
func Open(fd int) (*FD, error) {
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("adopt descriptor %d: %w", fd, err)
	}
	if link != "anon_inode:[userfaultfd]" {
		return nil, fmt.Errorf("adopt descriptor %d: it is %q, not a userfaultfd", fd, link)
	}
	return &FD{fd: fd}, nil
}

// Fd returns the descriptor, which stays the property of u.
func (u *FD) Fd() int { return u.fd }

// Close closes our descriptor. The registrations go with the last descriptor
// of the userfaultfd, in whatever process it is.
func (u *FD) Close() error {
	if u.fd < 0 {
		return nil
	}
	fd := u.fd
	u.fd = -1
	return unix.Close(fd)
}

// SetNonblock sets O_NONBLOCK, which poll(2) on a userfaultfd needs. The flag
// belongs to the open file, so that other holders of it see it as well.
func (u *FD) SetNonblock() error {
	if err := unix.SetNonblock(u.fd, true); err != nil {
		return fmt.Errorf("set userfaultfd %d non-blocking: %w", u.fd, err)
	}
	return nil
}

// ErrHandshakeDone is returned by [FD.API] when the descriptor has had its
// handshake, which is once and for all: go on with the features it was given.
var ErrHandshakeDone = errors.New("userfaultfd: handshake was done before")

// API does the handshake that makes the descriptor usable, asking for want. It
// returns the features the kernel supports, of which only want are in force.
// With want 0 nothing but plain page faults is in force, and there is no second
// handshake on a descriptor: the kernel answers EINVAL, returned as
// ErrHandshakeDone where the reason can be told from a missing feature.
func (u *FD) API(want Feature) (Feature, error) {
	arg := rawAPI{api: apiVersion, features: uint64(want)}
	errno := u.ioctlAPI(&arg)
	switch {
	case errno == 0:
		return Feature(arg.features), nil
	case errno == unix.EPERM:
		return 0, fmt.Errorf("userfaultfd handshake for %s: %w (fork events need CAP_SYS_PTRACE)", want, errno)
	case errno != unix.EINVAL:
		return 0, fmt.Errorf("userfaultfd handshake for %s: %w", want, errno)
	}
	// EINVAL has two meanings; what the kernel supports tells them apart.
	if s, err := Probe(); err == nil {
		if missing := want &^ s.Features; missing != 0 {
			return 0, fmt.Errorf("userfaultfd handshake: this kernel lacks %s (it has %s): %w",
				missing, s.Features, errno)
		}
	}
	return 0, fmt.Errorf("userfaultfd handshake for %s: %w: %w", want, ErrHandshakeDone, errno)
}

// Support is what this kernel and our privileges allow.
type Support struct {
	// Features are all the kernel has.
	Features Feature
	// UserModeOnly says that we may catch user-mode faults only: enough for a
	// test of the fault path, not for a virtual machine under KVM.
	UserModeOnly bool
}

// Probe finds out what userfaultfd offers here, on a descriptor of its own. The
// error of a refused probe says how to allow it.
func Probe() (Support, error) {
	var s Support
	u, err := Create(CloseOnExec | NonBlock)
	if err != nil {
		n, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, UserModeOnly|CloseOnExec|NonBlock, 0, 0)
		if errno != 0 {
			return s, err
		}
		u, s.UserModeOnly = &FD{fd: int(n)}, true
	}
	defer u.Close()
	arg := rawAPI{api: apiVersion}
	if errno := u.ioctlAPI(&arg); errno != 0 {
		return s, fmt.Errorf("probe userfaultfd: %w", errno)
	}
	s.Features = Feature(arg.features)
	return s, nil
}

// adviseCreate turns an error of userfaultfd(2) into what to do about it.
func adviseCreate(errno unix.Errno) string {
	switch errno {
	case unix.EPERM:
		mode := "unreadable"
		if b, err := os.ReadFile("/proc/sys/vm/unprivileged_userfaultfd"); err == nil {
			mode = strings.TrimSpace(string(b))
		}
		return " (run with CAP_SYS_PTRACE, or set sysctl vm.unprivileged_userfaultfd=1, now " + mode +
			", or give access to " + devicePath + ")"
	case unix.ENOSYS:
		return " (the kernel needs CONFIG_USERFAULTFD)"
	case unix.EMFILE, unix.ENFILE:
		return " (raise the limit on open files)"
	}
	return ""
}
