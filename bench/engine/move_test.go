package engine

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/bench/demo"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate"
)

// twoHosts are hosts without daemons, which QEMU's own ways do not need.
func twoHosts(t *testing.T) *demo.Pair {
	t.Helper()
	r, err := rig.New("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left := rig.Leftovers(r.Ident); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	for _, name := range []string{"a", "b"} {
		if err := r.Host(name).AddTap(tap); err != nil {
			t.Fatal(err)
		}
	}
	return &demo.Pair{Rig: r, A: &demo.Side{Host: r.Host("a")}, B: &demo.Side{Host: r.Host("b")}}
}

// firmware starts a machine that runs its firmware, for an engine.
func firmware(ctx context.Context, t *testing.T, p *demo.Pair, e Engine, name string) *Job {
	t.Helper()
	c := rig.VMConfig{Name: name, RAM: 64 << 20, Accel: "tcg", ExtraArgs: debugThreads}
	e.Arrange(&c)
	vm, err := rig.StartVM(ctx, p.A.Host, c)
	if err != nil {
		t.Fatal(err)
	}
	return &Job{Pair: p, VM: vm, Config: c, Begin: time.Now}
}

// Every one of QEMU's own ways, between two hosts, measured.
func TestNative(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			p := twoHosts(t)
			e, err := New(m.name, Env{})
			if err != nil {
				t.Fatal(err)
			}
			if f, err := e.Available(ctx); err != nil || f.QEMU == "" {
				t.Fatalf("%+v, %v", f, err)
			}
			j := firmware(ctx, t, p, e, m.name)
			var mt *meter
			j.Begin = func() time.Time {
				if mt, err = startMeter(false, [2]*rig.Host{p.A.Host, p.B.Host}); err != nil {
					t.Error(err)
				}
				return time.Now()
			}
			got, err := e.Move(ctx, j)
			if err != nil {
				t.Fatal(err)
			}
			times := []time.Time{got.Started, got.Stopped, got.Resumed, got.Completed}
			if !slices.IsSortedFunc(times, time.Time.Compare) || got.BytesReported == 0 {
				t.Errorf("times out of order, or nothing sent: %+v", got)
			}
			for _, need := range append(m.needs, "bandwidth unlimited") {
				if !strings.Contains(got.Settings, need) {
					t.Errorf("settings %q lack %q", got.Settings, need)
				}
			}
			if mt == nil {
				t.Fatal("the command was not announced")
			}
			costs, err := mt.stop()
			if err != nil {
				t.Fatal(err)
			}
			if costs[0].SentBytes < 100_000 || costs[0].SentBytes < costs[1].SentBytes {
				t.Errorf("the source sent %d bytes, the destination %d", costs[0].SentBytes, costs[1].SentBytes)
			}
			if costs[0].PeakBytes == 0 || costs[1].PeakBytes == 0 {
				t.Errorf("no memory was seen: %+v", costs)
			}
		})
	}
}

// The meter counts what a process burns from its start on, and only that of the
// hosts.
func TestMeter(t *testing.T) {
	p := twoHosts(t)
	mt, err := startMeter(false, [2]*rig.Host{p.A.Host, p.B.Host})
	if err != nil {
		t.Fatal(err)
	}
	cmd := p.A.Command(t.Context(), "sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done; exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.B.Dir, "memory"), make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	costs, err := mt.stop()
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if costs[0].CPUSeconds < 0.05 || costs[1].CPUSeconds != 0 || costs[0].GuestSeconds != 0 {
		t.Errorf("CPU time %+v", costs)
	}
	if costs[1].PeakBytes < 3<<20 || costs[1].PeakBytes > 4<<20 {
		t.Errorf("the file of 3 MiB is %d bytes of memory", costs[1].PeakBytes)
	}
}

// A source that dies as it is to be moved is an error that says so.
func TestSourceDies(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p := twoHosts(t)
	e, err := New("qemu-postcopy", Env{})
	if err != nil {
		t.Fatal(err)
	}
	j := firmware(ctx, t, p, e, "dies")
	j.Begin = func() time.Time {
		if err := j.VM.Kill(); err != nil {
			t.Error(err)
		}
		return time.Now()
	}
	m, err := e.Move(ctx, j)
	if err == nil || !m.Stopped.IsZero() || ctx.Err() != nil {
		t.Errorf("%+v, %v", m, err)
	}
}

// A migration that does not come to its end is given up, and says how far it was.
func TestGivenUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p := twoHosts(t)
	e, err := New("qemu-precopy", Env{})
	if err != nil {
		t.Fatal(err)
	}
	j := firmware(ctx, t, p, e, "cut")
	if err := p.B.Cut(); err != nil {
		t.Fatal(err)
	}
	short, cancelShort := context.WithTimeout(ctx, time.Second)
	defer cancelShort()
	_, err = e.Move(short, j)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `in the state "setup"`) {
		t.Errorf("got %v, want how far it was", err)
	}
}

// up stands for the client of a daemon that answers.
type up struct{ demo.Client }

func (up) Statuses(context.Context, string) ([]relocate.Status, error) { return nil, nil }
func (up) Close()                                                      {}

// A guest that does not come up is a row, and its engine gets no further run.
func TestGuestDoesNotComeUp(t *testing.T) {
	dir := t.TempDir()
	qemu := filepath.Join(dir, "broken-qemu")
	script := "#!/bin/sh\ncase $1 in -version) echo QEMU emulator version 7.2.0;; -machine) echo;; *) echo no such accelerator >&2; exit 1;; esac\n"
	if err := os.WriteFile(qemu, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	daemon := filepath.Join(dir, "pagewarpd")
	if err := os.WriteFile(daemon, []byte("#!/bin/sh\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := ParseLoad("idle:ws=16")
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	r, err := Run(t.Context(), Options{
		Tools: demo.Tools{Pagewarpd: daemon, Insecure: true, Dial: func(string) demo.Client { return up{} },
			Certificates: func(string, string, netip.Addr) (ca, cert, key string, err error) {
				return "", "", "", errors.New("not asked for")
			}},
		Engines: []Engine{&native{name: "broken", binary: qemu, mode: modes[0]}, &native{name: "absent", binary: filepath.Join(dir, "none"), mode: modes[0]}},
		Load:    l, LogDir: dir, Repeat: 3, RAM: 128 << 20, Accel: "tcg", Step: func(s string) { steps = append(steps, s) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Rows) != 1 || !strings.Contains(r.Rows[0].Error, "no such accelerator") || !strings.Contains(r.Rows[0].Error, "did not come up") {
		t.Errorf("rows %+v, want one that says why", r.Rows)
	}
	if len(r.Unavailable) != 1 || r.Unavailable[0].Engine != "absent" {
		t.Errorf("unavailable: %+v", r.Unavailable)
	}
	if len(r.Engines) != 1 || r.Engines[0].Failed != 1 || r.Engines[0].Good != 0 {
		t.Errorf("summary %+v", r.Engines)
	}
	if !slices.ContainsFunc(steps, func(s string) bool { return strings.Contains(s, "FAILED") }) {
		t.Errorf("the failure was not told: %q", steps)
	}
}
