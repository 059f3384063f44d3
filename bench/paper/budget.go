package paper

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Within is how long a run takes at most by default, and a quick one.
const (
	Within      = 40 * time.Minute
	WithinQuick = 10 * time.Minute
)

// errTimeOver ends an experiment whose share of the time is used up.
var errTimeOver = errors.New("the time of this experiment is over")

// step makes one or two experiments from one measurement.
type step struct {
	names []string
	// weight is its share of the time.
	weight int
	// make measures; it may tell what it has so far.
	make func(ctx context.Context, soFar func([]Part)) ([]Part, error)
}

// shares returns when each step must be over: what one does not use is the next
// one's.
func shares(steps []step, from time.Time, within time.Duration) []time.Time {
	total, until := 0, 0
	for _, s := range steps {
		total += s.weight
	}
	ends := make([]time.Time, len(steps))
	for i, s := range steps {
		until += s.weight
		ends[i] = from.Add(within * time.Duration(until) / time.Duration(total))
	}
	return ends
}

// limited returns a context that ends with errTimeOver at a time.
func limited(ctx context.Context, end time.Time) (context.Context, context.CancelFunc) {
	return context.WithDeadlineCause(ctx, end, fmt.Errorf("%w: it had until %s", errTimeOver, end.Format(time.TimeOnly)))
}
