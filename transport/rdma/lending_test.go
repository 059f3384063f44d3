package rdma

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// carry has READs of size bytes, in order and window of them under way, come at a rate in
// bytes a second, each latency after it was posted at the soonest.
func carry(l *lending, now time.Time, rate float64, latency time.Duration, size, window, reads int) time.Time {
	var due []time.Time
	last := now
	for n := 0; n < reads || len(due) > 0; {
		for ; n < reads && len(due) < window; n++ {
			if len(due) == 0 {
				l.begin(now)
			}
			done := now.Add(latency)
			if done.Before(last) {
				done = last
			}
			last = done.Add(time.Duration(float64(size) / rate * 1e9))
			due = append(due, last)
		}
		now, due = due[0], due[1:]
		l.end(size, now)
	}
	return now
}

// The bound is what the link carries in lentTime; a slow link has none.
func TestLending(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(1e6, 60e9).Draw(t, "rate")
		l := newLending(0)
		if l.bound != LentBytes {
			t.Fatalf("at first %d bytes", l.bound)
		}
		carry(&l, time.Now(), rate, 5*time.Microsecond, 256<<10, 8, 200)
		carried := rate * lentTime.Seconds()
		switch {
		case l.rate < rate*0.7 || l.rate > rate*1.01:
			t.Fatalf("a link of %.0f bytes a second was found to have %.0f", rate, l.rate)
		case carried < lentLeast/2:
			if l.bound != 0 {
				t.Fatalf("%d bytes in place on a link that carries %.0f", l.bound, carried)
			}
		case carried > lentLeast*3/2 && (float64(l.bound) < min(carried*0.7, lentMost) || float64(l.bound) > carried*1.01):
			t.Fatalf("%d bytes in place on a link that carries %.0f", l.bound, carried)
		}
	})
}

// A rate between the two bounds changes nothing but the size; one beyond them does.
func TestLendingChanges(t *testing.T) {
	l, now := newLending(0), time.Now()
	for _, step := range []struct {
		rate float64
		want bool // in place
	}{{1e9, true}, {0.4e9, false}, {1e9, false}, {3e9, true}, {1e9, true}} {
		now = carry(&l, now, step.rate, 0, 256<<10, 8, 400)
		if got := l.bound > 0; got != step.want {
			t.Errorf("at %.1e bytes a second, found to be %.1e: in place %v", step.rate, l.rate, got)
		}
	}
	if l.bound != lentLeast {
		t.Errorf("%d bytes in place at %.1e bytes a second, want one READ of the least size", l.bound, l.rate)
	}
}

// Time in which no READ is under way does not count, and a bound that was asked for stays.
func TestLendingIdle(t *testing.T) {
	l, now := newLending(0), time.Now()
	for range 100 {
		now = carry(&l, now, 10e9, 5*time.Microsecond, 64<<10, 4, 4)
		now = now.Add(10 * time.Millisecond)
	}
	if l.rate < 6e9 || l.rate > 10e9 {
		t.Errorf("10 GB/s with pauses were found to be %.1e", l.rate)
	}
	l = newLending(300)
	carry(&l, now, 1e6, 0, 64<<10, 4, 100)
	if l.bound != 300 {
		t.Errorf("a bound of 300 bytes has become %d", l.bound)
	}
}
