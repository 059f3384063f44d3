package rdma

import "time"

// LentBytes is a bound for what a precache channel has under way in place, where the link's
// rate is not known: 10 µs of a link of 100 Gbit/s, twice an idle READ there.
const LentBytes = 128 << 10

const (
	// lentTime is the bound where the rate is known: several READs of an idle link, so
	// that one channel fills it, and a small part of what a fault on a busy one takes.
	lentTime = 50 * time.Microsecond
	// A link that carries less than lentLeast in that time, 1.3 GB/s, has precache go by
	// the stage, where its READs are long and nobody waits for them; one that has gone
	// there comes back at that rate, and one in place goes there at half of it.
	lentLeast = 64 << 10
	lentMost  = 4 << 20 // 50 µs of 640 Gbit/s
	// What the rate is taken from: so many bytes, or so long.
	sampleBytes = 1 << 20
	sampleTime  = 2 * time.Millisecond
)

// lending says how many bytes a precache channel may have under way in place, from the
// rate at which its READs complete. It belongs to the Fetcher's mu.
type lending struct {
	fixed bool
	bound int // bytes; 0: precache goes by the stage

	since time.Time // to where busy has been counted; READs are under way
	busy  time.Duration
	bytes int
	rate  float64 // bytes a second, a moving average of a quarter; 0: not known
}

func newLending(fixed int) lending {
	if fixed > 0 {
		return lending{fixed: true, bound: fixed}
	}
	return lending{bound: LentBytes}
}

// cut is what of the memory of n pages one READ is to have, nil for the stage: half of
// the bound at most, so that two are under way.
func (l *lending) cut(n uint32, mem []byte) (uint32, []byte) {
	if l.bound == 0 {
		return n, nil
	}
	size := len(mem) / int(n)
	n = min(n, max(1, uint32(l.bound/2/size)))
	return n, mem[:int(n)*size]
}

// begin says that the first READ is under way since now.
func (l *lending) begin(now time.Time) { l.since = now }

// end says that a READ of size bytes has come and, if it was of a page in place, been
// installed: whoever waits for a READ waits for that of those before it as well.
func (l *lending) end(size int, now time.Time) {
	if l.fixed {
		return
	}
	l.bytes += size
	l.busy += now.Sub(l.since)
	l.since = now
	if l.bytes < sampleBytes && l.busy < sampleTime {
		return
	}
	rate := float64(l.bytes) / max(l.busy, time.Nanosecond).Seconds()
	if l.rate != 0 {
		rate = l.rate + (rate-l.rate)/4
	}
	l.rate, l.bytes, l.busy = rate, 0, 0
	carried := int(rate * lentTime.Seconds())
	switch {
	case carried >= lentLeast:
		l.bound = min(carried, lentMost)
	case carried < lentLeast/2:
		l.bound = 0
	default:
		l.bound = min(l.bound, lentLeast)
	}
}
