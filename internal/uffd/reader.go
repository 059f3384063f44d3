package uffd

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/syspoll"
	"golang.org/x/sys/unix"
)

// Batch is the most events that one read takes from the kernel.
const Batch = 64

// Kind is the kind of an [Event]; the values are the kernel's.
type Kind uint8

// Kinds of events.
const (
	KindFault  Kind = 0x12 // a thread waits for a page
	KindFork   Kind = 0x13 // the process forked
	KindRemap  Kind = 0x14 // mremap moved a range
	KindRemove Kind = 0x15 // MADV_DONTNEED or MADV_REMOVE dropped pages
	KindUnmap  Kind = 0x16 // a range was unmapped
)

// String names the kind.
func (k Kind) String() string {
	switch k {
	case KindFault:
		return "fault"
	case KindFork:
		return "fork"
	case KindRemap:
		return "remap"
	case KindRemove:
		return "remove"
	case KindUnmap:
		return "unmap"
	}
	return fmt.Sprintf("event %#x", uint8(k))
}

// Flags of a fault event.
const (
	FaultWrite uint64 = 1 << 0 // the access was a write
	FaultWP    uint64 = 1 << 1 // the page is there, write-protected
	FaultMinor uint64 = 1 << 2 // the page is in the page cache, not mapped
)

// Event is one message of a userfaultfd. Addresses are virtual ones of the
// process, in bytes.
type Event struct {
	Kind Kind
	// Thread is the faulting thread (with FeatureThreadID, else 0).
	Thread uint32
	// Child is, of a fork event, a new userfaultfd for the child, in our process:
	// whoever got the event must close it.
	Child int32
	// Flags are the Fault* bits of a fault event.
	Flags uint64
	// Addr is the fault address (the page's, unless FeatureExactAddress), the old
	// address of a remap, or the start of a remove or unmap.
	Addr uint64
	// To is the new address of a remap.
	To uint64
	// Len is the length of a remap, remove or unmap.
	Len uint64
}

// decode fills e from what the kernel wrote.
func (e *Event) decode(m *rawMsg) {
	*e = Event{Kind: Kind(m.event)}
	switch e.Kind {
	case KindFault:
		e.Flags, e.Addr, e.Thread = m.arg[0], m.arg[1], uint32(m.arg[2])
	case KindFork:
		e.Child = int32(uint32(m.arg[0]))
	case KindRemap:
		e.Addr, e.To, e.Len = m.arg[0], m.arg[1], m.arg[2]
	case KindRemove, KindUnmap:
		e.Addr, e.Len = m.arg[0], m.arg[1]-m.arg[0]
	}
}

var (
	// ErrStopped is returned by a [Reader] after its Stop: the end, as asked for.
	ErrStopped = errors.New("userfaultfd reader: stopped")
	// ErrTimeout is returned by [Reader.Wait] when nothing came in time: retry.
	ErrTimeout = errors.New("userfaultfd reader: nothing in time")
)

// ReaderConfig sets up a [Reader]. The zero value is good.
type ReaderConfig struct {
	// Spin is how long to try again before going to sleep; each wake-up spared
	// saves tens of µs on a virtual machine, and a spinning reader fills a CPU.
	Spin time.Duration
	// PIDFD, if more than 0, is a pidfd of the process; its exit ends reading
	// with ErrGone. It stays the caller's.
	PIDFD int
}

// Reader takes the events of one userfaultfd in batches. One goroutine at a
// time may read, best one locked to its thread; several readers may share a
// userfaultfd, each event goes to one of them. Stop may come from anywhere.
type Reader struct {
	fd      int
	stopFd  int // eventfd; readable for ever after Stop
	nfds    int
	spin    time.Duration
	stopped atomic.Bool
	dry     bool           // the last read took all that there was; used by the reading goroutine
	soon    time.Duration  // of Soon, for the next Wait; used by the reading goroutine
	eager   time.Duration  // how long that one tries; used by the reading goroutine
	fds     [3]unix.PollFd // used by the reading goroutine
	msgs    [Batch]rawMsg  // used by the reading goroutine
}

// NewReader makes a reader of u, which it sets non-blocking. u must outlive it.
func (u *FD) NewReader(cfg ReaderConfig) (*Reader, error) {
	if err := u.SetNonblock(); err != nil {
		return nil, err
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make stop descriptor of userfaultfd reader: %w", err)
	}
	r := &Reader{fd: u.fd, stopFd: stop, spin: cfg.Spin, nfds: 2}
	r.fds[0] = unix.PollFd{Fd: int32(u.fd), Events: unix.POLLIN}
	r.fds[1] = unix.PollFd{Fd: int32(stop), Events: unix.POLLIN}
	if cfg.PIDFD > 0 {
		r.fds[2] = unix.PollFd{Fd: int32(cfg.PIDFD), Events: unix.POLLIN}
		r.nfds = 3
	}
	return r, nil
}

