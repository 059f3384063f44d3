package uffd

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// errnoError is a sentinel of this package that also matches its errno, so that
// the frequent outcomes of a range operation cost no allocation.
type errnoError struct {
	errno unix.Errno
	text  string
}

func (e *errnoError) Error() string { return e.text }

// Unwrap makes errors.Is(err, unix.EEXIST) and the like hold.
func (e *errnoError) Unwrap() error { return e.errno }

// Outcomes of a range operation that stopped before its end.
var (
	// ErrExists: the page is there already and was left as it is. Skip it and
	// wake its waiters; the …Range forms do.
	ErrExists error = &errnoError{unix.EEXIST, "userfaultfd: page exists already"}
	// ErrBusy: the layout of the memory is changing (a remove, unmap, remap or
	// fork event waits to be read). Read the events, then retry.
	ErrBusy error = &errnoError{unix.EAGAIN, "userfaultfd: memory layout is changing, read the events and retry"}
	// ErrNoRange: the range is not, or no longer, registered or mapped, or it
	// crosses from one mapping into the next. Fatal to the range.
	ErrNoRange error = &errnoError{unix.ENOENT, "userfaultfd: range is not in one registered mapping"}
	// ErrGone: the process has exited. Fatal to the descriptor.
	ErrGone error = &errnoError{unix.ESRCH, "userfaultfd: process is gone"}
	// ErrNoPage: Continue found no page in the file, or the source of a Copy
	// cannot be read. Write the page through the alias first.
	ErrNoPage error = &errnoError{unix.EFAULT, "userfaultfd: no page to map"}
)

// opError gives errno of operation op its sentinel, or its context.
func opError(op string, addr, length uint64, errno unix.Errno) error {
	switch errno {
	case unix.EEXIST:
		return ErrExists
	case unix.EAGAIN:
		return ErrBusy
	case unix.ENOENT:
		return ErrNoRange
	case unix.ESRCH:
		return ErrGone
	case unix.EFAULT:
		return ErrNoPage
	}
	return fmt.Errorf("%s %#x+%#x: %w", op, addr, length, errno)
}

// Register asks for faults of the given kinds in [addr, addr+length), which must
// be mapped and aligned to the page size of the memory. It returns the ioctls
// that resolve them there.
func (u *FD) Register(addr, length uint64, mode Mode) (Ioctls, error) {
	arg := rawRegister{rng: rawRange{addr, length}, mode: uint64(mode)}
	if errno := u.ioctlRegister(&arg); errno != 0 {
		hint := ""
		switch errno {
		case unix.EBUSY:
			hint = " (another userfaultfd holds part of it)"
		case unix.EINVAL:
			hint = " (unmapped, unaligned, or this kind of memory lacks the mode; the handshake must come first)"
		case unix.EPERM:
			hint = " (a shared file must be open for writing by its owner, and unsealed)"
		}
		return 0, fmt.Errorf("register %#x+%#x, mode %#x, with userfaultfd: %w%s", addr, length, mode, errno, hint)
	}
	return Ioctls(arg.ioctls), nil
}

// Unregister gives [addr, addr+length) back and wakes all who wait in it.
func (u *FD) Unregister(addr, length uint64) error {
	arg := rawRange{addr, length}
	if errno := u.ioctlRange(reqUnregister, &arg); errno != 0 {
		return opError("unregister", addr, length, errno)
	}
	return nil
}

// Wake wakes all who wait on a page of [addr, addr+length); they take their
// fault again if the page is still missing.
func (u *FD) Wake(addr, length uint64) error {
	arg := rawRange{addr, length}
	if errno := u.ioctlRange(reqWake, &arg); errno != 0 {
		return opError("wake", addr, length, errno)
	}
	return nil
}

// WriteProtect makes the pages of [addr, addr+length) read-only, or with on
// false writable again, which wakes the writers.
func (u *FD) WriteProtect(addr, length uint64, on bool) error {
	arg := rawProtect{rng: rawRange{addr, length}}
	if on {
		arg.mode = 1
	}
	if errno := u.ioctlProtect(&arg); errno != 0 {
		return opError("write-protect", addr, length, errno)
	}
	return nil
}

// op is a kind of range operation.
type op uint8

const (
	opCopy op = iota
	opContinue
	opZero
	opPoison
)

var opNames = [...]string{"copy to", "continue", "zero", "poison"}

// once issues one ioctl and returns the bytes it did.
func (u *FD) once(o op, dst, src, length uint64, mode OpMode) (uint64, unix.Errno) {
	var done int64
	var errno unix.Errno
	if o == opCopy {
		arg := rawCopy{dst: dst, src: src, len: length, mode: uint64(mode)}
		errno = u.ioctlCopy(&arg)
		done = arg.copied
	} else {
		arg := rawFill{rng: rawRange{dst, length}, mode: uint64(mode)}
		req := reqContinue
		switch o {
		case opZero:
			req = reqZeroPage
		case opPoison:
			req = reqPoison
		}
		errno = u.ioctlFill(req, &arg)
		done = arg.done
	}
	if errno == 0 {
		return length, 0
	}
	// done is the progress, or the errno negated, or as we left it (0) where an
	// older kernel found the layout changing.
	if done < 0 {
		done = 0
	}
	return min(uint64(done), length), errno
}

