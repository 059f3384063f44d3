package trace

import (
	"math"
	"math/rand/v2"
	"time"
)

const (
	pieceBytes   = 16 << 10 // what a connection gives to the link at a time, as segmentation offload does
	segmentBytes = 1448     // of a TCP segment on Ethernet with time stamps
	// mathis is sqrt(3/2), for a receiver that acknowledges every segment.
	mathis = 1.2247
)

// link carries answers from the source to the destination.
type link struct {
	*clock
	rate  float64 // bytes/s; 0: no limit
	half  time.Duration
	loss  float64
	fair  bool
	rng   *rand.Rand
	flows []*flow
	queue []piece // in order of arrival; not fair
	turn  int
	busy  bool
	wake  time.Duration // when serve looks again; past if it is not to
	wire  uint64        // bytes
	lost  uint64        // segments
}

// flow is one connection.
type flow struct {
	queue    []piece
	next     time.Duration // not before this for its next piece: what loss permits
	inOrder  time.Duration // nothing arrives before what was sent earlier
	nextFlow float64       // bytes/s that loss permits; 0: no limit
}

type piece struct {
	f     *flow
	bytes int
	more  bool   // something follows at once
	done  func() // when it has arrived
}

func (l *link) newFlow() *flow {
	f := &flow{}
	if l.loss > 0 {
		f.nextFlow = segmentBytes * mathis / (2 * l.half.Seconds() * math.Sqrt(l.loss))
	}
	l.flows = append(l.flows, f)
	return f
}

// send queues an answer of some bytes; done runs when the last has arrived.
func (l *link) send(f *flow, bytes int, done func()) {
	for bytes > 0 {
		n := min(bytes, pieceBytes)
		bytes -= n
		p := piece{f: f, bytes: n, more: bytes > 0}
		if bytes == 0 {
			p.done = done
		}
		if l.fair || f.nextFlow > 0 {
			f.queue = append(f.queue, p)
		} else {
			l.queue = append(l.queue, p)
		}
	}
	l.serve()
}

// take returns the next piece that may go, or when there will be one.
func (l *link) take() (p piece, wait time.Duration, ok bool) {
	if len(l.queue) > 0 {
		p, l.queue = l.queue[0], l.queue[1:]
		return p, 0, true
	}
	wait = math.MaxInt64
	for range l.flows {
		f := l.flows[l.turn%len(l.flows)]
		l.turn++
		if len(f.queue) == 0 {
			continue
		}
		if f.next > l.now {
			wait = min(wait, f.next-l.now)
			continue
		}
		p, f.queue = f.queue[0], f.queue[1:]
		if f.nextFlow > 0 {
			f.next = l.now + time.Duration(float64(p.bytes)/f.nextFlow*1e9)
		}
		return p, 0, true
	}
	return p, wait, false
}

// serve puts pieces on the link, one after the other.
func (l *link) serve() {
	if l.busy {
		return
	}
	p, wait, ok := l.take()
	if !ok {
		// Another connection may have something before that.
		if at := l.now + wait; wait < math.MaxInt64 && (l.wake <= l.now || at < l.wake) {
			l.wake = at
			l.at(at, l.serve)
		}
		return
	}
	l.busy = true
	l.wire += uint64(p.bytes)
	var took time.Duration
	if l.rate > 0 {
		took = time.Duration(float64(p.bytes) / l.rate * 1e9)
	}
	l.after(took, func() {
		l.busy = false
		at := max(l.now+l.half+l.repair(p), p.f.inOrder)
		p.f.inOrder = at
		if p.done != nil {
			l.at(at, p.done)
		}
		l.serve()
	})
}

// repair is the delay of a piece of which segments are lost: a round trip if
// later segments tell of it, two if a probe must (tail loss, RFC 8985).
func (l *link) repair(p piece) (d time.Duration) {
	if l.loss == 0 {
		return 0
	}
	n := (p.bytes + segmentBytes - 1) / segmentBytes
	for i := range n {
		for l.rng.Float64() < l.loss { // also of what is sent again
			l.lost++
			if p.more || n-i > 3 {
				d += 2 * l.half
			} else {
				d += max(4*l.half, 2*time.Millisecond)
			}
		}
	}
	return d
}
