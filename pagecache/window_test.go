package pagecache

import (
	"container/heap"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// link is a simulated path: a request takes half the delay, then the answer
// waits in a FIFO buffer for the bottleneck, and comes after the other half.
type link struct {
	rate  float64       // bytes/s
	delay time.Duration // round trip of an empty message on the idle link
	free  time.Time     // when the bottleneck has sent all it has
	queue float64       // most bytes that an answer has found before it
}

func (l *link) bdp() float64 { return l.rate * l.delay.Seconds() }

func (l *link) answer(now time.Time, bytes uint64) time.Time {
	at := now.Add(l.delay / 2)
	if wait := l.free.Sub(at); wait > 0 {
		l.queue = max(l.queue, wait.Seconds()*l.rate)
	} else {
		l.free = at
	}
	l.free = l.free.Add(time.Duration(float64(bytes) / l.rate * float64(time.Second)))
	return l.free.Add(l.delay / 2)
}

type flight struct {
	bytes      uint64
	sent, done time.Time
}

type flights []flight

func (f flights) Len() int           { return len(f) }
func (f flights) Less(i, j int) bool { return f[i].done.Before(f[j].done) }
func (f flights) Swap(i, j int)      { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(x any)        { *f = append(*f, x.(flight)) }
func (f *flights) Pop() any {
	last := (*f)[len(*f)-1]
	*f = (*f)[:len(*f)-1]
	return last
}

type simulation struct {
	w         *Window
	l         *link
	now       time.Time
	air       flights
	delivered uint64
	max       uint64 // most bytes in flight
}

func newSimulation(cfg WindowConfig, rate float64, delay time.Duration) *simulation {
	return &simulation{w: NewWindow(cfg), l: &link{rate: rate, delay: delay}, now: time.Unix(1000, 0)}
}

// run goes on for d, with as much to send as the window lets through, in runs
// of at most size() bytes.
func (s *simulation) run(d time.Duration, size func() uint64) {
	end := s.now.Add(d)
	for {
		for {
			next := s.w.Next()
			if next == 0 {
				break
			}
			n := min(next, size())
			s.w.OnSent(n, s.now)
			heap.Push(&s.air, flight{n, s.now, s.l.answer(s.now, n)})
			s.max = max(s.max, s.w.Stats().InFlight)
		}
		if s.air.Len() == 0 || s.air[0].done.After(end) {
			s.now = end
			return
		}
		f := heap.Pop(&s.air).(flight)
		s.now = f.done
		s.delivered += f.bytes
		s.w.OnDelivered(f.bytes, f.sent, f.done)
	}
}

// longest is the longest run that the window may ask for on this link, in bytes.
// The rate it has measured may be a little too high.
func (s *simulation) longest() float64 {
	run := s.w.cfg.Run
	for 2*run <= s.w.cfg.MaxRun && float64(2*run) <= 1.1*s.l.rate*runTime.Seconds() {
		run *= 2
	}
	return float64(run)
}

// rounds returns n answer times of the link with a few runs in flight.
func (s *simulation) rounds(n int) time.Duration {
	one := s.l.delay + time.Duration(2*s.longest()/s.l.rate*float64(time.Second))
	return time.Duration(n) * one
}

func drawLink(t *rapid.T) (WindowConfig, float64, time.Duration) {
	cfg := WindowConfig{Run: rapid.Uint64Range(64<<10, 2<<20).Draw(t, "run"), Cap: 1 << 40}
	cfg.MaxRun = cfg.Run * rapid.SampledFrom([]uint64{0, 1, 2, 4}).Draw(t, "run times")
	rate := float64(rapid.IntRange(5, 3000).Draw(t, "MB/s")) * 1e6
	delay := time.Duration(rapid.IntRange(20, 100_000).Draw(t, "delay µs")) * time.Microsecond
	// Short runs on a long fat link are a test of their own: this one is to be quick.
	if most := 64 * float64(cfg.Run) / rate; delay.Seconds() > most {
		delay = time.Duration(most * float64(time.Second))
	}
	return cfg, rate, delay
}

// TestWindowFillsTheLink: the window reaches 0.9 of the link's rate, and never
// queues more than a bandwidth-delay product and two runs.
func TestWindowFillsTheLink(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg, rate, delay := drawLink(t)
		s := newSimulation(cfg, rate, delay)
		size := func() uint64 { return max(cfg.Run, cfg.MaxRun) }
		if rapid.Bool().Draw(t, "bubbles") {
			i := 0
			size = func() uint64 { // some runs are smaller
				if i++; i%3 == 0 {
					return cfg.Run / 8
				}
				return max(cfg.Run, cfg.MaxRun)
			}
		}
		s.run(s.rounds(25), size)
		startQueue := s.l.queue
		s.l.queue = 0
		before, d := s.delivered, s.rounds(80)
		s.run(d, size)
		got := float64(s.delivered-before) / d.Seconds()
		if got < 0.9*rate {
			t.Fatalf("%.3f of the link's rate (%+v)", got/rate, s.w.Stats())
		}
		bound := 1.01 * (s.l.bdp() + 2*s.longest())
		if max(startQueue, s.l.queue) > bound {
			t.Fatalf("queued %.0f bytes at the start, %.0f later; BDP %.0f, run %.0f", startQueue, s.l.queue, s.l.bdp(), s.longest())
		}
	})
}

