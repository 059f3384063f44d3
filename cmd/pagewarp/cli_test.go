package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/daemon"
	"github.com/pagewarp/pagewarp/cmd/internal/daemon/daemontest"
	"github.com/pagewarp/pagewarp/relocate"
)

var update = flag.Bool("update", false, "write the golden files anew")

// asCommand makes the test binary the command itself: what a terminal sends can
// only be tried on a process of its own.
const asCommand = "PAGEWARP_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// serve runs the API over a fake host and returns its socket.
func serve(t *testing.T) (*daemontest.Host, string) {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "api.sock")
	h, _ := serveAt(t, sock)
	return h, sock
}

// serveAt does so at sock, until stop.
func serveAt(t *testing.T, sock string) (_ *daemontest.Host, stop func()) {
	t.Helper()
	h, started := daemontest.New(), time.Now()
	s := daemon.NewServer(h, config.Default(), func() api.VersionReply {
		return api.VersionReply{API: "v1", PID: 7, Listen: h.Addrs(), Security: api.SecurityLocal, Started: started}
	}, slog.New(slog.DiscardHandler))
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewUnstartedServer(s.Handler())
	ts.Listener.Close()
	ts.Listener = l
	ts.Start()
	stop = sync.OnceFunc(func() { s.EndStreams(); ts.Close() })
	t.Cleanup(stop)
	return h, stop
}

type result struct {
	code     int
	out, err string
}

func pagewarp(t *testing.T, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	code := run(t.Context(), args, strings.NewReader(""), &out, &errOut, make(chan os.Signal))
	return result{code, out.String(), errOut.String()}
}

// golden compares with testdata/name.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	p := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(p, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(p)
	if err != nil {
		t.Fatalf("%v; `go test ./cmd/pagewarp -update` writes it", err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", p, got, want)
	}
}

func TestHelp(t *testing.T) {
	t.Setenv(socketEnv, config.DefaultSocket)
	for _, words := range [][]string{{"relocate"}, {"vm", "add"}, {"pki", "issue"}, {"bandwidth"}, {"limits"}, {"cache"}, {"bench", "queue"}, {"bench", "codec"}, {"bench", "planner"}, {"bench", "paper"}, {"bench", "fault"}, {"bench", "process"}} {
		r := pagewarp(t, append(words, "--help")...)
		if r.code != 0 || r.err != "" {
			t.Errorf("%v --help: %+v", words, r)
		}
		golden(t, "help-"+strings.Join(words, "-"), r.out)
	}
	r := pagewarp(t)
	for _, want := range []string{"3 rolled back", "130 interrupted", "relocate ", "doctor ", "completion "} {
		if !strings.Contains(r.out, want) {
			t.Errorf("the help lacks %q", want)
		}
	}
}

func TestUsage(t *testing.T) {
	var all strings.Builder
	for _, line := range []string{
		"relcate web1", "vm ad web2", "vm add web2", "vm add a/b --qmp /x", "vm list more", "relocate", "relocate web1", "relocate web1 --to hostB",
		"relocate web1 --bandwith 2G", "relocate web1 --to hostB:7070 --bandwidth 2", "relocate web1 --to hostB:7070 --codec lz4", "relocate web1 --to hostB:7070 --precache hot,cold", "relocate web1 --to hostB:7070 --precache hot --on-demand-only",
		"relocate web1 --to hostB:7070 --pre-transfer-timeout 5s", "relocate web1 --to hostB:7070 --pre-transfer --pre-transfer-timeout 48h", "relocate web1 --to hostB:7070 --pre-transfer --transport rdma", "relocate web1 --to hostB:7070 --rdma-precache mail",
		"relocate web1 --to hostB:7070 --demand-channels 99", "relocate web1 --to hostB:7070 --detach --wait", "relocate web1 --to hostB:7070 --json",
		"bandwidth web1", "bandwidth web1 fast", "limits --host-bandwidth 800K", "limits 2G", "bench fault --link 5", "bench fault --streams 65", "bench fault --qdisc pfifo_fast", "bench fault --link 1G --qdisc codel", "bench fault --link 1G --threads 1,2", "relocate web1 --to hostB:7070 --warm a/b", "cache drop", "cache drop a/b", "cache lst", "bench queue --repeat 0", "bench fault --threads 1,65", "bench fault --channels 0", "bench fault --page-size 1G", "bench fault --region 3T", "bench fault --page-size 2M --region 128M", "bench codec x", "bench stream --channels 0", "bench stream --channels 65", "bench downtime --accel xen", "bench downtime --size 0", "bench qemu --touch 0", "bench qemu --touch 2000", "bench qemu --link -5", "bench qemu --codec gzip", "bench relocate --codec gzip", "bench relocate --accel xen", "bench paper --accel xen", "bench trace simulate --rtt 0s", "bench trace simulate --channels 0", "demo --accel xen", "demo --ram 1025", "demo --ram 400", "demo --working-set 0", "demo --clients 0", "demo --ram 9999998", "pki isue", "completion ksh", "--sockt x", "status --xyzzy", "events --after -1", "help nix", "help vm lst", "relocate web1 --to hostB:7070 --json /nonexistent/report.json",
	} {
		r := pagewarp(t, strings.Fields(line)...)
		if r.code != exitUsage || r.out != "" || strings.Count(r.err, "\n") != 1 {
			t.Errorf("%s: %+v", line, r)
		}
		fmt.Fprintf(&all, "$ pagewarp %s\n%s", line, r.err)
	}
	golden(t, "usage", all.String())
}

