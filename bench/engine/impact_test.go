package engine

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/bench/load"
	"github.com/pagewarp/pagewarp/internal/guestapi"
)

const tenth = 100 * time.Millisecond

// rates makes bins of 100 ms from a start on, of operations per bin.
func rates(from time.Duration, ns ...float64) (bins []bin) {
	for i, n := range ns {
		begin := from + time.Duration(i)*tenth
		bins = append(bins, bin{begin, begin + tenth, n})
	}
	return bins
}

func repeat(n int, v float64) []float64 {
	vs := make([]float64, n)
	for i := range vs {
		vs[i] = v
	}
	return vs
}

func TestAssess(t *testing.T) {
	// 100 a bin; from the command on a precopy slows the guest to 80 for 1 s,
	// then it stops for 0.2 s, crawls for 0.3 s and is back.
	ns := repeat(30, 100)
	ns = append(ns, repeat(10, 80)...)
	ns = append(ns, 0, 0, 0.5, 50, 50)
	ns = append(ns, repeat(20, 100)...)
	at := moments{stopped: time.Second, resumed: 1200 * time.Millisecond, completed: 1200 * time.Millisecond}
	im, err := assess(rates(-3*time.Second, ns...), at, at.resumed)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(im.perSecond-1000) > 1e-9 {
		t.Errorf("rate before %g, want 1000", im.perSecond)
	}
	if im.warm == nil || *im.warm != 500*time.Millisecond {
		t.Errorf("warm after %v, want 500 ms from the stop", im.warm)
	}
	if want := 10*20 + 100 + 100 + 99.5 + 50 + 50.0; math.Abs(im.lost-want) > 1e-6 {
		t.Errorf("lost %g, want %g", im.lost, want)
	}
	if im.worst != 300*time.Millisecond { // the bin of 0.5 is a standstill as well
		t.Errorf("worst gap %v, want 300 ms", im.worst)
	}
	if want := 2500 * time.Millisecond; im.after != want {
		t.Errorf("observed %v, want %v", im.after, want)
	}
}

func TestAssessNeverWarm(t *testing.T) {
	ns := append(repeat(30, 100), repeat(20, 50)...)
	at := moments{tenth, 2 * tenth, time.Second}
	im, err := assess(rates(-3*time.Second, ns...), at, at.stopped)
	if err != nil {
		t.Fatal(err)
	}
	if im.warm != nil {
		t.Errorf("half the throughput is warm after %v", *im.warm)
	}
	if math.Abs(im.lost-20*50) > 1e-6 {
		t.Errorf("lost %g, want all that was missing: 1000", im.lost)
	}
	if im.worst != tenth {
		t.Errorf("worst gap %v, want the downtime", im.worst)
	}
}

