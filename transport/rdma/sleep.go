package rdma

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// sleeper is how the Receive of a channel sleeps, and what ends its sleep. Receive sets
// sleeping first and then looks for work once more: whoever brings some later sees that,
// and wakes it.
type sleeper struct {
	ringMu   sync.Mutex // held while wakeFD is written to, or closed: its number may be another file's next
	wakeFD   int        // an eventfd; -1: none. Guarded by ringMu, and not closed while Receive sleeps
	sleeping atomic.Bool
	broken   atomic.Pointer[error] // why RDMA must end; Receive takes it, and acts on it
}

func (s *sleeper) open() (err error) {
	if s.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		s.wakeFD = -1
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}

func (s *sleeper) shut() {
	s.ringMu.Lock()
	defer s.ringMu.Unlock()
	if s.wakeFD >= 0 {
		unix.Close(s.wakeFD)
		s.wakeFD = -1
	}
}

// breakDown says that RDMA must end, and has Receive see to it.
func (s *sleeper) breakDown(err error) {
	if s.broken.CompareAndSwap(nil, &err) {
		s.wake()
	}
}

// wake ends Receive's sleep.
func (s *sleeper) wake() {
	if s.sleeping.Load() {
		s.ring()
	}
}

// ring ends Receive's sleep, or its next one.
func (s *sleeper) ring() {
	s.ringMu.Lock()
	defer s.ringMu.Unlock()
	unix.Write(s.wakeFD, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // it can only be full, which wakes as well
}

// wait sleeps until it is woken, until q, if there is one, has a completion since it
// was armed, or for lookEvery.
func (s *sleeper) wait(q *queue) error {
	fds := [2]unix.PollFd{{Fd: int32(s.wakeFD), Events: unix.POLLIN}, {Fd: -1}}
	if q != nil {
		fds[1] = unix.PollFd{Fd: int32(q.fd), Events: unix.POLLIN}
	}
	_, err := unix.Poll(fds[:], int(lookEvery/time.Millisecond))
	if err != nil && err != unix.EINTR {
		return fmt.Errorf("wait for RDMA: %w", err)
	}
	if fds[0].Revents != 0 {
		var b [8]byte
		unix.Read(s.wakeFD, b[:]) // an empty one is as good
	}
	if q != nil && fds[1].Revents != 0 {
		q.disarm()
	}
	return nil
}

// over tells everybody that RDMA on a channel has ended, and why. An error ends the
// channel.
func (o *FetchOptions) over(dev *Device, ch Channel, stats *Stats, why error) error {
	stats.Fallbacks.Add(1)
	err := fmt.Errorf("RDMA by %s: %w", dev, why)
	if o.Down != nil {
		o.Down(err)
	}
	if o.Only {
		return err
	}
	return ch.SendSide(transport.Header{Aux: kindOff}, clipped(err))
}
