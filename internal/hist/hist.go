package hist

import (
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	lowest  = 100              // ns; shorter values count as this
	highest = int64(1000e9)    // ns; longer values count as this
	digits  = 2                // significant figures
	perUS   = 1 / float64(1e3) // ns to µs
)

func newHDR() *hdrhistogram.Histogram { return hdrhistogram.New(lowest, highest, digits) }

// Histogram is a distribution of durations, the sum of its recorders.
type Histogram struct {
	mu   sync.Mutex
	recs []*Recorder // guarded by mu
}

// Recorder is one thread's share of a histogram. It is safe for concurrent use,
// but meant for one writer: the lock is then never contended except by a
// reader's snapshot.
type Recorder struct {
	mu sync.Mutex
	h  *hdrhistogram.Histogram // guarded by mu
	_  [64]byte
}

// Recorder adds a recorder. It allocates (about 30 KiB); call it when a thread
// starts, not on a fault.
func (h *Histogram) Recorder() *Recorder {
	r := &Recorder{h: newHDR()}
	h.mu.Lock()
	h.recs = append(h.recs, r)
	h.mu.Unlock()
	return r
}

// Retire removes a recorder that will not be used any more and keeps its values,
// so that threads that come and go do not add up.
func (h *Histogram) Retire(r *Recorder) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.Index(h.recs, r)
	if i <= 0 {
		return // the first recorder is where the others end
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	h.recs[0].mu.Lock()
	defer h.recs[0].mu.Unlock()
	h.recs[0].h.Merge(r.h)
	h.recs = slices.Delete(h.recs, i, i+1)
}

// Record adds one value. It does not allocate. A negative duration counts as
// the shortest, one over 1000 s as 1000 s.
func (r *Recorder) Record(d time.Duration) {
	v := min(max(int64(d), lowest), highest)
	r.mu.Lock()
	_ = r.h.RecordValue(v) // v is within the trackable range
	r.mu.Unlock()
}

// Snapshot merges the recorders into a copy.
func (h *Histogram) Snapshot() Snapshot {
	out := newHDR()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.recs {
		r.mu.Lock()
		out.Merge(r.h)
		r.mu.Unlock()
	}
	return Snapshot{out}
}

// Reset forgets all values.
func (h *Histogram) Reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.recs {
		r.mu.Lock()
		r.h.Reset()
		r.mu.Unlock()
	}
}

// Snapshot is a distribution at one moment. The zero value is empty.
type Snapshot struct{ h *hdrhistogram.Histogram }

// Count returns the number of values.
func (s Snapshot) Count() int64 {
	if s.h == nil {
		return 0
	}
	return s.h.TotalCount()
}

// Quantile returns the value below which the share q (0 to 1) of the values
// lies, and 0 of an empty distribution.
func (s Snapshot) Quantile(q float64) time.Duration {
	if s.Count() == 0 {
		return 0
	}
	return time.Duration(s.h.ValueAtQuantile(q * 100))
}

// Mean returns the arithmetic mean, 0 of an empty distribution.
func (s Snapshot) Mean() time.Duration {
	if s.Count() == 0 {
		return 0
	}
	return time.Duration(s.h.Mean())
}

// Max returns the largest value, 0 of an empty distribution.
func (s Snapshot) Max() time.Duration {
	if s.Count() == 0 {
		return 0
	}
	return time.Duration(s.h.Max())
}

// Merge returns the sum of two distributions.
func (s Snapshot) Merge(o Snapshot) Snapshot {
	out := newHDR()
	if s.h != nil {
		out.Merge(s.h)
	}
	if o.h != nil {
		out.Merge(o.h)
	}
	return Snapshot{out}
}

// Cumulative returns, for each ascending bound, how many values are at most
// that long: the shape of a Prometheus histogram.
func (s Snapshot) Cumulative(bounds []time.Duration) []uint64 {
	out := make([]uint64, len(bounds))
	if s.Count() == 0 {
		return out
	}
	for _, bar := range s.h.Distribution() {
		for i, b := range bounds {
			if bar.From <= int64(b) { // a bucket's values are equal within 1 %
				out[i] += uint64(bar.Count)
			}
		}
	}
	return out
}

// Summary is what reports print, in microseconds.
type Summary struct {
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`
	Count int64   `json:"count"`
}

// Summary returns the quantiles of a report, in microseconds.
func (s Snapshot) Summary() Summary {
	us := func(d time.Duration) float64 { return float64(d) * perUS }
	return Summary{
		Mean: us(s.Mean()), P50: us(s.Quantile(.50)), P90: us(s.Quantile(.90)), P99: us(s.Quantile(.99)),
		P999: us(s.Quantile(.999)), Max: us(s.Max()), Count: s.Count(),
	}
}
