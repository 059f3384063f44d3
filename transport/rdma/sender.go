package rdma

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// Rooms of a sender: messages under way and being made. 8 of 64 KiB, what 16 pages
// are raw, are 4 ms of 1 Gbit/s.
const (
	sendRooms  = 8
	sendMemory = 16 << 20 // of all rooms
	sendLook   = 20 * time.Millisecond
)

// sender is the source's end of answers by SEND on one channel: a [transport.Carrier].
// Each answer is encoded in a room, registered memory that is sent from and is free
// again when the destination's device has said that it has the message.
type sender struct {
	q    *queue
	mem  []byte
	mr   *region
	room int // bytes of a room
	most int // bytes of a message
	dead time.Duration

	stats *SendStats
	lost  func(error) // is told once why nothing is sent any more

	closed atomic.Bool
	tell   sync.Once

	mu     sync.Mutex // held from Room to Leave
	free   []int      // rooms
	taken  int        // the room that is being filled, or -1
	began  time.Time  // when it was taken
	broken bool
	dones  [sendRooms]done
	sizes  [sendRooms]int // of the messages under way, by room
	rate   sendRate
}

// newSender makes the rooms, by the word of the destination on how many messages it can
// take, and how long.
func newSender(d *Device, peer *endpoint, dead time.Duration, stats *SendStats, lost func(error)) (s *sender, err error) {
	if peer.slotBytes > d.caps.maxMessage {
		return nil, fmt.Errorf("messages have at most %d bytes with %s, the destination wants up to %d", d.caps.maxMessage, d, peer.slotBytes)
	}
	s = &sender{room: (int(peer.slotBytes) + 4095) &^ 4095, most: int(peer.slotBytes), dead: dead, stats: stats, lost: lost, taken: -1}
	n := max(1, min(sendRooms, int(peer.slots), sendMemory/s.room))
	if s.mem, err = sysmem.MapAnonymous(int64(n * s.room)); err != nil {
		return nil, err
	}
	if s.mr, err = d.register(s.mem, landing); err == nil {
		s.q, err = d.dev.messages(n, 1)
	}
	if err != nil {
		s.release()
		return nil, err
	}
	for i := range n {
		s.free = append(s.free, i)
	}
	return s, nil
}

// Room implements [transport.Carrier].
func (s *sender) Room() (mem []byte, most int, ok bool) {
	s.mu.Lock()
	begin := time.Now()
	for waited := false; !s.drain(waited) || s.rate.narrow(); waited = s.wait() {
		if s.broken || s.closed.Load() {
			s.mu.Unlock()
			return nil, 0, false
		}
		if waited := time.Since(begin); waited > s.dead {
			s.fail(fmt.Errorf("no SEND completes: %v have passed", waited.Round(time.Millisecond)))
		}
	}
	if s.broken || s.closed.Load() {
		s.mu.Unlock()
		return nil, 0, false
	}
	s.began = time.Now()
	s.stats.Waited.Add(uint64(s.began.Sub(begin)))
	s.taken = s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	return s.mem[s.taken*s.room:][:s.room:s.room], s.most, true
}

// drain takes completions, and reports whether there is a room. If waited, the last one has
// just come. mu is held.
func (s *sender) drain(waited bool) bool {
	if s.q == nil {
		return false
	}
	n, err := s.q.poll(s.dones[:], 0)
	if err != nil {
		s.fail(err)
	}
	for _, d := range s.dones[:n] {
		if d.status != 0 {
			s.fail(fmt.Errorf("SEND failed: %s (vendor code %#x)", statusText(d.status), d.vendor))
		}
		s.free = append(s.free, int(d.id))
		s.rate.came(s.sizes[d.id])
	}
	s.rate.look(time.Now(), waited && n > 0)
	return len(s.free) > 0
}

// wait waits for a completion, for a short time, and reports whether it slept until one
// came. mu is held.
func (s *sender) wait() bool {
	if s.broken || s.q == nil {
		return false
	}
	if err := s.q.arm(); err != nil {
		s.fail(err)
		return false
	}
	under := s.rate.queued
	if s.drain(false); s.rate.queued < under { // it came before the arming
		return false
	}
	fds := [1]unix.PollFd{{Fd: int32(s.q.fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds[:], int(sendLook/time.Millisecond)); err != nil && err != unix.EINTR {
		s.fail(fmt.Errorf("wait for RDMA: %w", err))
	}
	if fds[0].Revents == 0 {
		return false
	}
	s.q.disarm()
	return true
}

// fail says that nothing is sent any more. mu is held.
func (s *sender) fail(err error) {
	s.broken = true
	s.tell.Do(func() { s.lost(err) })
}

// Send implements [transport.Carrier].
func (s *sender) Send(n int) bool {
	if s.broken || s.closed.Load() {
		return false
	}
	s.drain(false) // what has ended before is not taken for what is slow
	if s.broken {
		return false
	}
	m := slot{id: uint64(s.taken), local: addressOf(s.mem) + uint64(s.taken*s.room), length: uint32(n), lkey: s.mr.lkey}
	if err := s.q.send(&m); err != nil {
		s.fail(err)
		return false
	}
	s.sizes[s.taken] = n
	s.rate.posted(n, time.Now())
	s.taken = -1
	s.stats.Messages.Add(1)
	s.stats.Bytes.Add(uint64(n))
	return true
}

// Rate implements [transport.Carrier].
func (s *sender) Rate() float64 { return s.rate.rate }

// Leave implements [transport.Carrier].
func (s *sender) Leave() {
	if s.taken >= 0 {
		s.free = append(s.free, s.taken)
		s.taken = -1
	}
	s.stats.Building.Add(uint64(time.Since(s.began)))
	s.mu.Unlock()
}

// close ends it; who is in Room or has one is waited for. Nothing is sent after it.
func (s *sender) close() error {
	s.closed.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.release()
}

func (s *sender) release() (err error) {
	if s.q != nil {
		s.q.close()
		s.q = nil
	}
	if s.mr != nil {
		err = s.mr.close()
		s.mr = nil
	}
	err = errors.Join(err, sysmem.Unmap(s.mem))
	s.mem = nil
	return err
}

var _ transport.Carrier = (*sender)(nil)
