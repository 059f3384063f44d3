package pagecache

import (
	"math"
	"testing"
	"time"
)

// poolRun lets members send chunks for a time of a clock of its own: want is what
// each would send in bytes per second, demand what its faults take of that time.
func poolRun(t *testing.T, rate uint64, seconds int, want, demand []float64) []float64 {
	t.Helper()
	const step, chunk = time.Millisecond, 64 << 10
	p := NewPool(0)
	var shares []*Share
	for range want {
		shares = append(shares, p.Join())
	}
	now := time.Now()
	p.SetRate(rate, now)
	sent, due, faults := make([]float64, len(want)), make([]float64, len(want)), make([]float64, len(want))
	for range seconds * 1000 {
		now = now.Add(step)
		for i, s := range shares {
			if faults[i] += demand[i] / 1000; faults[i] >= 4096 {
				s.Demand(int64(faults[i]), now)
				faults[i] = 0
			}
			due[i] = min(due[i]+want[i]/1000, max(chunk, want[i]/10)) // what is not sent is not saved up
			for due[i] >= chunk && s.Delay(now) == 0 {
				s.Charge(chunk, now)
				sent[i] += chunk
				due[i] -= chunk
			}
		}
	}
	for i := range sent {
		sent[i] /= float64(seconds)
	}
	return sent
}

// TestPoolIsMaxMinFair compares rates with the max-min fair ones, worked out by hand.
func TestPoolIsMaxMinFair(t *testing.T) {
	const M, all = 1e6, 1e9
	for _, c := range []struct {
		name               string
		want, demand, fair []float64
	}{
		{"one alone has all", []float64{all}, []float64{0}, []float64{100 * M}},
		{"two halves", []float64{all, all}, []float64{0, 0}, []float64{50 * M, 50 * M}},
		{"a modest one leaves the rest", []float64{10 * M, all, all}, []float64{0, 0, 0}, []float64{10 * M, 45 * M, 45 * M}},
		{"two modest ones", []float64{5 * M, 20 * M, all, all}, []float64{0, 0, 0, 0}, []float64{5 * M, 20 * M, 37.5 * M, 37.5 * M}},
		{"an idle one", []float64{0, all}, []float64{0, 0}, []float64{0, 100 * M}},
		{"demand is one's own", []float64{all, all}, []float64{30 * M, 0}, []float64{20 * M, 50 * M}},
		{"demand beyond a part", []float64{all, all}, []float64{80 * M, 0}, []float64{0, 20 * M}},
		{"demand beyond the rate", []float64{all, all}, []float64{150 * M, 0}, []float64{0, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := poolRun(t, 100*M, 20, c.want, c.demand)
			for i := range got {
				// A full bucket of 2 MB at the start is 0.1 MB/s over 20 s.
				if math.Abs(got[i]-c.fair[i]) > 0.5*M+0.02*c.fair[i] {
					t.Errorf("rates %.4g, want %.4g", got, c.fair)
					break
				}
			}
		})
	}
}

func TestPoolChanges(t *testing.T) {
	p := NewPool(0)
	a, b := p.Join(), p.Join()
	now := time.Now()
	a.Charge(1<<40, now)
	if d := a.Delay(now); d != 0 || a.Capped() {
		t.Fatalf("without a limit: delay %v", d)
	}
	p.SetRate(1<<20, now)
	a.Charge(3<<20, now)
	if d := a.Delay(now); d <= 0 || d > poolPause+1 {
		t.Errorf("2 MiB of debt at 1 MiB/s: delay %v", d)
	}
	if d := b.Delay(now); d != 0 {
		t.Errorf("the other one waits %v", d)
	}
	// b is full, so a has the whole rate: 2 MiB take 2 s.
	if d := a.Delay(now.Add(1900 * time.Millisecond)); d <= 0 {
		t.Error("the debt was paid too soon")
	}
	if d := a.Delay(now.Add(2100 * time.Millisecond)); d != 0 {
		t.Errorf("the debt was not paid: %v", d)
	}
	a.Charge(8<<20, now.Add(3*time.Second))
	p.SetRate(0, now.Add(3*time.Second))
	if d := a.Delay(now.Add(3 * time.Second)); d != 0 || p.Rate() != 0 {
		t.Errorf("limit lifted: delay %v", d)
	}
	a.Leave()
	a.Leave()
	b.Leave()
	if len(p.members) != 0 {
		t.Errorf("%d members are left", len(p.members))
	}
	var none *Share
	none.Charge(1, now)
	none.Demand(1, now)
	none.Leave()
	if none.Delay(now) != 0 || none.Capped() {
		t.Error("no share has a limit")
	}
}
