package rdma

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// sending sends messages of size bytes over a link of a rate, each made in the time build,
// at most rooms of them under way, and looks as a sender does.
func sending(r *sendRate, now time.Time, rate float64, size, rooms, messages int, build time.Duration) time.Time {
	var due []time.Time
	last := now
	take := func(waited bool) {
		for len(due) > 0 && !due[0].After(now) {
			r.came(size)
			due = due[1:]
		}
		r.look(now, waited)
	}
	for range messages {
		for take(false); len(due) == rooms || r.narrow(); take(true) {
			now = due[0]
		}
		now = now.Add(build)
		take(false)
		if last.Before(now) {
			last = now
		}
		r.posted(size, now)
		last = last.Add(time.Duration(float64(size) / rate * 1e9))
		due = append(due, last)
	}
	for len(due) > 0 {
		now = due[0]
		take(true)
	}
	return now
}

// The rate is known after the first message where the link is what is waited for, whatever
// the sizes, and is never found to be less than it is where it is not.
func TestSendRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(1e6, 20e9).Draw(t, "rate")
		size := rapid.IntRange(4<<10, 256<<10).Draw(t, "size")
		build := time.Duration(rapid.IntRange(1, 5000).Draw(t, "build")) * time.Microsecond
		wire := time.Duration(float64(size) / rate * 1e9)
		first := rapid.Bool().Draw(t, "first")
		messages := 100
		if first {
			messages = 2
		}
		var r sendRate
		sending(&r, time.Now(), rate, size, 8, messages, build)
		if r.queued != 0 {
			t.Fatalf("%d bytes are under way at the end", r.queued)
		}
		if r.rate == 0 {
			if wire > build+time.Microsecond {
				t.Fatal("the rate is not known")
			}
			return
		}
		if r.rate < rate*0.95 || r.rate > rate*1.05 {
			t.Fatalf("%.0f bytes a second were found to be %.0f", rate, r.rate)
		}
	})
}

// A link that changes is followed.
func TestSendRateFollows(t *testing.T) {
	var r sendRate
	now := time.Now()
	for _, rate := range []float64{8e6, 1e9, 2e6} {
		now = sending(&r, now, rate, 64<<10, 8, 200, 10*time.Microsecond)
		if r.rate < rate*0.9 || r.rate > rate*1.1 {
			t.Errorf("%.0f bytes a second were found to be %.0f", rate, r.rate)
		}
	}
}
