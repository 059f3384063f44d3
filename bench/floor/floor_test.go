package floor

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/touch"
)

func TestMain(m *testing.M) {
	touch.Main()
	Main()
	goleak.VerifyTestMain(m)
}

func TestRun(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var steps []string
	cpus, err := PickCPUs()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(ctx, Options{CPUs: cpus, Count: 300, StreamBytes: 16 << 20, Step: func(s string) { steps = append(steps, s) }})
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]report.Latency{
		"local fault": r.LocalFault, "round trip": r.RoundTrip, "round trip over TLS": r.RoundTripTLS,
		"continue": r.Continue, "copy": r.Copy,
	} {
		// A fault, a system call or a round trip takes more than 50 ns anywhere.
		if l.Count != 300 || l.P50 < 0.05 || l.P50 > l.P99 || l.P99 > l.Max {
			t.Errorf("%s: %+v", name, l)
		}
	}
	if r.ContinueBatch.P50 <= 0 || r.ContinueBatch.P50 >= r.Continue.P99 || r.CopyBatch.P50 <= 0 {
		t.Errorf("batches: continue %+v, alone %+v, copy %+v", r.ContinueBatch, r.Continue, r.CopyBatch)
	}
	if r.Stream < 1e6 || r.StreamTLS < 1e6 {
		t.Errorf("streams of %g and %g bytes/s", r.Stream, r.StreamTLS)
	}
	if got := r.Report(); got.LocalFaultUS != r.LocalFault.P50 || got.RTTUS == 0 || got.StreamBytesPerSec == 0 {
		t.Errorf("report's floors %+v", got)
	}
	if len(steps) != 6 {
		t.Errorf("steps announced: %q", steps)
	}
}

// What has been started ends with the context, whatever it waits for.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	_, err := RoundTrip(ctx, CPUs{}, func(ctx context.Context) (*os.File, *os.File, error) {
		l, d, err := Loopback(ctx)
		time.AfterFunc(200*time.Millisecond, cancel)
		return l, d, err
	}, 1<<30/100, false)
	if err == nil {
		t.Error("ten million round trips were done before the context's end")
	}
	if _, err := Stream(context.Background(), CPUs{}, Loopback, 1000, false); err == nil || !strings.Contains(err.Error(), "1 MiB") {
		t.Errorf("stream of 1000 bytes: %v", err)
	}
}

func TestServerSeesTheEnd(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.WriteString(w, "short"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := readFull(int(r.Fd()), make([]byte, 8)); !errors.Is(err, errEnd) {
		t.Errorf("read past the end: %v", err)
	}
}

func TestPinnedThreadIsUnpinned(t *testing.T) {
	cpus, err := PickCPUs()
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, within, after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	err = cpus.AtSource(func() error { return unix.SchedGetaffinity(0, &within) })
	if err != nil {
		t.Fatal(err)
	}
	if cpus.Pinned && (within.Count() != 1 || !within.IsSet(cpus.Source)) {
		t.Errorf("pinned to %v, want CPU %d", within, cpus.Source)
	}
	if err := unix.SchedGetaffinity(0, &after); err != nil || after != before {
		t.Errorf("affinity is %v after, was %v before (%v)", after, before, err)
	}
}

// A long round trip is no short one.
func TestLongSample(t *testing.T) {
	for d, want := range map[time.Duration]uint32{0: 0, 7 * time.Microsecond: 7000, 5 * time.Second: 1<<32 - 1} {
		if got := nanoseconds(d); got != want {
			t.Errorf("%v: %d ns, want %d", d, got, want)
		}
	}
}
