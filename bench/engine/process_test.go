package engine

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/bench/process"
)

func processEngines(t *testing.T, names ...string) (es []process.Engine) {
	t.Helper()
	for _, name := range names {
		e, err := process.New(name, process.Env{Root: t.TempDir(), Peers: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		es = append(es, e)
	}
	return es
}

// A real comparison, with one engine that is not there.
func TestRunProcess(t *testing.T) {
	l, err := ParseLoad("touch:ws=24")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r, err := RunProcess(t.Context(), ProcessOptions{
		Engines: processEngines(t, process.Pagewarp, process.Go), Load: l, LogDir: dir, Repeat: 1, Link: 125_000_000,
		Before: 3500 * time.Millisecond, After: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Rows) != 1 || len(r.Unavailable) != 1 || r.Unavailable[0].Engine != process.Go {
		t.Fatalf("%d rows, unavailable: %+v", len(r.Rows), r.Unavailable)
	}
	row := r.Rows[0]
	if row.Error != "" || row.BadPages != 0 || row.DowntimeMS <= 0 || row.TotalMS < row.StoppedMS+row.DowntimeMS || row.BlackoutMS == nil || *row.BlackoutMS < row.DowntimeMS {
		t.Errorf("%+v", row)
	}
	// Half of each page can be compressed.
	if row.Source.SentBytes < 12<<20 || row.Source.CPUSeconds <= 0 || row.Destination.GuestSeconds <= 0 || row.BeforePerSec <= 0 || len(row.Series) < 30 {
		t.Errorf("costs %+v and %+v, %.0f/s before, %d bins", row.Source, row.Destination, row.BeforePerSec, len(row.Series))
	}
	var b bytes.Buffer
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"process: 24 MiB, load random:ws=24", "1 Gbit/s", "longest stall ms", "cannot run here: userfaultfd-go: there is no Go peer", "make peers", "stall latency: "} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "QEMU") {
		t.Errorf("a QEMU in\n%s", b.String())
	}
	if err := r.WritePlot(filepath.Join(dir, "p.svg"), filepath.Join(dir, "p.png")); err != nil {
		t.Error(err)
	}
}

func TestRunProcessRefuses(t *testing.T) {
	l, err := ParseLoad("touch:ws=4")
	if err != nil {
		t.Fatal(err)
	}
	idle, churn, large := l, l, l
	large.WorkingSetMiB = 1 << 20
	idle.Kind = "idle"
	churn.Kind, churn.Rate = "churn", 5
	own := processEngines(t, process.Pagewarp)
	for want, o := range map[string]ProcessOptions{
		"engines, a load and a folder":           {Load: l, LogDir: "x"},
		"a process has no load idle":             {Load: idle, LogDir: "x", Engines: own},
		"leave the rate out":                     {Load: churn, LogDir: "x", Engines: own},
		"and this machine has":                   {Load: large, LogDir: "x", Engines: own},
		"before the command for":                 {Load: l, LogDir: "x", Engines: own, Before: time.Second},
		"none of the engines can run here: user": {Load: l, LogDir: "x", Engines: processEngines(t, process.Go)},
	} {
		if _, err := RunProcess(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// What was finished stays when a comparison is interrupted.
func TestRunProcessInterrupted(t *testing.T) {
	l, err := ParseLoad("touch:ws=4")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	r, err := RunProcess(ctx, ProcessOptions{
		Engines: processEngines(t, process.Pagewarp), Load: l, LogDir: t.TempDir(), Repeat: 2,
		Before: 3500 * time.Millisecond, After: time.Millisecond,
		Step: func(s string) {
			if strings.HasPrefix(s, "run 2 of 2: start") {
				cancel(enough)
			}
		},
	})
	if !errors.Is(err, enough) || r == nil || len(r.Rows) != 1 || len(r.Engines) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}
