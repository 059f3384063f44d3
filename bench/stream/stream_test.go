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