// ReadEvents waits until there is at least one event, and fills buf with as
// many as there are, Batch at most. It returns ErrStopped after Stop, ErrGone
// after the process's exit where PIDFD is set.
func (r *Reader) ReadEvents(buf []Event) (int, error) { return r.Wait(buf, -1) }

// Wait is ReadEvents that gives up after timeout (negative: never) with
// ErrTimeout.
func (r *Reader) Wait(buf []Event, timeout time.Duration) (int, error) {
	if len(buf) == 0 {
		return 0, errors.New("userfaultfd reader: buffer has no room")
	}
	var begin, deadline time.Time
	spin, soon := r.spin, r.soon
	if r.soon = 0; soon > 0 {
		spin = max(spin, min(r.eager, soon))
	}
	if spin > 0 || soon > 0 || timeout >= 0 {
		begin = time.Now()
	}
	if timeout >= 0 {
		deadline, spin = begin.Add(timeout), min(spin, timeout)
	}
	for dry := r.dry && spin == 0; ; dry = false {
		if r.stopped.Load() {
			return 0, ErrStopped
		}
		if !dry {
			n, err := r.TryRead(buf)
			if n > 0 || err != nil {
				r.dry = n < min(len(buf), Batch)
				if soon > 0 {
					r.eager = eagerness(r.eager, time.Since(begin), soon)
				}
				return n, err
			}
		}
		if spin > 0 && time.Since(begin) < spin {
			continue
		}
		if err := r.sleep(deadline); err != nil {
			return 0, err
		}
	}
}

// Soon says that an event is likely before long: the next Wait tries for it before it goes to
// sleep, for longest at most, and for as long as it has been worth it of late. It is for the
// reading goroutine.
func (r *Reader) Soon(longest time.Duration) { r.soon = longest }

// eagerness is how long to try the next time, after a wait that has been told of took so
// long. It grows while the event comes within longest and after the end of the trying, and
// ends with one that takes longer: how KVM polls for a halted CPU (grow_halt_poll_ns and
// shrink_halt_poll_ns of virt/kvm/kvm_main.c).
func eagerness(now, took, longest time.Duration) time.Duration {
	switch {
	case took > longest:
		return 0
	case took > now:
		return min(longest, max(2*now, longest/8))
	}
	return now
}

// TryRead is ReadEvents that returns 0 at once where there is nothing.
func (r *Reader) TryRead(buf []Event) (int, error) {
	n, errno := readMsgs(r.fd, &r.msgs, min(len(buf), Batch))
	switch errno {
	case 0:
	case unix.EAGAIN, unix.EINTR:
		return 0, nil
	case unix.EINVAL:
		return 0, fmt.Errorf("read userfaultfd %d: %w (the handshake must come first)", r.fd, errno)
	default:
		return 0, fmt.Errorf("read userfaultfd %d: %w", r.fd, errno)
	}
	for i := range n {
		buf[i].decode(&r.msgs[i])
	}
	return n, nil
}

// sleep waits for an event, and tells the reasons to give up.
func (r *Reader) sleep(deadline time.Time) error {
	left := time.Duration(-1)
	if !deadline.IsZero() {
		if left = time.Until(deadline); left <= 0 {
			return ErrTimeout
		}
	}
	n, errno := syspoll.Wait(r.fds[:r.nfds], left)
	switch {
	case errno == unix.EINTR:
		return nil
	case errno != 0:
		return fmt.Errorf("poll userfaultfd %d: %w", r.fd, errno)
	case n == 0:
		return ErrTimeout
	case r.fds[1].Revents != 0:
		return ErrStopped
	case r.fds[0].Revents&unix.POLLIN != 0:
		return nil
	case r.fds[0].Revents != 0:
		return fmt.Errorf("poll userfaultfd %d: events %#x (it must be non-blocking and have had its handshake)",
			r.fd, r.fds[0].Revents)
	case r.nfds > 2 && r.fds[2].Revents != 0:
		return ErrGone
	}
	return nil
}

// Stop makes the present and every later read return ErrStopped. It may be
// called more than once, but not after Close.
func (r *Reader) Stop() {
	r.stopped.Store(true)
	one := [8]byte{1}
	// The counter cannot overflow in the life of a process; EAGAIN would mean
	// that it is readable already.
	_, _ = unix.Write(r.stopFd, one[:])
}

// Close releases the reader, after its goroutine has returned. It leaves the
// userfaultfd open.
func (r *Reader) Close() error {
	if r.stopFd < 0 {
		return nil
	}
	fd := r.stopFd
	r.stopFd = -1
	return unix.Close(fd)
}
