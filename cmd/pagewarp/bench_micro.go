package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/bench/micro"
	benchreport "github.com/pagewarp/pagewarp/bench/report"
)

// microRepeat is the number of passes of the micro-benchmarks; their slices are
// chosen so that so many take less than half a minute.
const microRepeat = 5

// microBench makes one command of a benchmark in this process.
func microBench[R interface{ Text(io.Writer) error }](use, short, long string, run func(context.Context, micro.Common) (R, error)) *cobra.Command {
	var f benchFlags
	c := benchmark(use, short, &f, func(ctx context.Context, step func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
		if err := f.check(); err != nil {
			return nil, nil, nil, err
		}
		r, err := run(ctx, micro.Common{Repeat: f.repeat, Step: step})
		if err != nil {
			return nil, nil, nil, err
		}
		return r, nil, r.Text, nil
	})
	c.Long = long
	f.repeatFlag(c, microRepeat)
	return c
}

func newBenchQueue() *cobra.Command {
	return microBench("queue", "The queue of faults, against a Go channel",
		`Push items into the lock-free queue of faults from 1 to 64 goroutines, one by one
and in batches of 64, to one that takes them out; and the same through a Go channel
of the same capacity, in turn. How many push at the same moment is bounded by the
number of CPUs.`,
		func(ctx context.Context, c micro.Common) (micro.QueueResult, error) {
			return micro.Queue(ctx, micro.QueueOptions{Common: c})
		})
}

func newBenchCodec() *cobra.Command {
	return microBench("codec", "The codecs, against a copy and a CRC",
		`Encode and decode answers of 4 KiB to 2 MiB with none, s2 and zstd, with the CRC
that goes with them: of noise, of pages of which 0.5 and 0.9 are zero, and of text.
Rates are of guest memory, ratios are bytes on the wire for one of guest memory.
Then: what the look at a sample costs where nothing can be compressed.`,
		func(ctx context.Context, c micro.Common) (micro.CodecResult, error) {
			return micro.Codec(ctx, micro.CodecOptions{Common: c})
		})
}

func newBenchPlanner() *cobra.Command {
	return microBench("planner", "A decision of precache, against the scan alone",
		`Ask precache's planner for runs of pages and report them done, on regions of
1 GiB, 64 GiB and a sparse 1 TiB, with three lists of policies; and what finding the
next absent pages costs alone. The pages arrive outside the clock.`,
		func(ctx context.Context, c micro.Common) (micro.PlannerResult, error) {
			return micro.Planner(ctx, micro.PlannerOptions{Common: c})
		})
}
