package resp

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/pagewarp/pagewarp/bench/load"
	"github.com/pagewarp/pagewarp/bench/report"
)

// BinLength is the length of a bin of operations.
const BinLength = load.BinLength

type outcome uint8

const (
	good outcome = iota
	failed
	wrong
)

type sample struct {
	at, took time.Duration // at counts from Log.Start to the end of the operation
	outcome  outcome
}

// Log is what a load has noted. It is immutable.
type Log struct {
	// Start and End are the load's own.
	Start, End time.Time
	// Dropped counts operations that were not noted for want of room.
	Dropped uint64

	samples     []sample // by at
	firstFailed string
	firstWrong  string
}

func (l *Log) clone() *Log {
	c := *l
	c.samples = slices.Clone(l.samples)
	return &c
}

func (r *Run) note(begin time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now() // under mu, so that the log is in order
	l := &r.log
	s := sample{at: now.Sub(l.Start), took: now.Sub(begin)}
	var w *wrongError
	switch {
	case errors.As(err, &w):
		s.outcome = wrong
		if l.firstWrong == "" {
			l.firstWrong = err.Error()
		}
	case err != nil:
		s.outcome = failed
		if l.firstFailed == "" {
			l.firstFailed = err.Error()
		}
	}
	if len(l.samples) == r.cfg.MaxSamples {
		l.Dropped++
		return
	}
	l.samples = append(l.samples, s)
}

func (l *Log) span(from, to time.Time) []sample {
	search := func(t time.Time) int {
		at := t.Sub(l.Start)
		return sort.Search(len(l.samples), func(i int) bool { return l.samples[i].at >= at })
	}
	i, j := search(from), search(to)
	return l.samples[i:max(i, j)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Bins returns the bins from one time to another; the last may be cut short.
// Bytes are not counted.
func (l *Log) Bins(from, to time.Time) []load.Bin {
	bins := make([]load.Bin, max(int((to.Sub(from)+BinLength-1)/BinLength), 0))
	for i := range bins {
		bins[i].StartMS = ms(time.Duration(i) * BinLength)
	}
	offset := from.Sub(l.Start)
	for _, s := range l.span(from, to) {
		b := &bins[(s.at-offset)/BinLength]
		if s.outcome == good {
			b.Count++
		} else {
			b.Errors++
		}
		b.MaxLatencyUS = max(b.MaxLatencyUS, s.took.Microseconds())
	}
	return bins
}

// Summary is what a span of the load comes to.
type Summary struct {
	Seconds   float64 `json:"seconds"`
	Good      int     `json:"good"`
	Failed    int     `json:"failed"` // no answer, or an error
	Wrong     int     `json:"wrong"`  // an answer that was not what it must be
	Dropped   uint64  `json:"dropped"`
	PerSecond float64 `json:"per_second"`
	// LatencyUS is of good answers, in µs.
	LatencyUS  report.Latency `json:"latency_us"`
	LongestGap load.Gap       `json:"longest_gap"`
	// FirstErrors has the first error of each kind in the whole load.
	FirstErrors []string `json:"first_errors,omitempty"`
}

// Summary sums up the operations between from and to; the two ends count as
// answers for the longest gap.
func (l *Log) Summary(from, to time.Time) Summary {
	s := Summary{Seconds: to.Sub(from).Seconds(), Dropped: l.Dropped}
	var all []time.Duration
	base := from.Sub(l.Start)
	last := base
	see := func(at time.Duration) {
		if ms(at-last) > s.LongestGap.LengthMS {
			s.LongestGap = load.Gap{StartMS: ms(last - base), LengthMS: ms(at - last)}
		}
		last = at
	}
	for _, x := range l.span(from, to) {
		switch x.outcome {
		case good:
			all = append(all, x.took)
			see(x.at)
		case failed:
			s.Failed++
		case wrong:
			s.Wrong++
		}
	}
	see(to.Sub(l.Start))
	s.Good = len(all)
	s.LatencyUS = report.Summarize(all)
	if s.Seconds > 0 {
		s.PerSecond = float64(s.Good) / s.Seconds
	}
	for _, e := range []string{l.firstFailed, l.firstWrong} {
		if e != "" {
			s.FirstErrors = append(s.FirstErrors, e)
		}
	}
	return s
}

const warmupBase = 3 * time.Second

// Warmup90 returns how long after the switch the rate of good answers was back
// at 90 % of its mean over the 3 s before; see load.WarmUp.
func (l *Log) Warmup90(at time.Time) (time.Duration, error) {
	if at.Add(-warmupBase).Before(l.Start) {
		return 0, fmt.Errorf("compute the warm-up: the load ran for %s before the switch, want %s", at.Sub(l.Start), warmupBase)
	}
	counts := func(from, to time.Time) []float64 {
		bins := l.Bins(from, to)
		c := make([]float64, len(bins))
		for i, b := range bins {
			c[i] = float64(b.Count)
		}
		return c
	}
	return load.WarmUp(counts(at.Add(-warmupBase), at), counts(at, l.End), BinLength)
}