func TestUnreachable(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "none.sock")
	for _, words := range []string{"vm list", "vm add a --qmp /x", "vm rm a", "relocate web1 --to h:1", "cancel a", "status", "status -w", "top", "events", "events -f", "bandwidth a 2G", "limits", "cache list", "cache drop a", "cache path"} {
		r := pagewarp(t, append(strings.Fields(words), "--socket", sock)...)
		if r.code != exitUnreachable || r.out != "" || !strings.Contains(r.err, "is pagewarpd running?") || !strings.Contains(r.err, "--socket") {
			t.Errorf("%s: %+v", words, r)
		}
	}
}

func TestMachines(t *testing.T) {
	_, sock := serve(t)
	var all strings.Builder
	for _, line := range []string{
		"vm list", "vm add db1 --qmp /run/db1.qmp", "vm add db1 --qmp /run/db1.qmp", "vm add x --qmp /dead", "vm list --json", "vm add p1 --qmp /run/private.qmp", "vm list", "vm rm p1 --json",
		"vm rm db1", "vm rm db1", "cancel web1", "bandwidth web1 2G", "status wbe1", "status web1", "limits", "limits --host-bandwidth 2G", "limits --json", "limits --host-bandwidth none", "status", "status web1 --json", "events",
	} {
		r := pagewarp(t, append(strings.Fields(line), "--socket", sock)...)
		out := r.out
		if strings.HasPrefix(line, "status") && strings.Contains(line, "json") {
			var v api.StatusReply
			if err := json.Unmarshal([]byte(out), &v); err != nil || v.Daemon.PID != 7 || v.Relocations == nil {
				t.Errorf("%s: %v %s", line, err, out)
			}
			continue
		}
		fmt.Fprintf(&all, "$ pagewarp %s\n%s%s(%d)\n", line, out, r.err, r.code)
	}
	golden(t, "machines", all.String())
}

func TestCache(t *testing.T) {
	_, sock := serve(t)
	var all strings.Builder
	for _, line := range []string{"cache list --json", "cache path", "cache path db1", "cache path web9", "cache path --json", "__complete cache drop ",
		"cache drop db1", "cache drop db1", "cache list"} {
		words := strings.Fields(line)
		if strings.HasSuffix(line, " ") {
			words = append(words, "")
		}
		r := pagewarp(t, append([]string{"--socket", sock}, words...)...)
		fmt.Fprintf(&all, "$ pagewarp %s\n%s%s(%d)\n", line, r.out, r.err, r.code)
	}
	golden(t, "cache", all.String())
}

// play takes the live relocation of web1 through its phases to the end.
func play(h *daemontest.Host, end relocate.Phase) {
	for _, p := range []relocate.Phase{relocate.PhasePreparing, relocate.PhaseReady, relocate.PhaseState, relocate.PhaseFrozen, relocate.PhaseLoaded} {
		h.Phase("web1", p, nil)
	}
	if end == relocate.PhaseRolledBack {
		h.Phase("web1", end, func(s *relocate.Status) { s.Error = "load device state: machine type differs" })
		return
	}
	h.Phase("web1", relocate.PhaseCommitted, nil)
	h.Phase("web1", relocate.PhaseDraining, func(s *relocate.Status) {
		s.PagesTotal, s.PagesRemaining, s.PagesDemand, s.PagesPrecache, s.Connected = 1000, 400, 100, 500, true
	})
	if end == relocate.PhaseLost {
		h.Phase("web1", end, func(s *relocate.Status) { s.Error = "destination QEMU was killed" })
		return
	}
	h.Phase("web1", relocate.PhaseDone, func(s *relocate.Status) {
		s.PagesRemaining, s.PagesPrecache, s.PagesZero = 0, 700, 200
		s.BytesGuest, s.BytesWire, s.DowntimeMS = 4096000, 2048000, 6.25
		s.FaultLatency = relocate.Latency{Mean: 200, P50: 150, P99: 900, Max: 2500, Count: 100}
	})
}