// run repeats o until length is done or a page refuses. The kernel answers
// EAGAIN with some progress for whatever made it stop, so the rest is tried
// again to learn the reason; without progress EAGAIN means a changing layout.
func (u *FD) run(o op, dst, src, length uint64, mode OpMode) (uint64, error) {
	var done uint64
	for done < length {
		var from uint64
		if o == opCopy {
			from = src + done
		}
		n, errno := u.once(o, dst+done, from, length-done, mode)
		done += n
		if errno == 0 || n > 0 || errno == unix.EINTR {
			continue
		}
		return done, opError(opNames[o], dst+done, length-done, errno)
	}
	return done, nil
}

// Copy installs new pages at dst with the length bytes at our address src,
// which must be memory that does not move (not the Go heap). It returns the
// bytes done and why it stopped short of length.
func (u *FD) Copy(dst, src, length uint64, mode OpMode) (uint64, error) {
	return u.run(opCopy, dst, src, length, mode)
}

// Continue maps the pages of the underlying file at [addr, addr+length). It
// returns the bytes done and why it stopped short of length.
func (u *FD) Continue(addr, length uint64, mode OpMode) (uint64, error) {
	return u.run(opContinue, addr, 0, length, mode)
}

// ZeroPage installs zero pages at [addr, addr+length): the shared zero page in
// private memory, new pages in holes of a shared file. hugetlbfs has none of
// it. It returns the bytes done and why it stopped short of length.
func (u *FD) ZeroPage(addr, length uint64, mode OpMode) (uint64, error) {
	return u.run(opZero, addr, 0, length, mode)
}

// Poison makes every access to [addr, addr+length) a SIGBUS, as of a page lost
// for good. It returns the bytes done and why it stopped short of length.
func (u *FD) Poison(addr, length uint64, mode OpMode) (uint64, error) {
	return u.run(opPoison, addr, 0, length, mode)
}

// CopyRange is Copy that leaves pages that exist as they are, and wakes those
// who wait on them unless mode has DontWake. pageSize is that of the memory, in
// bytes. installed and skipped are bytes, and add up to length without an error.
func (u *FD) CopyRange(dst, src, length, pageSize uint64, mode OpMode) (installed, skipped uint64, err error) {
	return u.walk(opCopy, dst, src, length, pageSize, mode)
}

// ContinueRange is Continue that leaves pages that are mapped as they are, and
// wakes those who wait on them unless mode has DontWake. pageSize is that of the
// memory, in bytes. installed and skipped are bytes, and add up to length
// without an error.
func (u *FD) ContinueRange(addr, length, pageSize uint64, mode OpMode) (installed, skipped uint64, err error) {
	return u.walk(opContinue, addr, 0, length, pageSize, mode)
}

// ZeroRange is ZeroPage that leaves pages that exist as they are, and wakes
// those who wait on them unless mode has DontWake. pageSize is that of the
// memory, in bytes. installed and skipped are bytes, and add up to length
// without an error.
//
// In shared memory a page in the file that is not mapped at addr counts as
// existing, and stays unmapped: its waiters come back with a minor fault.
func (u *FD) ZeroRange(addr, length, pageSize uint64, mode OpMode) (installed, skipped uint64, err error) {
	return u.walk(opZero, addr, 0, length, pageSize, mode)
}

func (u *FD) walk(o op, dst, src, length, pageSize uint64, mode OpMode) (installed, skipped uint64, err error) {
	// A run of existing pages is woken by one ioctl, at its end.
	var pos, runStart, runLen uint64
	for pos < length {
		n, opErr := u.run(o, dst+pos, src+pos, length-pos, mode)
		installed += n
		pos += n
		if n > 0 || opErr != ErrExists {
			if werr := u.wakeRun(dst+runStart, runLen, mode); werr != nil && opErr == nil {
				opErr = werr
			}
			runLen = 0
		}
		if opErr == nil {
			continue
		}
		if opErr != ErrExists {
			return installed, skipped, opErr
		}
		if runLen == 0 {
			runStart = pos
		}
		step := min(pageSize, length-pos)
		runLen += step
		skipped += step
		pos += step
	}
	return installed, skipped, u.wakeRun(dst+runStart, runLen, mode)
}

func (u *FD) wakeRun(addr, length uint64, mode OpMode) error {
	if length == 0 || mode&DontWake != 0 {
		return nil
	}
	return u.Wake(addr, length)
}

// Retryable reports whether err is one that passes by itself once the pending
// events have been read.
func Retryable(err error) bool { return errors.Is(err, ErrBusy) }
