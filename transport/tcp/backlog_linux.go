package tcp

import (
	"time"

	"golang.org/x/sys/unix"
)

// What a precache channel may have in its socket and in the network on a slow link. A
// demand answer waits behind all of it, on whatever socket that is: the queue of the
// link knows no channels. docs/PRECACHE.md has the measurements.
const (
	// backlogTime is what the link may have before it of one channel, beyond the
	// round trip: the time until the sending thread is awake again, with a reserve.
	backlogTime = 150 * time.Microsecond
	// backlogLeast keeps a call from sending crumbs.
	backlogLeast = 8 << 10
	// backlogMost is from where on the kernel tunes the buffer. A link of some 2.5
	// Gbit/s is through with as much in no time, and on a long one the queue is not
	// what a fault waits for.
	backlogMost = 48 << 10

	// On a link of at least so many bytes a second a call may have more, so that an
	// answer is one call and has no short packets but its last.
	fastLink     = 100e6
	fastSendCall = 256 << 10

	// A queue is there where round trips take so much longer than the shortest one, in
	// so many readings one after the other. Without a limit of the link they took 0.1
	// to 0.44 ms on two busy cores, over 1 Gbit/s without a bound 0.4 to 2.2.
	queueTime     = 350 * time.Microsecond
	queueReadings = 3
	// Under a bound it is halved above the one, and doubled below the other.
	queueLong  = 250 * time.Microsecond
	queueShort = 80 * time.Microsecond

	// A bound does not slow a link down that is what bytes wait for. Where so many
	// times less is carried with it than without, for so long, they wait for something
	// else, such as a CPU, and there is none for a while, longer each time.
	boundCosts = 6
	boundTrial = 100 * time.Millisecond
	liftLeast  = time.Second
	liftMost   = 16 * time.Second
)

// linkState is what the kernel knows of a connection.
type linkState struct {
	rate        float64 // bytes/s, see wire.link; 0: not known
	acked       uint64  // bytes, ever
	rtt, minRTT time.Duration
}

// backlog decides how many bytes a channel may have in its socket. It belongs to the
// writer.
type backlog struct {
	bound int // bytes; 0: the kernel's choice

	long  int       // readings that showed a queue, one after the other
	acked uint64    // at the first of them
	since time.Time // of the first of them
	last  linkState
	at    time.Time // of the last reading

	free  float64       // bytes/s carried before there was a bound
	poor  uint64        // acked at the reading before the bound seemed to do harm
	bad   time.Time     // of that reading; zero: it does not seem so
	lift  time.Duration // how long there was none the last time that one did harm
	until time.Time     // no bound before
}

// look takes a reading. It returns the link's rate in bytes per second: where there is a
// queue before it, what it has carried since the last reading, else no less than that.
// What the kernel says of its rate is of single acknowledgements, and under a token
// bucket off by a factor of 30 either way.
func (b *backlog) look(l linkState, now time.Time) float64 {
	rate, wait := l.rate, l.rtt-l.minRTT
	if b.last.acked != 0 {
		carried := goodput(l.acked-b.last.acked, now.Sub(b.at))
		if b.bound > 0 || wait > queueTime {
			rate = carried
		}
		rate = max(rate, carried)
	}
	switch {
	case b.bound > 0 && b.harms(l, now):
		b.bound, b.long, b.bad = 0, 0, time.Time{}
		b.lift = min(max(2*b.lift, liftLeast), liftMost)
		b.until = now.Add(b.lift)
	case b.bound > 0 && wait > queueLong:
		b.bound = max(backlogLeast, b.bound/2)
	case b.bound > 0 && wait < queueShort:
		if b.bound *= 2; b.bound > backlogMost {
			b.bound, b.long, b.bad = 0, 0, time.Time{}
		}
	case b.bound > 0:
	case wait <= queueTime || now.Before(b.until):
		b.long = 0
	case b.long == 0:
		b.long, b.acked, b.since = 1, l.acked, now
	default:
		if b.long++; b.long > queueReadings {
			b.free = goodput(l.acked-b.acked, now.Sub(b.since))
			if n := b.free * (l.minRTT + backlogTime).Seconds(); n < backlogMost {
				b.bound = max(backlogLeast, int(n))
			}
			b.long = 0
		}
	}
	b.last, b.at = l, now
	return rate
}

// harms reports that with the bound little has been carried for as long as boundTrial. A
// moment in which the host did something else is none.
func (b *backlog) harms(l linkState, now time.Time) bool {
	if b.bad.IsZero() {
		b.bad, b.poor = b.at, b.last.acked
	}
	if goodput(l.acked-b.poor, now.Sub(b.bad))*boundCosts >= b.free {
		b.bad = time.Time{}
		return false
	}
	return now.Sub(b.bad) >= boundTrial
}

func goodput(bytes uint64, d time.Duration) float64 {
	return float64(bytes) / max(d, time.Microsecond).Seconds()
}

// keepShort bounds the socket's backlog by what the link has shown of late, and
// returns the link's rate. The caller holds the write lock.
func (w *wire) keepShort(now time.Time) float64 {
	l := w.link()
	if l.rate == 0 {
		return 0
	}
	was := w.backlog.bound
	rate := w.backlog.look(l, now)
	if n := w.backlog.bound; n != was {
		w.limit(n)
	} else if n == 0 {
		w.sendCall = maxSendCall
		if l.rate >= fastLink {
			w.sendCall = fastSendCall
		}
	}
	return rate
}

// limit lets the socket have n bytes, 0 for as many as the kernel likes.
func (w *wire) limit(n int) {
	s := w.sock
	s.bound = n
	if s.rc.Control(s.bfn) != nil || s.berr != nil {
		return // a socket that has ended, which its writer will see
	}
	// The kernel looks at the buffer before a call's bytes, not within them, nor for what it
	// adds to the packet of an earlier call, of up to 64 KiB, that is held back for pacing.
	w.sendCall, s.wflags = maxSendCall, unix.MSG_NOSIGNAL
	if n > 0 {
		w.sendCall, s.wflags = n, unix.MSG_NOSIGNAL|unix.MSG_EOR
	}
}

// boundBuffer lets a socket have n bytes to send; 0 has the kernel tune the buffer again,
// which it does without the lock (Linux 5.14).
func boundBuffer(fd, n int) error {
	if n == 0 {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0)
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, n)
}
