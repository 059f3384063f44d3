package process

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/fault"
	"github.com/pagewarp/pagewarp/bench/workloads"
	"github.com/pagewarp/pagewarp/internal/rig"
)

func TestMain(m *testing.M) {
	fault.Main()
	Main()
	goleak.VerifyTestMain(m)
}

// Our own parts, under each load, and what is counted meanwhile.
func TestOwn(t *testing.T) {
	for _, text := range []string{"random:ws=48", "zipf:ws=16", "sweep:ws=16", "churn:ws=16"} {
		t.Run(text, func(t *testing.T) {
			m, gaps := move(t, &own{Pagewarp}, load(t, text), 0)
			if m.Completed.Before(m.Frozen) || m.BytesReported == 0 || len(m.Notes) == 0 || len(gaps) == 0 {
				t.Errorf("moved: %+v with %d stalls", m, len(gaps))
			}
		})
	}
}

// The Go peer, built from its module, brings all pages of a memory that is
// touched all over, and is given up where it is not.
func TestGoPeer(t *testing.T) {
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, Go), ".")
	build.Dir = filepath.Join("..", "peers", Go)
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the Go peer, which needs the Go module proxy and a C compiler: %v\n%s", err, out)
	}
	e, err := New(Go, Env{Peers: dir})
	if err != nil {
		t.Fatal(err)
	}
	if v, _, err := e.Available(t.Context()); err != nil || v != "v0.1.2" {
		t.Errorf("version %q, %v", v, err)
	}
	m, _ := move(t, e, load(t, "random:ws=16"), 30*time.Second)
	if m.Completed.IsZero() || m.BytesReported != 16<<20 {
		t.Errorf("moved: %+v", m)
	}
	m, _ = move(t, e, load(t, "zipf:ws=64,exponent=2"), 200*time.Millisecond)
	if !m.Completed.IsZero() || len(m.Notes) != 1 || !strings.Contains(m.Notes[0], "still at the source") {
		t.Errorf("given up after the span: %+v", m)
	}
}

func TestNames(t *testing.T) {
	for _, name := range Names() {
		if e, err := New(name, Env{}); err != nil || e.Name() != name {
			t.Errorf("New(%s): %v, %v", name, e, err)
		}
	}
	if _, err := New("crui", Env{}); err == nil || !strings.Contains(err.Error(), "choose from pagewarp, criu-lazy@root") {
		t.Errorf("a name that there is none of: %v", err)
	}
}

