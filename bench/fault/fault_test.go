package fault

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/internal/touch"
)

func TestMain(m *testing.M) {
	touch.Main()
	floor.Main()
	Main()
	goleak.VerifyTestMain(m)
}

// A small measurement: all parts are real, only the numbers are few.
func TestRun(t *testing.T) {
	for _, withTLS := range []bool{false, true} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		r, err := Run(ctx, RunOptions{Count: 200, Repeat: 1, PrecacheMiB: 192, Every: 200 * time.Microsecond, TLS: withTLS})
		if err != nil {
			t.Fatal(err)
		}
		for name, p := range map[string]Pass{"idle": r.Idle[0], "precache": r.Precache[0]} {
			// No fault through the engine is faster than the round trip in it.
			if p.Fault.P50 < p.RoundTrip.P50/4 || p.Fault.Count < 100 || p.Floor() <= 0 {
				t.Errorf("TLS %v, %s: %+v", withTLS, name, p)
			}
			for _, stage := range []string{"queue", "wire", "decode", "install", "serve"} {
				if p.Stages[stage].Count == 0 {
					t.Errorf("TLS %v, %s: stage %s has no samples", withTLS, name, stage)
				}
			}
		}
		var b strings.Builder
		if err := r.Text(&b); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), "demand fault p50, link idle") {
			t.Errorf("summary:\n%s", b.String())
		}
	}
}
