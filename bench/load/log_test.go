package load

import (
	"testing"
	"time"
)

// every returns a log with one good answer per step, but for a gap.
func every(step, length, gapFrom, gapTo time.Duration) *Log {
	l := &Log{Start: time.Now()}
	l.End = l.Start.Add(length)
	for at := step; at < length; at += step {
		s := sample{at: at, latency: step, bytes: 100}
		if at >= gapFrom && at < gapTo {
			s.outcome = Failed
		}
		l.samples = append(l.samples, s)
	}
	return l
}

func TestLongestGap(t *testing.T) {
	const step = 10 * time.Millisecond
	l := every(step, 10*time.Second, 4*time.Second, 5*time.Second)
	// The last good answer is at 3.99 s, the next at 5 s.
	if g := l.LongestGap(l.Start, l.End); g.StartMS != 3990 || g.LengthMS != 1010 {
		t.Errorf("gap %+v, want 1010 ms from 3990", g)
	}
	if g := l.LongestGap(l.Start.Add(6*time.Second), l.End); g.LengthMS != 10 {
		t.Errorf("gap %+v after the cut, want 10 ms", g)
	}
	// The ends count: here nothing is answered but at the very end.
	if g := l.LongestGap(l.Start.Add(4*time.Second), l.Start.Add(5*time.Second)); g.LengthMS != 1000 || g.StartMS != 0 {
		t.Errorf("gap %+v, want the whole second", g)
	}
	if g := (&Log{Start: l.Start}).LongestGap(l.Start, l.End); g.LengthMS != 10000 {
		t.Errorf("gap %+v of an empty log, want all of it", g)
	}
}

func TestBins(t *testing.T) {
	l := every(10*time.Millisecond, time.Second, 300*time.Millisecond, 500*time.Millisecond)
	bins := l.Bins(l.Start, l.End)
	if len(bins) != 10 {
		t.Fatalf("%d bins, want 10", len(bins))
	}
	for i, b := range bins {
		want := Bin{StartMS: float64(i * 100), Count: 10, Bytes: 1000, MaxLatencyUS: 10000}
		switch i {
		case 0:
			want.Count, want.Bytes = 9, 900 // the first answer is at 10 ms
		case 3, 4:
			want.Count, want.Bytes, want.Errors = 0, 0, 10
		}
		if b != want {
			t.Errorf("bin %d is %+v, want %+v", i, b, want)
		}
	}
}

func TestWarmup90(t *testing.T) {
	l := every(10*time.Millisecond, 10*time.Second, 4*time.Second, 4700*time.Millisecond)
	at := l.Start.Add(4 * time.Second)
	got, err := l.Warmup90(at)
	if err != nil || got != 700*time.Millisecond {
		t.Errorf("warm-up %s, %v; want 700ms", got, err)
	}
	if _, err := l.Warmup90(l.Start.Add(time.Second)); err == nil {
		t.Error("a load of one second gave a mean of three")
	}
	if _, err := l.Warmup90(l.End.Add(-100 * time.Millisecond)); err == nil {
		t.Error("one bin after the switch gave a mean of three")
	}
	dead := every(10*time.Millisecond, 10*time.Second, 4*time.Second, 10*time.Second)
	if got, err := dead.Warmup90(at); err == nil {
		t.Errorf("a server that never came back has a warm-up of %s", got)
	}
	if _, err := WarmUp(make([]float64, 30), []float64{1, 1, 1}, BinLength); err == nil {
		t.Error("a server that was dead before has a warm-up")
	}
}
