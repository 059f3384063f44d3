package engine

import (
	"math"
	"time"

	"github.com/pagewarp/pagewarp/bench/report"
)

// Fault is the latency of demand faults as an engine tells it. A percentile of 0
// beside a mean is one that the engine does not tell.
type Fault struct {
	report.Latency
	// Source says where the figures come from.
	Source string `json:"source"`
}

// migrateInfo is what we read of QEMU's query-migrate, of either side.
type migrateInfo struct {
	Status string `json:"status"`
	Error  string `json:"error-desc"`
	RAM    struct {
		Transferred uint64 `json:"transferred"`
		Remaining   uint64 `json:"remaining"`
		Passes      uint64 `json:"dirty-sync-count"`
		DirtyRate   uint64 `json:"dirty-pages-rate"` // pages/s
		Requests    uint64 `json:"postcopy-requests"`
	} `json:"ram"`
	Throttle int `json:"cpu-throttle-percentage"`
	// Of the destination, with the capability postcopy-blocktime: the time that
	// each vCPU was blocked, in ms; and from QEMU 10.1 on the mean of a fault in
	// ns, and the counts of faults of [2^i, 2^(i+1)) µs.
	Blocktime []uint64 `json:"postcopy-vcpu-blocktime"`
	Latency   uint64   `json:"postcopy-latency"`
	Dist      []uint64 `json:"postcopy-latency-dist"`
}

// faults returns what QEMU's two sides tell of its postcopy; nil if nothing.
func faults(src, dst migrateInfo) *Fault {
	if l := fromPowers(dst.Dist); l.Count > 0 {
		if dst.Latency > 0 {
			l.Mean = float64(dst.Latency) / 1e3
		}
		return &Fault{Latency: l, Source: "QEMU's postcopy-latency-dist: percentiles are interpolated in bins of powers of two, the maximum is the end of the last"}
	}
	var blocked time.Duration
	for _, ms := range dst.Blocktime {
		blocked += time.Duration(ms) * time.Millisecond
	}
	if blocked == 0 || src.RAM.Requests == 0 {
		return nil
	}
	mean := float64(blocked.Microseconds()) / float64(src.RAM.Requests)
	return &Fault{Latency: report.Latency{Mean: mean, Count: int64(src.RAM.Requests)},
		Source: "the time that QEMU's vCPUs were blocked, by the requests; this version has no histogram"}
}

// fromPowers sums up the counts of latencies in [2^i, 2^(i+1)) µs. Within a bin
// the latencies are taken to be spread evenly.
func fromPowers(counts []uint64) (l report.Latency) {
	var n uint64
	for i, c := range counts {
		n += c
		if c > 0 {
			l.Max = math.Ldexp(1, i+1)
			l.Mean += 1.5 * math.Ldexp(float64(c), i)
		}
	}
	if n == 0 {
		return report.Latency{}
	}
	l.Count = int64(n)
	l.Mean /= float64(n)
	at := func(q float64) float64 {
		rank, below := q*float64(n), 0.0
		for i, c := range counts {
			if below+float64(c) >= rank && c > 0 {
				return math.Ldexp(1+(rank-below)/float64(c), i)
			}
			below += float64(c)
		}
		return l.Max
	}
	l.P50, l.P90, l.P99, l.P999 = at(0.5), at(0.9), at(0.99), at(0.999)
	return l
}
