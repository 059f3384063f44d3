package relocate

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testHost is a Host on loopback with a state directory and a RAM directory.
type testHost struct {
	*Host
	dir   string
	addr  string
	serve chan error
}

func startHost(t *testing.T, root, name string, change func(*HostConfig)) *testHost {
	t.Helper()
	dir := filepath.Join(root, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := HostConfig{
		StateDir: filepath.Join(dir, "state"), Listen: []string{"127.0.0.1:0"},
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})).With("host", name),
		Template: func(string) qemu.Template {
			var rules []qemu.Rewrite
			for _, other := range []string{"a", "b"} {
				if other != name {
					rules = append(rules, qemu.Rewrite{From: filepath.Join(root, other), To: dir})
				}
			}
			return qemu.Template{Rewrite: rules}
		},
	}
	if change != nil {
		change(&cfg)
	}
	h, err := NewHost(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	th := &testHost{Host: h, dir: dir, addr: h.Addrs()[0], serve: make(chan error, 1)}
	go func() { th.serve <- h.Serve() }()
	t.Cleanup(func() { th.stop(t) })
	return th
}

func (h *testHost) stop(t *testing.T) {
	t.Helper()
	if h.serve == nil {
		return
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := <-h.serve; err != nil {
		t.Error(err)
	}
	h.serve = nil
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// await follows a host's events until one relocation of vm reaches a phase that
// is final, or want.
func (h *testHost) await(t *testing.T, vm string, want Phase) Event {
	t.Helper()
	events, cancel := h.Subscribe(0)
	defer cancel()
	deadline := time.After(60 * time.Second)
	for {
		select {
		case ev := <-events:
			if ev.VM != vm || ev.Kind != "phase" {
				continue
			}
			if ev.Phase == want {
				return ev
			}
			if ev.Phase.Final() {
				t.Fatalf("%s ended %s, want %s: %s", vm, ev.Phase, want, ev.Text)
			}
		case <-deadline:
			t.Fatalf("%s did not reach %s within 60 s; statuses: %+v", vm, want, h.Statuses())
		}
	}
}

func (h *testHost) adopt(t *testing.T, name, qmp string) Machine {
	t.Helper()
	m, err := h.Adopt(t.Context(), name, qmp)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (h *testHost) last(t *testing.T, role Role) Status {
	t.Helper()
	all := h.Statuses()
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].Role == role {
			return all[i]
		}
	}
	t.Fatalf("no status as %s among %+v", role, all)
	return Status{}
}

func runState(t *testing.T, h *testHost, name string) string {
	t.Helper()
	for _, m := range h.Machines(t.Context()) {
		if m.Name == name {
			return m.Status
		}
	}
	return "not adopted"
}

func TestRelocateThereAndBack(t *testing.T) {
	root := vmtest.Dir(t)
	a, b := startHost(t, root, "a", nil), startHost(t, root, "b", nil)
	vm := vmtest.Start(t, a.dir)
	want := vmtest.Pattern(1)
	vmtest.WritePattern(t, vm.RAM, want)
	a.adopt(t, "web1", vm.QMP)

	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{}); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseDone)
	b.await(t, "web1", PhaseDone)
	s := a.last(t, RoleSource)
	t.Logf("downtime %.2f ms %v, status %+v", s.DowntimeMS, s.DowntimeParts, s)
	var sum float64
	for _, part := range s.DowntimeParts {
		sum += part
	}
	if len(s.DowntimeParts) != 5 || sum < s.DowntimeMS-0.1 || sum > s.DowntimeMS+0.1 {
		t.Errorf("parts %v of a downtime of %.3f ms", s.DowntimeParts, s.DowntimeMS)
	}
	if s.PagesRemaining != 0 || s.PagesTotal != vmtest.RAMBytes>>12 || s.DowntimeMS <= 0 {
		t.Errorf("final status at the source: %+v", s)
	}
	if got := runState(t, b, "web1"); got != "running" {
		t.Errorf("at the destination the machine is %q", got)
	}
	if got := runState(t, a, "web1"); got != "not adopted" {
		t.Errorf("at the source the machine is still %q", got)
	}
	select {
	case <-vm.Done:
	case <-time.After(10 * time.Second):
		t.Error("the source's QEMU still runs")
	}
	vmtest.CheckPattern(t, filepath.Join(b.dir, "vm.mem"), want)
	vmtest.NoTrace(t, a.dir, "*.json")

	// And back, paused; the destination's image is compared with the source's.
	if _, err := b.Relocate(t.Context(), "web1", a.addr, Options{Paused: true, KeepSource: true}); err != nil {
		t.Fatal(err)
	}
	b.await(t, "web1", PhaseDone)
	vmtest.Wait(t, "a to finish", func() bool { return runState(t, a, "web1") == "paused" })
	if !bytes.Equal(vmtest.MapRAM(t, filepath.Join(a.dir, "vm.mem")), vmtest.MapRAM(t, filepath.Join(b.dir, "vm.mem"))) {
		t.Error("the two memory files differ after a paused relocation")
	}
	vmtest.CheckPattern(t, filepath.Join(a.dir, "vm.mem"), want)
	for _, h := range []*testHost{a, b} {
		killAll(t, h)
	}
}