// A worker that never gets to its work does not hold the harness up for ever.
func TestWorkerThatDoesNotBegin(t *testing.T) {
	p, err := NewProbe(filepath.Join(t.TempDir(), "probe"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	w := &Worker{done: make(chan struct{})}
	if err := w.begun(t.Context(), p, 20*time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not begin its work: not within 20ms") {
		t.Errorf("error %v", err)
	}
	close(w.done)
	if err := w.begun(t.Context(), p, time.Minute); err != nil {
		t.Errorf("one that has ended: %v", err)
	}
}

// The probe's words on what it has counted.
func TestProbe(t *testing.T) {
	p, err := NewProbe(filepath.Join(t.TempDir(), "probe"), 4)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	start := p.Start().UnixNano()
	last := int64(0)
	for _, at := range []int64{1_000, 2_000, 500_000, 501_000, 2_500_000} { // ns
		p.note(start+at, last)
		last = start + at
	}
	gaps, err := p.Gaps()
	if err != nil || len(gaps) != 2 || gaps[0] != (Gap{start + 2_000, start + 500_000}) || gaps[1].To != start+2_500_000 {
		t.Errorf("gaps %v, %v", gaps, err)
	}
	if n := p.Count(p.Start(), p.Start().Add(time.Millisecond)); n != 4 {
		t.Errorf("%d operations in the first ms, want 4", n)
	}
	if n := p.Count(p.Start().Add(-time.Hour), p.Start().Add(time.Hour)); n != 5 {
		t.Errorf("%d operations at any time, want 5", n)
	}
	if g, err := Over(gaps, p.Start().Add(time.Millisecond)); err != nil || g != gaps[1] {
		t.Errorf("the stall over 1 ms is %v, %v", g, err)
	}
	if _, err := Over(gaps, p.Start().Add(time.Second)); err == nil {
		t.Error("a stall was found where there was none")
	}
	p.h.gaps = gapCount + 1
	if _, err := p.Gaps(); err == nil || !strings.Contains(err.Error(), "smaller load") {
		t.Errorf("more stalls than there is room for: %v", err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Millisecond, errors.New("enough"))
	defer cancel()
	if err := p.Stop(ctx); err == nil || !strings.Contains(err.Error(), "did not stop: enough") {
		t.Errorf("Stop without a process: %v", err)
	}
}

func load(t testing.TB, text string) workloads.Load {
	t.Helper()
	l, err := workloads.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// stage starts a worker of the given load at one of two hosts, for an engine.
func stage(ctx context.Context, t testing.TB, e Engine, l workloads.Load, span time.Duration) *Job {
	t.Helper()
	r, err := rig.New("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	a, b := r.Host("a"), r.Host("b")
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left := rig.Leftovers(r.Ident); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	p, err := NewProbe(filepath.Join(filepath.Dir(a.Dir), "probe"), (&task{Load: l}).pages())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	dir := t.TempDir()
	w, err := StartWorker(ctx, a, p, l, e.Private(), filepath.Join(dir, "worker.log"))
	if err != nil {
		t.Fatal(err)
	}
	before := p.Operations()
	if err := poll(ctx, "do 1,000 operations", func() bool { return p.Operations() > before+1000 }); err != nil {
		t.Fatal(err)
	}
	return &Job{A: a, B: b, Worker: w, Probe: p, Dir: dir, Begin: time.Now, Span: span}
}

// move has an engine move a worker, and checks what every engine must have
// reached.
func move(t testing.TB, e Engine, l workloads.Load, span time.Duration) (Moved, []Gap) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, _, err := e.Available(ctx); err != nil {
		t.Fatal(err)
	}
	j := stage(ctx, t, e, l, span)
	m, err := e.Move(ctx, j)
	if err != nil {
		t.Fatal(err)
	}
	if m.Started.IsZero() || !m.Frozen.After(m.Started) || m.Settings == "" {
		t.Errorf("moved: %+v", m)
	}
	if err := j.Probe.Resumed(ctx, m.Completed); err != nil {
		t.Fatal(err)
	}
	bad, err := j.Probe.Verify(ctx)
	if err != nil || bad != 0 {
		t.Errorf("%d pages or touches are wrong, %v", bad, err)
	}
	gaps, err := j.Probe.Gaps()
	if err != nil {
		t.Fatal(err)
	}
	if g, err := Over(gaps, m.Frozen); err != nil || g.From < m.Started.UnixNano()-int64(stall) {
		t.Errorf("the switch-over is %+v, %v, the command at %d", g, err, m.Started.UnixNano())
	}
	return m, gaps
}

// What a process finds wrong with its memory is told: pages that are old or
// damaged at the destination.
func TestVerifyFindsDamage(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	j := stage(ctx, t, &own{Pagewarp}, load(t, "random:ws=4"), 0)
	if err := j.Probe.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	image, err := os.OpenFile(j.Worker.Memory, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if _, err := image.WriteAt([]byte("damage"), 77*pageBytes+100); err != nil {
		t.Fatal(err)
	}
	if _, err := (&own{Pagewarp}).Move(ctx, j); err != nil {
		t.Fatal(err)
	}
	if bad, err := j.Probe.Verify(ctx); err != nil || bad != 1 {
		t.Errorf("%d bad pages, %v; want the one", bad, err)
	}
}

// A program of a peer that crashes is an error with its last words.
func TestCrashedPeers(t *testing.T) {
	dir := t.TempDir()
	for name, e := range map[string]Engine{CRIU: &criu{CRIU, filepath.Join(dir, "peer")}, Go: &goPeer{Go, filepath.Join(dir, "peer")}} {
		if err := os.WriteFile(filepath.Join(dir, "peer"), []byte("#!/bin/sh\necho Segmentation fault >&2; exit 139\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		j := stage(ctx, t, e, load(t, "random:ws=4"), time.Second)
		if _, err := e.Move(ctx, j); err == nil || !strings.Contains(err.Error(), "Segmentation fault") {
			t.Errorf("%s: %v, want its last words", name, err)
		}
		cancel()
	}
}

// A load that a process has not is said by the worker.
func TestWorkerSaysWhy(t *testing.T) {
	r, err := rig.New("a")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p, err := NewProbe(filepath.Join(t.TempDir(), "probe"), 1024)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, err = StartWorker(ctx, r.Host("a"), p, load(t, "idle:ws=4"), true, filepath.Join(t.TempDir(), "log"))
	if err == nil || !strings.Contains(err.Error(), `a process has no load "idle"`) {
		t.Errorf("%v", err)
	}
}
