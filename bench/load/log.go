package load

import (
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// BinLength is the length of a bin of throughput.
const BinLength = 100 * time.Millisecond

// Outcome is how a request ended.
type Outcome uint8

const (
	// Good is a verified answer.
	Good Outcome = iota
	// Failed is no answer: no connection, a broken one, the deadline.
	Failed
	// Refused is an answer with a status other than 200; the guest answers so
	// when it has found a bad page.
	Refused
	// Corrupt is an answer with a wrong checksum.
	Corrupt
	outcomes
)

type sample struct {
	at, latency time.Duration // at counts from Log.Start to the end of the request
	bytes       int32
	outcome     Outcome
}

// Log is what a load has noted. It is immutable.
type Log struct {
	// Start and End are the load's own.
	Start, End time.Time
	// Dropped counts answers that were not noted for want of room.
	Dropped uint64

	samples    []sample // by at
	firstError [outcomes]string
}

func (l *Log) clone() *Log {
	c := *l
	c.samples = slices.Clone(l.samples)
	return &c
}

// span returns the samples from one time up to another, without it.
func (l *Log) span(from, to time.Time) []sample {
	search := func(t time.Time) int {
		at := t.Sub(l.Start)
		return sort.Search(len(l.samples), func(i int) bool { return l.samples[i].at >= at })
	}
	i, j := search(from), search(to)
	return l.samples[i:max(i, j)]
}

// Gap is a time without a good answer.
type Gap struct {
	// StartMS is when it began, in ms after the start of the span.
	StartMS float64 `json:"start_ms"`
	// LengthMS is its length in ms.
	LengthMS float64 `json:"length_ms"`
}

// LongestGap returns the longest time without a good answer between from and
// to; the two ends count as answers, so a server that never answered again is
// a gap up to the end.
func (l *Log) LongestGap(from, to time.Time) Gap {
	var longest, start time.Duration
	last, end := from.Sub(l.Start), to.Sub(l.Start)
	see := func(at time.Duration) {
		if at-last > longest {
			longest, start = at-last, last-from.Sub(l.Start)
		}
		last = at
	}
	for _, s := range l.span(from, to) {
		if s.outcome == Good {
			see(s.at)
		}
	}
	see(end)
	return Gap{StartMS: ms(start), LengthMS: ms(longest)}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Bin is what was answered in one BinLength.
type Bin struct {
	// StartMS is its start, in ms after the start of the span.
	StartMS float64 `json:"start_ms"`
	// Count is the number of good answers, Errors that of all others.
	Count  int `json:"count"`
	Errors int `json:"errors"`
	// Bytes is the length of the good answers' bodies.
	Bytes int64 `json:"bytes"`
	// MaxLatencyUS is the longest latency of an answer, in µs.
	MaxLatencyUS int64 `json:"max_latency_us"`
}

// Bins returns the bins from one time to another; the last may be cut short.
func (l *Log) Bins(from, to time.Time) []Bin {
	n := int((to.Sub(from) + BinLength - 1) / BinLength)
	bins := make([]Bin, max(n, 0))
	for i := range bins {
		bins[i].StartMS = ms(time.Duration(i) * BinLength)
	}
	offset := from.Sub(l.Start)
	for _, s := range l.span(from, to) {
		b := &bins[(s.at-offset)/BinLength]
		if s.outcome == Good {
			b.Count++
			b.Bytes += int64(s.bytes)
		} else {
			b.Errors++
		}
		b.MaxLatencyUS = max(b.MaxLatencyUS, s.latency.Microseconds())
	}
	return bins
}

// Latency sums up the latencies of good answers, in µs.
type Latency struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean"`
	P50   int64   `json:"p50"`
	P90   int64   `json:"p90"`
	P99   int64   `json:"p99"`
	P999  int64   `json:"p999"`
	Max   int64   `json:"max"`
}

// Summary is what a span of the load comes to.
type Summary struct {
	Seconds float64 `json:"seconds"`
	Good    int     `json:"good"`
	Failed  int     `json:"failed"`
	Refused int     `json:"refused"`
	Corrupt int     `json:"corrupt"`
	// Dropped counts answers of the whole load that were not noted.
	Dropped    uint64  `json:"dropped"`
	Bytes      int64   `json:"bytes"`
	PerSecond  float64 `json:"per_second"`
	LatencyUS  Latency `json:"latency_us"`
	LongestGap Gap     `json:"longest_gap"`
	// FirstErrors has the first error of each kind in the whole load.
	FirstErrors []string `json:"first_errors,omitempty"`
}

// Summary sums up the answers between from and to.
func (l *Log) Summary(from, to time.Time) Summary {
	s := Summary{Seconds: to.Sub(from).Seconds(), Dropped: l.Dropped, LongestGap: l.LongestGap(from, to)}
	h := hdrhistogram.New(1, time.Hour.Microseconds(), 3)
	for _, a := range l.span(from, to) {
		switch a.outcome {
		case Good:
			s.Good++
			s.Bytes += int64(a.bytes)
			// An hour is far beyond any deadline, so this cannot fail.
			_ = h.RecordValue(min(max(a.latency.Microseconds(), 1), time.Hour.Microseconds()))
		case Failed:
			s.Failed++
		case Refused:
			s.Refused++
		case Corrupt:
			s.Corrupt++
		}
	}
	if s.Seconds > 0 {
		s.PerSecond = float64(s.Good) / s.Seconds
	}
	if h.TotalCount() > 0 {
		s.LatencyUS = Latency{
			Count: h.TotalCount(), Mean: h.Mean(), P50: h.ValueAtQuantile(50), P90: h.ValueAtQuantile(90),
			P99: h.ValueAtQuantile(99), P999: h.ValueAtQuantile(99.9), Max: h.Max(),
		}
	}
	for _, e := range l.firstError {
		if e != "" {
			s.FirstErrors = append(s.FirstErrors, e)
		}
	}
	return s
}

const (
	warmupBase   = 3 * time.Second
	warmupWindow = 3 // bins
	warmupShare  = 0.9
)

// Warmup90 returns how long after the switch the rate of good answers was back
// at 90 % of its mean over the 3 s before; see WarmUp.
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
	return WarmUp(counts(at.Add(-warmupBase), at), counts(at, l.End), BinLength)
}

// WarmUp returns how long after the switch the first three bins in a row have a
// mean of at least 90 % of the mean before the switch. The counts are of bins
// of the given length that end, and begin, at the switch.
func WarmUp(before, after []float64, bin time.Duration) (time.Duration, error) {
	base := mean(before)
	if base == 0 {
		return 0, fmt.Errorf("compute the warm-up: nothing was counted in the %s before the switch", time.Duration(len(before))*bin)
	}
	for i := 0; i+warmupWindow <= len(after); i++ {
		if mean(after[i:i+warmupWindow]) >= warmupShare*base {
			return time.Duration(i) * bin, nil
		}
	}
	return 0, fmt.Errorf("compute the warm-up: not back at %g of %.1f a bin within %s of the switch",
		warmupShare, base, time.Duration(len(after))*bin)
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(max(len(v), 1))
}