// killAll ends the QEMUs that hosts started, by their recorded pids.
func killAll(t *testing.T, h *testHost) {
	t.Helper()
	recs, err := h.journal.load(time.Now())
	if err != nil {
		t.Error(err)
	}
	for _, r := range recs {
		if r.PID != 0 {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if err := endProcess(ctx, nil, r.PID, r.StartTime); err != nil {
				t.Error(err)
			}
			cancel()
		}
	}
}

// TestBandwidthOfAStalledPeer: a cap that cannot be passed on holds up neither the status nor
// the relocation.
func TestBandwidthOfAStalledPeer(t *testing.T) {
	token, err := newToken()
	if err != nil {
		t.Fatal(err)
	}
	tr := newTransfer(&Host{ctx: t.Context(), log: slog.New(slog.DiscardHandler)}, &record{Token: token, VM: "web1", Role: RoleSource})
	defer tr.cancel(nil)
	passing, let := make(chan struct{}), make(chan struct{})
	tr.limit = func(int64) error { close(passing); <-let; return nil }
	set := make(chan error, 1)
	go func() { set <- tr.setBandwidth(1 << 20) }()
	<-passing
	seen := make(chan Status, 1)
	go func() { seen <- tr.Status() }()
	select {
	case <-seen:
	case <-time.After(10 * time.Second):
		t.Error("the status waits for the peer")
	}
	close(let)
	if err := <-set; err != nil || tr.Status().Options.Bandwidth != 1<<20 {
		t.Errorf("the cap is %d: %v", tr.Status().Options.Bandwidth, err)
	}
}

// TestRunningWithoutAJournal: that the machine runs at its destination is so whether or not the
// source has room to write it down. It is no reason to cut the channel.
func TestRunningWithoutAJournal(t *testing.T) {
	token, err := newToken()
	if err != nil {
		t.Fatal(err)
	}
	gone := &journal{dir: filepath.Join(t.TempDir(), "gone")}
	o := &outgoing{transfer: newTransfer(&Host{ctx: t.Context(), log: slog.New(slog.DiscardHandler), journal: gone, events: newEvents()},
		&record{Token: token, VM: "web1", Role: RoleSource, Phase: PhaseCommitted})}
	defer o.cancel(nil)
	if err := o.handle(tcp.Message{Kind: msgRunning, Body: []byte(`{"run":true}`)}); err != nil {
		t.Errorf("RUNNING ended the channel: %v", err)
	}
	if s := o.Status(); s.Phase != PhaseDraining {
		t.Errorf("it is shown as %s", s.Phase)
	}
}
