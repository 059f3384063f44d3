package fault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/internal/sysmem"
)

// roomFor refuses a measurement whose two ends take so many bytes of memory if this
// machine has not as much to give: else the kernel would end something, and maybe not
// the benchmark.
func roomFor(bytes uint64) error {
	free, err := sysmem.Available()
	if err != nil {
		return err
	}
	if bytes > uint64(max(free, 0)) {
		return fmt.Errorf("the memory at both ends takes %s, and this machine has %s to give: lower the count of faults (--count), or end what takes its memory", humanize.IBytes(bytes), humanize.IBytes(uint64(max(free, 0))))
	}
	return nil
}

// A pass takes seconds. passLimit is for what it takes beside its bytes, slowest what
// they come at on a busy machine, over loopback.
const (
	passLimit = 5 * time.Minute
	slowest   = 20 << 20 // bytes/s
)

// Bounded is a context for one pass in which so many bytes come over a link that
// carries link bytes/s, 0 for loopback: a page that never comes is an error then,
// and no wait for ever.
func Bounded(ctx context.Context, bytes, link uint64) (context.Context, context.CancelFunc) {
	return bounded(ctx, passLimit, bytes, link)
}

func bounded(ctx context.Context, limit time.Duration, bytes, link uint64) (context.Context, context.CancelFunc) {
	rate := uint64(slowest)
	if link > 0 {
		rate = max(1, min(rate, link/4))
	}
	limit += time.Duration(float64(bytes) / float64(rate) * float64(time.Second))
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("the pass was not done within %v: a page may never have come", limit.Round(time.Second)))
}

// Because adds to an error why the context of a pass has ended, if it has: what was
// ended with it says only that it was.
func Because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}
