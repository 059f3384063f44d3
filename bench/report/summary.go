package report

import (
	"maps"
	"math"
	"slices"
	"time"
)

// Latency summarises a distribution; all but Count in microseconds.
type Latency struct {
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`
	Count int64   `json:"count"`
}

// Summarize returns the exact percentiles of samples, in microseconds; it
// sorts samples. The p-quantile is the smallest sample that at least p of all
// samples do not exceed (nearest rank).
func Summarize(samples []time.Duration) Latency {
	if len(samples) == 0 {
		return Latency{}
	}
	slices.Sort(samples)
	var sum time.Duration
	for _, s := range samples {
		sum += s
	}
	at := func(p float64) float64 {
		i := int(math.Ceil(p*float64(len(samples)))) - 1
		return us(samples[min(max(i, 0), len(samples)-1)])
	}
	return Latency{
		Mean: us(sum) / float64(len(samples)), P50: at(0.5), P90: at(0.9), P99: at(0.99), P999: at(0.999),
		Max: us(samples[len(samples)-1]), Count: int64(len(samples)),
	}
}

func us(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// Spread is the median and the range of repeated measurements.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
}

// SpreadOf returns the spread of values; it does not change them.
func SpreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	v := slices.Sorted(slices.Values(values))
	m := v[len(v)/2]
	if len(v)%2 == 0 {
		m = (v[len(v)/2-1] + m) / 2
	}
	return Spread{Median: m, Min: v[0], Max: v[len(v)-1], N: len(v)}
}

// Measured is vs without those of which an interrupted benchmark has no pass.
func Measured(vs []Verdict) []Verdict {
	return slices.DeleteFunc(vs, func(v Verdict) bool { return v.Value.N == 0 })
}

// Verdict compares a measured figure with a promised one.
type Verdict struct {
	Name     string  `json:"name"`
	Value    Spread  `json:"value"`
	Promised float64 `json:"promised"`
	// AtLeast: the promise is a lower bound; otherwise an upper one.
	AtLeast bool   `json:"at_least,omitempty"`
	Unit    string `json:"unit"` // "x" for a ratio
	// Info: there is no promise; the figure is shown for information.
	Info bool `json:"info,omitempty"`
}

// Met reports whether the median keeps the promise.
func (v Verdict) Met() bool {
	switch {
	case v.Info:
		return true
	case v.Value.N == 0:
		return false
	case v.AtLeast:
		return v.Value.Median >= v.Promised
	}
	return v.Value.Median <= v.Promised
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
