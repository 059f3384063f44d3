package floor

import (
	"context"

	"github.com/pagewarp/pagewarp/bench/report"
)

// Options sizes one pass over all floors. The zero value takes about two
// seconds.
type Options struct {
	// Count is how many faults and round trips; 0 means 3000.
	Count int
	// StreamBytes is the length of the stream; 0 means 256 MiB.
	StreamBytes int64
	// CPUs says where the two ends run.
	CPUs CPUs
	// Pair makes the connections; nil means Loopback.
	Pair Pair
	// Step, if not nil, is called before each floor with its name.
	Step func(name string)
}

func (o *Options) fill() {
	if o.Count == 0 {
		o.Count = 3000
	}
	if o.StreamBytes == 0 {
		o.StreamBytes = 256 << 20
	}
	if o.Pair == nil {
		o.Pair = Loopback
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
}

// Result is one pass; latencies are in microseconds.
type Result struct {
	LocalFault   report.Latency `json:"local_fault_us"`
	RoundTrip    report.Latency `json:"rtt_us"`
	RoundTripTLS report.Latency `json:"rtt_tls_us"`
	// Stream and StreamTLS are bytes per second.
	Stream    float64 `json:"stream_bytes_per_s"`
	StreamTLS float64 `json:"stream_tls_bytes_per_s"`
	// Continue and Copy are per page, alone and in batches of 2 MiB.
	Continue      report.Latency `json:"continue_us"`
	ContinueBatch report.Latency `json:"continue_batch_us"`
	Copy          report.Latency `json:"copy_us"`
	CopyBatch     report.Latency `json:"copy_batch_us"`
}

// Run takes all floors once.
func Run(ctx context.Context, o Options) (r Result, err error) {
	o.fill()
	o.Step("local fault")
	ds, err := LocalFault(ctx, o.CPUs, o.Count)
	if err != nil {
		return r, err
	}
	r.LocalFault = report.Summarize(ds)
	for _, withTLS := range []bool{false, true} {
		to, stream, name := &r.RoundTrip, &r.Stream, ""
		if withTLS {
			to, stream, name = &r.RoundTripTLS, &r.StreamTLS, " over TLS"
		}
		o.Step("round trip" + name)
		if ds, err = RoundTrip(ctx, o.CPUs, o.Pair, o.Count, withTLS); err != nil {
			return r, err
		}
		*to = report.Summarize(ds)
		o.Step("stream" + name)
		if *stream, err = Stream(ctx, o.CPUs, o.Pair, o.StreamBytes, withTLS); err != nil {
			return r, err
		}
	}
	o.Step("page installs")
	c, err := Installs(ctx, o.Count)
	if err != nil {
		return r, err
	}
	r.Continue, r.ContinueBatch = report.Summarize(c.Continue), report.Summarize(c.ContinueBatch)
	r.Copy, r.CopyBatch = report.Summarize(c.Copy), report.Summarize(c.CopyBatch)
	return r, nil
}

// Report returns the figures that report.json has.
func (r Result) Report() report.Floors {
	return report.Floors{LocalFaultUS: r.LocalFault.P50, RTTUS: r.RoundTrip.P50, StreamBytesPerSec: r.Stream}
}