// started runs the command, waits for the relocation to be there, and returns
// what waits for the command's end.
func started(t *testing.T, h *daemontest.Host, signals chan os.Signal, args ...string) func() result {
	t.Helper()
	begun := make(chan struct{})
	h.OnRelocate = func(string, string, relocate.Options) error { close(begun); return nil }
	var out, errOut buffer
	done := make(chan int, 1)
	ctx := t.Context()
	go func() { done <- run(ctx, args, strings.NewReader(""), &out, &errOut, signals) }()
	await(t, "the relocation", begun)
	errOut.await(t, "connecting")
	return func() result {
		select {
		case code := <-done:
			return result{code, out.String(), errOut.String()}
		case <-time.After(20 * time.Second):
			t.Fatalf("the command does not end; so far:\n%s\n%s", out.String(), errOut.String())
			return result{}
		}
	}
}

func await(t *testing.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(20 * time.Second):
		t.Fatalf("waited in vain for %s", what)
	}
}

// buffer is a bytes.Buffer for two goroutines, one of which waits for a text.
type buffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	wake chan struct{} // closed at a write, and made by who waits
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wake != nil {
		close(b.wake)
		b.wake = nil
	}
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) await(t *testing.T, text string) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		b.mu.Lock()
		if strings.Contains(b.b.String(), text) {
			b.mu.Unlock()
			return
		}
		if b.wake == nil {
			b.wake = make(chan struct{})
		}
		wake := b.wake
		b.mu.Unlock()
		select {
		case <-wake:
		case <-limit:
			t.Fatalf("no %q in\n%s", text, b.String())
		}
	}
}

func TestRelocate(t *testing.T) {
	for _, c := range []struct {
		end      relocate.Phase
		code     int
		out, err []string
	}{
		{relocate.PhaseDone, exitOK, []string{"web1 runs at 127.0.0.1:7070", "downtime  6.2 ms", "1 000: 100 on demand, 700 by precache, 200 zero", "ratio 2.00", "p50 150 µs, p99 900 µs, max 2.5 ms (100)"}, []string{"preparing", "the guest has stopped", "draining", "done"}},
		{relocate.PhaseRolledBack, exitRolledBack, []string{"was rolled back and runs on at the source", "machine type differs"}, []string{"rolled-back"}},
		{relocate.PhaseLost, exitLost, []string{"web1 is lost", "destination QEMU was killed"}, []string{"draining", "lost"}},
	} {
		h, sock := serve(t)
		wait := started(t, h, make(chan os.Signal), "relocate", "web1", "--to", "127.0.0.1:7070", "--socket", sock)
		play(h, c.end)
		r := wait()
		if r.code != c.code {
			t.Errorf("%s: exit code %d\n%s", c.end, r.code, r.err)
		}
		for _, w := range c.out {
			if !strings.Contains(r.out, w) {
				t.Errorf("%s: no %q in the summary\n%s", c.end, w, r.out)
			}
		}
		for _, w := range c.err {
			if !strings.Contains(r.err, w) {
				t.Errorf("%s: no %q in the log\n%s", c.end, w, r.err)
			}
		}
		if strings.Contains(r.err, "\x1b") {
			t.Errorf("escape sequences in a log: %q", r.err)
		}
	}
}

func TestRelocateJSON(t *testing.T) {
	for _, to := range []string{"-", filepath.Join(t.TempDir(), "report.json")} {
		h, sock := serve(t)
		wait := started(t, h, make(chan os.Signal), "relocate", "web1", "--to", "127.0.0.1:7070", "--socket", sock, "--json", to, "--bandwidth", "2G", "--paused", "--on-demand-only", "--codec", "zstd", "--keep-source", "--demand-channels", "2", "--precache-channels", "5")
		play(h, relocate.PhaseDone)
		r := wait()
		b := []byte(r.out)
		if to != "-" {
			var err error
			if b, err = os.ReadFile(to); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(r.out, "is at 127.0.0.1:7070, paused") {
				t.Errorf("summary %q", r.out)
			}
		}
		var s relocate.Status
		if err := json.Unmarshal(b, &s); err != nil || s.Phase != relocate.PhaseDone || r.code != 0 {
			t.Fatalf("%v %d %s", err, r.code, b)
		}
		if want := (relocate.Options{Paused: true, OnDemandOnly: true, Bandwidth: 250_000_000, Codec: "zstd", DemandChannels: 2, PrecacheChannels: 5, KeepSource: true}); s.Options != want {
			t.Errorf("options %+v", s.Options)
		}
	}
}