// TestWindowFollowsTheLink: when the link becomes slower the queue is short
// again soon, and when it becomes faster the window fills it.
func TestWindowFollowsTheLink(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg, rate, delay := drawLink(t)
		s := newSimulation(cfg, rate, delay)
		size := func() uint64 { return max(cfg.Run, cfg.MaxRun) }
		s.run(s.rounds(40), size)

		slow := rate / float64(rapid.IntRange(2, 20).Draw(t, "slower"))
		s.l.rate = slow
		// What was in flight comes at the new rate; then the rate that was
		// measured across the change has to age.
		settle := time.Duration(float64(s.w.Stats().InFlight) / slow * float64(time.Second))
		s.run(2*settle+s.rounds(100), size)
		s.l.queue = 0
		before, d := s.delivered, s.rounds(40)
		s.run(d, size)
		if got := float64(s.delivered-before) / d.Seconds(); got < 0.8*slow {
			t.Fatalf("%.3f of the slow link's rate (%+v)", got/slow, s.w.Stats())
		}
		if bound := s.l.bdp() + 2*s.longest(); s.l.queue > bound {
			t.Fatalf("queued %.0f bytes on the slow link, BDP %.0f, run %.0f", s.l.queue, s.l.bdp(), s.longest())
		}

		s.l.rate = rate
		s.run(s.rounds(200), size)
		before, d = s.delivered, s.rounds(40)
		s.run(d, size)
		if got := float64(s.delivered-before) / d.Seconds(); got < 0.85*rate {
			t.Fatalf("%.3f of the fast link's rate (%+v)", got/rate, s.w.Stats())
		}
	})
}

// TestWindowLongFatLink: thousands of runs in one flight.
func TestWindowLongFatLink(t *testing.T) {
	s := newSimulation(WindowConfig{Run: 64 << 10, Cap: 1 << 40}, 3e9, 100*time.Millisecond)
	size := func() uint64 { return 64 << 10 }
	s.run(3*time.Second, size)
	before := s.delivered
	s.run(2*time.Second, size)
	if got := float64(s.delivered-before) / 2; got < 0.9*s.l.rate {
		t.Fatalf("%.3f of the link's rate (%+v)", got/s.l.rate, s.w.Stats())
	}
}

// TestWindowMeasuresAgain: a path that has become longer is found out, though
// our own queue never lets an answer come in the minimal time.
func TestWindowMeasuresAgain(t *testing.T) {
	const run = 256 << 10
	s := newSimulation(WindowConfig{Run: run}, 200e6, time.Millisecond)
	size := func() uint64 { return run }
	s.run(5*time.Second, size)
	s.l.delay = 30 * time.Millisecond
	s.run(15*time.Second, size)
	if got := s.w.Stats().MinRTT; got < 30*time.Millisecond || got > 33*time.Millisecond {
		t.Fatalf("minimal answer time %v, the link's is 31.3ms", got)
	}
	before := s.delivered
	s.run(5*time.Second, size)
	if got := float64(s.delivered-before) / 5; got < 0.9*s.l.rate {
		t.Fatalf("%.3f of the link's rate (%+v)", got/s.l.rate, s.w.Stats())
	}
}

// TestWindowIdle: pauses of the sender are not taken for a slow link.
func TestWindowIdle(t *testing.T) {
	const run = 256 << 10
	s := newSimulation(WindowConfig{Run: run}, 1e9, 10*time.Millisecond)
	size := func() uint64 { return run }
	s.run(time.Second, size)
	want := s.w.Stats()
	for range 50 {
		// A lone run, then silence: the gate held precache back.
		for s.air.Len() > 0 {
			f := heap.Pop(&s.air).(flight)
			s.now = f.done
			s.w.OnDelivered(f.bytes, f.sent, f.done)
		}
		s.now = s.now.Add(100 * time.Millisecond)
		s.w.OnSent(run, s.now)
		heap.Push(&s.air, flight{run, s.now, s.l.answer(s.now, run)})
	}
	if got := s.w.Stats(); got.Rate < 0.9*want.Rate || got.InFlight != run {
		t.Fatalf("after pauses %+v, before %+v", got, want)
	}
}

