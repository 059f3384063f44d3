package stream

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/fault"
	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/internal/touch"
)

func TestMain(m *testing.M) {
	touch.Main()
	floor.Main()
	fault.Main()
	goleak.VerifyTestMain(m)
}

func TestRun(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := Run(ctx, Options{MiB: 32, LinkMiB: 32, Repeat: 1})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Loopback) != 1 || len(r.Link) != 1 {
		t.Fatalf("%d and %d passes", len(r.Loopback), len(r.Link))
	}
	if r.Channels != 2 || r.MiB != 32 || r.LinkMiB != 32 {
		t.Errorf("it does not say what it was measured with: %d channels, %d and %d MiB", r.Channels, r.MiB, r.LinkMiB)
	}
	if p := r.Loopback[0]; p.FloorBytesPerSec < 1e6 || p.GuestBytesPerSec < 1e6 || p.WireBytesPerSec < 0.95*p.GuestBytesPerSec {
		t.Errorf("incompressible memory: %+v", p)
	}
	// The link's limit holds for the wire; what is over it is the bucket's burst.
	if p := r.Link[0]; p.WireBytesPerSec > 1.2*LinkBytesPerSec || p.WireBytesPerSec > 0.8*p.GuestBytesPerSec {
		t.Errorf("half-compressible memory over 1 Gbit/s: %+v", p)
	}
	var b strings.Builder
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "1 Gbit/s, half compressible") {
		t.Errorf("summary:\n%s", b.String())
	}
}

// TestInterrupted: what was finished by then is kept.
func TestInterrupted(t *testing.T) {
	for _, tc := range []struct {
		at             string
		loopback, link int
	}{{"pass 1 of 2: 8 MiB over loopback", 0, 0}, {"pass 2 of 2: 8 MiB over loopback", 1, 0}, {"pass 2 of 2: 8 MiB over 1 Gbit", 2, 1}} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		r, err := Run(ctx, Options{MiB: 8, LinkMiB: 8, Repeat: 2, Step: func(s string) {
			if strings.HasPrefix(s, tc.at) {
				cancel()
			}
		}})
		cancel()
		if err == nil || (r == nil) != (tc.loopback == 0) {
			t.Fatalf("interrupted at %q: %+v, %v", tc.at, r, err)
		}
		if r == nil {
			continue
		}
		if len(r.Loopback) != tc.loopback || len(r.Link) != tc.link || len(r.Verdicts()) != min(tc.link, 1)+1 {
			t.Errorf("interrupted at %q: %d and %d passes, %d verdicts", tc.at, len(r.Loopback), len(r.Link), len(r.Verdicts()))
		}
	}
}