func TestDetach(t *testing.T) {
	for _, f := range []string{"--detach", "--wait=false"} {
		_, sock := serve(t)
		if r := pagewarp(t, "relocate", "web1", "--to", "127.0.0.1:7070", "--socket", sock, f); r.code != 0 || !strings.Contains(r.out, "pagewarp status web1") {
			t.Errorf("%s: %+v", f, r)
		}
		if r := pagewarp(t, "relocate", "web1", "--to", "127.0.0.1:7070", "--socket", sock); r.code != exitFailed || !strings.Contains(r.err, "pagewarp cancel") {
			t.Errorf("a second one: %+v", r)
		}
	}
}

func TestInterruptRollsBack(t *testing.T) {
	h, sock := serve(t)
	sig := make(chan os.Signal)
	wait := started(t, h, sig, "relocate", "web1", "--to", "127.0.0.1:7070", "--socket", sock)
	h.Phase("web1", relocate.PhasePreparing, nil)
	sig <- syscall.SIGINT
	r := wait()
	if r.code != exitInterrupted || !strings.Contains(r.err, "rolling back") || !strings.Contains(r.out, "runs on at the source") {
		t.Errorf("%+v", r)
	}
}

func TestInterruptPastTheSwitch(t *testing.T) {
	h, sock := serve(t)
	sig := make(chan os.Signal)
	wait := started(t, h, sig, "relocate", "web1", "--to", "127.0.0.1:7070", "--socket", sock)
	h.Phase("web1", relocate.PhaseDraining, nil)
	sig <- syscall.SIGINT
	r := wait()
	if r.code != exitInterrupted || !strings.Contains(r.err, "finish on their own") || !strings.Contains(r.err, "pagewarp status web1") {
		t.Errorf("%+v", r)
	}
	if s := h.Statuses()[0]; s.Phase != relocate.PhaseDraining {
		t.Errorf("the relocation is %s", s.Phase)
	}
}

func TestInterruptTwice(t *testing.T) {
	h, sock := serve(t)
	sig := make(chan os.Signal)
	release := make(chan struct{})
	h.OnCancel = func(ctx context.Context, _ string) error {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	defer close(release)
	wait := started(t, h, sig, "relocate", "web1", "--to", "127.0.0.1:7070", "--socket", sock)
	sig <- syscall.SIGINT
	sig <- syscall.SIGINT
	if r := wait(); r.code != exitInterrupted || !strings.Contains(r.err, "left to the daemon") {
		t.Errorf("%+v", r)
	}
}

func TestEventsFollow(t *testing.T) {
	h, sock := serve(t)
	h.Event(relocate.Event{Kind: "warning", Text: "first"})
	sig := make(chan os.Signal, 1)
	pr, pw := io.Pipe()
	done := make(chan int, 1)
	ctx := t.Context()
	go func() {
		done <- run(ctx, []string{"events", "-f", "--json", "--socket", sock}, nil, pw, io.Discard, sig)
		pw.Close()
	}()
	d := json.NewDecoder(pr)
	for i, text := range []string{"first", "second"} {
		var e relocate.Event
		if err := d.Decode(&e); err != nil || e.Text != text {
			t.Fatalf("event %d: %+v, %v", i, e, err)
		}
		if i == 0 {
			h.Event(relocate.Event{Kind: "warning", Text: "second"})
		}
	}
	sig <- syscall.SIGINT
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestCompletion(t *testing.T) {
	_, sock := serve(t)
	if r := pagewarp(t, "--socket", sock, "__complete", "relocate", ""); !strings.Contains(r.out, "web1\trunning") {
		t.Errorf("%+v", r)
	}
	if r := pagewarp(t, "__complete", "relocate", "web1", "--codec", ""); !strings.Contains(r.out, "zstd") {
		t.Errorf("%+v", r)
	}
	for _, words := range []string{"vm add", "relocate web1 --to", "relocate web1 --bandwidth", "bandwidth web1"} {
		r := pagewarp(t, append(append([]string{"--socket", sock, "__complete"}, strings.Fields(words)...), "")...)
		if !strings.Contains(r.err, "ShellCompDirectiveNoFileComp") || strings.Contains(words, "band") && !strings.Contains(r.out, "2G\n") {
			t.Errorf("%s: %+v", words, r)
		}
	}
	if r := pagewarp(t, "__complete", "relocate", "web1", "--precache", "sweep,"); !strings.Contains(r.out, "sweep,hot\n") || strings.Contains(r.out, "sweep,sweep") {
		t.Errorf("%+v", r)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := pagewarp(t, "completion", shell); r.code != 0 || len(r.out) < 1000 {
			t.Errorf("%s: %d, %d bytes", shell, r.code, len(r.out))
		}
	}
}