func TestAssessTooLittle(t *testing.T) {
	at := moments{tenth, 2 * tenth, tenth}
	for name, c := range map[string]struct {
		bins []bin
		want string
	}{
		"nothing before":   {rates(0, repeat(20, 100)...), "before the command"},
		"an idle guest":    {rates(-3*time.Second, repeat(60, 0)...), "before the command"},
		"nothing after":    {rates(-3*time.Second, repeat(31, 100)...), "after the switch-over"},
		"nothing whatever": {nil, "before the command"},
	} {
		if _, err := assess(c.bins, at, at.resumed); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// The guest's clock stands still while it is down, so its bins are moved, and
// the one in which it stopped is divided.
func TestGuestBins(t *testing.T) {
	zero := time.Unix(1000, 0)
	command := zero.Add(10 * time.Second)
	at := moments{stopped: 40 * time.Millisecond, resumed: 240 * time.Millisecond, completed: time.Second}
	counts := []guestapi.TouchBin{{TNS: 9.9e9, N: 7}, {TNS: 10e9, N: 100}, {TNS: 10.1e9, N: 50}, {TNS: 10.2e9, N: 80}}
	got := guestBins(counts, zero, command, at)
	want := []bin{
		{-100 * time.Millisecond, 0, 100},
		{0, 40 * time.Millisecond, 20},
		{40 * time.Millisecond, 240 * time.Millisecond, 0},
		{240 * time.Millisecond, 300 * time.Millisecond, 30},
		{300 * time.Millisecond, 400 * time.Millisecond, 80},
	}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range got {
		if got[i].from != want[i].from || got[i].to != want[i].to || math.Abs(got[i].n-want[i].n) > 1e-6 {
			t.Errorf("bin %d is %v, want %v", i, got[i], want[i])
		}
	}
	if all := guestBins(counts, zero, command, never); len(all) != 3 || all[2].to != 200*time.Millisecond {
		t.Errorf("without a switch-over: %v", all)
	}
}

// One of a client's bins begins at the stop.
func TestSpan(t *testing.T) {
	start := time.Unix(1000, 0)
	command := start.Add(5 * time.Second)
	end := command.Add(3 * time.Second)
	at := moments{stopped: 130 * time.Millisecond}
	from, n := span(start, end, command, at)
	if d := command.Add(at.stopped).Sub(from); d%load.BinLength != 0 || from.Before(start) || from.Sub(start) >= load.BinLength {
		t.Errorf("bins from %v after the start, %v before the stop", from.Sub(start), d)
	}
	if left := end.Sub(from.Add(time.Duration(n) * load.BinLength)); left < 0 || left >= load.BinLength {
		t.Errorf("%d bins leave %v", n, left)
	}
	if from, n := span(start, end, command, never); !from.Equal(start) || n != 80 {
		t.Errorf("without a switch-over: %d bins from %v", n, from)
	}
	bins := clientBins(from, command, 3, func(i int) int { return i })
	if bins[0].from != from.Sub(command) || bins[2].n != 2 || bins[1].to != bins[2].from {
		t.Errorf("bins %v", bins)
	}
}

func TestFaults(t *testing.T) {
	var src, dst migrateInfo
	if f := faults(src, dst); f != nil {
		t.Errorf("of nothing: %+v", f)
	}
	src.RAM.Requests, dst.Blocktime = 40, []uint64{100, 20}
	if f := faults(src, dst); f == nil || f.Mean != 3000 || f.Count != 40 || f.P50 != 0 {
		t.Errorf("of the blocked time: %+v, want a mean of 3000 µs of 40", f)
	}
	// 90 faults of 128 to 256 µs, 10 of 1024 to 2048.
	dst.Dist = make([]uint64, 20)
	dst.Dist[7], dst.Dist[10] = 90, 10
	dst.Latency = 400_000
	f := faults(src, dst)
	if f == nil || f.Count != 100 || f.Mean != 400 || f.Max != 2048 {
		t.Fatalf("of the histogram: %+v", f)
	}
	if math.Abs(f.P50-128*(1+50.0/90)) > 1e-9 || math.Abs(f.P90-256) > 1e-9 || math.Abs(f.P99-1024*1.9) > 1e-9 {
		t.Errorf("percentiles %+v", f.Latency)
	}
	dst.Latency = 0
	if f := faults(src, dst); math.Abs(f.Mean-(90*192+10*1536)/100.0) > 1e-9 {
		t.Errorf("mean of the bins %g", f.Mean)
	}
}

// deaf is a guest that did not survive its relocation.
type deaf struct{}

func (deaf) finish(ctx context.Context, _ time.Time, _ moments) (observation, error) {
	<-ctx.Done()
	return observation{}, ctx.Err()
}

func TestGuestThatDoesNotAnswer(t *testing.T) {
	c := &contest{Options: Options{AnswerLimit: 10 * time.Millisecond}}
	now := time.Now()
	err := c.evaluate(t.Context(), deaf{}, Moved{Started: now, Stopped: now, Resumed: now, Completed: now})
	if err == nil || !strings.Contains(err.Error(), "did not answer within 10ms after it had moved") {
		t.Errorf("%v", err)
	}
}
