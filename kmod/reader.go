package kmod

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/pagewarp/pagewarp/internal/syspoll"
	"golang.org/x/sys/unix"
)

// ReaderConfig sets up a [Reader]. The zero value is good.
type ReaderConfig struct {
	// PIDFD, if more than 0, is a pidfd of the process that maps the objects; its
	// exit ends reading with ErrGone. It stays the caller's.
	PIDFD int
}

// Reader waits for the faults of one or more daemons' ends. One goroutine at a
// time may read, best one locked to its thread; several readers may share the
// ends, each fault goes to one of them. Stop may come from anywhere.
type Reader struct {
	daemons []*Daemon
	stop    int // eventfd; readable for ever after Stop
	stopped atomic.Bool
	fds     []unix.PollFd // used by the reading goroutine
	turn    int           // whose ring comes first, used by the reading goroutine
}

// NewReader makes a reader of the ends, which must outlive it.
func NewReader(cfg ReaderConfig, daemons ...*Daemon) (*Reader, error) {
	if len(daemons) == 0 {
		return nil, errors.New("fault ring reader: no daemon's end to read")
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make stop descriptor of fault ring reader: %w", err)
	}
	r := &Reader{daemons: append([]*Daemon(nil), daemons...), stop: stop}
	r.fds = append(r.fds, unix.PollFd{Fd: int32(stop), Events: unix.POLLIN})
	for _, d := range daemons {
		r.fds = append(r.fds, unix.PollFd{Fd: int32(d.fd), Events: unix.POLLIN})
	}
	if cfg.PIDFD > 0 {
		r.fds = append(r.fds, unix.PollFd{Fd: int32(cfg.PIDFD), Events: unix.POLLIN})
	}
	return r, nil
}

// Read waits until there is a fault, and fills buf with as many as there are. It
// returns ErrStopped after Stop, ErrGone after the process's exit, ErrDestroyed
// when an object is no more.
func (r *Reader) Read(buf []Fault) (int, error) {
	if len(buf) == 0 {
		return 0, errors.New("fault ring reader: buffer has no room")
	}
	for {
		if r.stopped.Load() {
			return 0, ErrStopped
		}
		if n := r.take(buf); n > 0 {
			return n, nil
		}
		// This also brings in what the ring had no room for.
		if err := r.poll(); err != nil {
			return 0, err
		}
	}
}

// take reads the rings once around, beginning with another one each time.
func (r *Reader) take(buf []Fault) int {
	n := 0
	for range r.daemons {
		i := r.turn
		if r.turn++; r.turn == len(r.daemons) {
			r.turn = 0
		}
		got := r.daemons[i].ring.Read(buf[n:])
		for j := range got {
			buf[n+j].Source = i
		}
		if n += got; n == len(buf) {
			break
		}
	}
	return n
}

func (r *Reader) poll() error {
	_, errno := syspoll.Wait(r.fds, -1)
	switch errno {
	case 0:
	case unix.EINTR:
		return nil
	default:
		return fmt.Errorf("wait for faults: %w", errno)
	}
	for i := range r.daemons {
		if r.fds[i+1].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0 {
			return fmt.Errorf("object %d: %w", r.daemons[i].id, ErrDestroyed)
		}
	}
	if last := len(r.fds) - 1; last > len(r.daemons) && r.fds[last].Revents != 0 {
		return ErrGone
	}
	return nil
}

// Stop ends the present and every later Read.
func (r *Reader) Stop() {
	if r.stopped.Swap(true) {
		return
	}
	// The counter is far from its limit: this does not fail.
	_, _ = unix.Write(r.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// Close frees the reader, after the last Read has returned. A second call does nothing.
func (r *Reader) Close() error { return closeOnce(&r.stop) }
