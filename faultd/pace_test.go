package faultd

import (
	"testing"
	"time"
)

// Starve makes an engine believe that its precache workers wait for CPUs.
func (e *Engine) Starve() {
	for range 1 << paceWeight {
		e.pace.worked(time.Millisecond, 0)
	}
}

// TestPacer: sends are spaced where precache works and waits for CPUs, after a burst,
// and nowhere else.
func TestPacer(t *testing.T) {
	var p pacer
	p.init(time.Hour, func() {})
	defer p.stopTimer()
	free := func(n int) {
		t.Helper()
		for i := range n {
			if d := p.wait(); d != 0 {
				t.Fatalf("send %d has to wait for %v", i, d)
			}
		}
	}
	work := func(n int, cpu time.Duration) {
		for range n {
			p.worked(time.Millisecond, cpu)
		}
	}
	free(1000) // nothing is known of CPUs
	p.tat.Store(0)
	work(100, time.Millisecond)
	free(1000) // there are enough
	p.tat.Store(0)
	work(100, 500*time.Microsecond)
	free(paceBurst)
	if d := p.wait(); d <= 59*time.Minute || d > time.Hour {
		t.Fatalf("after a burst the next send has to wait for %v, want an hour", d)
	}
	work(100, 900*time.Microsecond) // more than enough CPUs, less than short: as before
	if p.wait() == 0 {
		t.Fatal("a tenth of the time lost ended the pacing; a sixteenth should")
	}
	work(100, time.Millisecond)
	free(1000)
	work(100, 0)
	if p.wait() == 0 {
		t.Fatal("what was sent without pacing counts as no burst")
	}
	p.seen.Add(-2 * int64(paceStale))
	free(1000) // precache has stopped

	var off pacer
	off.init(0, nil)
	off.stop(off.start())
	off.stopTimer()
	if off.wait() != 0 || off.seen.Load() != 0 {
		t.Fatal("a pacer without a gap paces")
	}
}
