package pagecache

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestLimiterRate: whoever waits as told never exceeds the rate by more than
// the bucket and one charge, and loses no more than that either.
func TestLimiterRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Uint64Range(1000, 10e9).Draw(t, "rate")
		burst := rapid.Uint64Range(0, 8<<20).Draw(t, "burst")
		most := rapid.Int64Range(1, 4<<20).Draw(t, "largest")
		l := NewLimiter(rate, burst)
		start := time.Unix(5, 0)
		now, sent := start, int64(0)
		for range 300 {
			for d := l.Delay(now); d > 0; d = l.Delay(now) {
				now = now.Add(d)
			}
			n := rapid.Int64Range(1, most).Draw(t, "bytes")
			l.Charge(n+100, now)
			l.Charge(-100, now) // it took less than was thought
			sent += n
		}
		allowed := now.Sub(start).Seconds() * float64(rate)
		if over := float64(sent) - allowed; over > float64(burst)+float64(most)+1000 {
			t.Fatalf("sent %d, %.0f over what %d/s allow", sent, over, rate)
		}
		if under := allowed - float64(sent); under > 100+allowed*1e-6+float64(rate)*1e-6 {
			t.Fatalf("sent %d, %.0f less than %d/s allow", sent, under, rate)
		}
	})
}

func TestLimiterSetRate(t *testing.T) {
	now := time.Unix(5, 0)
	l := NewLimiter(0, 1000)
	l.Charge(math.MaxInt32, now)
	if d := l.Delay(now); d != 0 || l.Rate() != 0 {
		t.Fatalf("delay %v without a limit", d)
	}
	l.SetRate(1000, now)
	if d := l.Delay(now); d != 0 {
		t.Fatalf("delay %v: what went before the limit counted", d)
	}
	l.Charge(3000, now)
	if d := l.Delay(now).Round(time.Millisecond); d != 2*time.Second {
		t.Fatalf("delay %v with a debt of 2000 at 1000/s", d)
	}
	l.SetRate(4000, now)
	if d := l.Delay(now).Round(time.Millisecond); d != 500*time.Millisecond {
		t.Fatalf("delay %v with a debt of 2000 at 4000/s", d)
	}
	if d := l.Delay(now.Add(-time.Hour)); d <= 0 {
		t.Fatal("a clock that went back paid the debt")
	}
	l.SetRate(0, now)
	if d := l.Delay(now); d != 0 {
		t.Fatalf("delay %v after the limit was lifted", d)
	}
	l.SetRate(1, now)
	if d := l.Delay(now); d != 0 {
		t.Fatalf("delay %v: a debt came back with the limit", d)
	}
	l.Charge(math.MaxInt64, now)
	if d := l.Delay(now); d <= 0 || d > 2*time.Hour {
		t.Fatalf("delay %v with an absurd debt", d)
	}
}

// TestLimiterIdle: time in which nothing is sent fills the bucket, no more.
func TestLimiterIdle(t *testing.T) {
	now := time.Unix(5, 0)
	l := NewLimiter(1000, 500)
	l.Charge(500, now)
	now = now.Add(time.Hour)
	l.Charge(1500, now)
	if d := l.Delay(now).Round(time.Millisecond); d != time.Second {
		t.Fatalf("delay %v with a debt of 1000 at 1000/s", d)
	}
}
