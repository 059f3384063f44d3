package micro

import (
	"context"
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/bench/report"
)

// Common are the options that all benchmarks of the package have.
type Common struct {
	Repeat int           // passes; 0 means 5
	Slice  time.Duration // least time measured for a figure and pass; 0: the benchmark's own
	Step   func(string)  // told what comes next; may be nil
}

func (c *Common) defaults(slice time.Duration) {
	if c.Repeat == 0 {
		c.Repeat = 5
	}
	if c.Slice == 0 {
		c.Slice = slice
	}
	if c.Step == nil {
		c.Step = func(string) {}
	}
}

// passes calls pass Repeat times.
func (c *Common) passes(ctx context.Context, pass func() error) error {
	for i := range c.Repeat {
		c.Step(fmt.Sprintf("pass %d of %d", i+1, c.Repeat))
		if err := pass(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// perCall calls f until least has passed, and returns nanoseconds a call. f
// should take microseconds at least, so that the clock does not count.
func perCall(least time.Duration, f func() error) (float64, error) {
	start := time.Now()
	for n := 1; ; n++ {
		if err := f(); err != nil {
			return 0, err
		}
		if d := time.Since(start); d >= least {
			return float64(d.Nanoseconds()) / float64(n), nil
		}
	}
}

// figure collects one value a pass.
type figure []float64

func (f *figure) add(v float64) { *f = append(*f, v) }

func (f figure) spread() report.Spread { return report.SpreadOf(f) }