// TestWindowBounds: the floor, the cap, and what is lost makes room.
func TestWindowBounds(t *testing.T) {
	const run = 1 << 20
	now := time.Unix(1, 0)
	w := NewWindow(WindowConfig{Run: run, MinRuns: 3, Cap: 5*run + 7})
	for i := range 3 {
		if got := w.Next(); got != run {
			t.Fatalf("next run of %d with %d in flight", got, i)
		}
		w.OnSent(run, now)
	}
	if got := w.Next(); got != 0 {
		t.Fatalf("next run of %d with the floor in flight", got)
	}
	w.OnLost(run)
	if got := w.Next(); got != run {
		t.Fatalf("next run of %d after a loss", got)
	}
	s := newSimulation(WindowConfig{Run: run, Cap: 5*run + 7}, 1e9, time.Second)
	s.run(30*time.Second, func() uint64 { return run })
	if s.max > 5*run+7 || s.max < 5*run {
		t.Fatalf("%d bytes in flight, the cap is %d", s.max, 5*run+7)
	}
}

// TestWindowRun: a run has what the link delivers in half a millisecond, between
// the two lengths, and follows the link.
func TestWindowRun(t *testing.T) {
	const least, most = 64 << 10, 256 << 10
	size := func() uint64 { return most }
	for _, tc := range []struct {
		rate float64 // bytes/s
		want uint64
	}{{20e6, least}, {125e6, least}, {300e6, 2 * least}, {1e9, most}, {20e9, most}} {
		s := newSimulation(WindowConfig{Run: least, MaxRun: most}, tc.rate, 200*time.Microsecond)
		if got := s.w.Next(); got != least {
			t.Errorf("first run of %d, want %d", got, least)
		}
		s.run(time.Second, size)
		if got := s.w.run(); got != tc.want {
			t.Errorf("runs of %d at %.0f MB/s, want %d", got, tc.rate/1e6, tc.want)
		}
	}
	s := newSimulation(WindowConfig{Run: least, MaxRun: most}, 1e9, 200*time.Microsecond)
	s.run(time.Second, size)
	s.l.rate = 50e6
	s.run(time.Second, size)
	if got := s.w.run(); got != least {
		t.Errorf("runs of %d after the link has become slow, want %d", got, least)
	}
}

// TestWindowInflation: when answers take much longer than they should, because
// others fill the link, the window goes down to its floor, and comes back.
func TestWindowInflation(t *testing.T) {
	const run = 256 << 10
	s := newSimulation(WindowConfig{Run: run}, 1e9, 20*time.Millisecond)
	size := func() uint64 { return run }
	s.run(2*time.Second, size)
	full := s.w.Stats().Window
	for range 100 { // someone else's bytes, faster than the link takes them
		s.l.free = s.l.free.Add(15 * time.Millisecond)
		s.run(10*time.Millisecond, size)
	}
	if got := s.w.Stats().Window; got > full/3 {
		t.Fatalf("window %d while answers are late, %d before", got, full)
	}
	s.run(5*time.Second, size)
	before := s.delivered
	s.run(time.Second, size)
	if got := float64(s.delivered - before); got < 0.9*s.l.rate {
		t.Fatalf("%.3f of the link's rate afterwards (%+v)", got/s.l.rate, s.w.Stats())
	}
}

// TestWindowBursts: bursts that fill the window, with pauses between them, are
// measured by what the link carries, not by the pauses.
func TestWindowBursts(t *testing.T) {
	const run = 256 << 10
	s := newSimulation(WindowConfig{Run: run}, 1e9, 10*time.Millisecond)
	size := func() uint64 { return run }
	s.run(time.Second, size)
	want := s.w.Stats()
	for range 50 {
		for s.air.Len() > 0 {
			f := heap.Pop(&s.air).(flight)
			s.now = f.done
			s.w.OnDelivered(f.bytes, f.sent, f.done)
		}
		s.now = s.now.Add(500 * time.Millisecond)
		s.run(time.Millisecond, size)
	}
	if got := s.w.Stats(); got.Rate < 0.5*want.Rate {
		t.Fatalf("with pauses %+v, before %+v", got, want)
	}
}

// TestWindowMeasuresSlowLink: when the rate falls, so that sending a run takes
// longer, the minimal answer time is measured again at once.
func TestWindowMeasuresSlowLink(t *testing.T) {
	const run = 2 << 20
	s := newSimulation(WindowConfig{Run: run}, 1e9, 5*time.Millisecond)
	size := func() uint64 { return run }
	s.run(9*time.Second, size)
	s.l.rate = 20e6
	s.run(3*time.Second, size)
	if got := s.w.Stats().MinRTT; got < 109*time.Millisecond || got > 125*time.Millisecond {
		t.Fatalf("minimal answer time %v, the link's is 110ms", got)
	}
}
