package progress

import (
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/relocate"
)

func TestLogKeepsItsPace(t *testing.T) {
	var b strings.Builder
	now := time.Unix(1000, 0)
	l := NewLog(&b, 2*time.Second)
	l.now = func() time.Time { return now }
	s := relocate.Status{Phase: relocate.PhaseDraining, Started: now, PagesTotal: 100, PagesRemaining: 100, Connected: true}
	for range 41 { // ten seconds
		l.Update(s)
		now = now.Add(250 * time.Millisecond)
		s.PagesRemaining -= 2
	}
	if n := strings.Count(b.String(), "\n"); n != 6 {
		t.Errorf("%d lines in 10 s\n%s", n, b.String())
	}
	if !strings.Contains(b.String(), "48 of 100 pages (48 %)") {
		t.Error(b.String())
	}
}

func TestLogLines(t *testing.T) {
	var b strings.Builder
	l := NewLog(&b, time.Second)
	l.Phase(relocate.PhaseFrozen, 1500*time.Microsecond, "")
	l.Note("a note of %d", 7)
	l.Update(relocate.Status{Phase: relocate.PhaseState}) // nothing to tell yet
	if want := "   0.002s  frozen       the guest has stopped\na note of 7\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

// TestPreTransferShown has a pre-transfer in a log, in a summary, and as a bar that gives
// way to the drain's.
func TestPreTransferShown(t *testing.T) {
	at := time.Unix(1000, 0)
	s := relocate.Status{VM: "web1", Peer: "hostB:7070", Phase: relocate.PhasePreTransfer, Started: at, Connected: true, PagesTotal: 1000, PagesRemaining: 1000,
		PreTransferPass: 2, PreTransferSeen: 250, PagesPreTransfer: 1100, BytesPreTransfer: 4 << 20, RateBytes: 1 << 20, PreTransferMS: 4000}
	var b strings.Builder
	l := NewLog(&b, time.Second)
	l.now = func() time.Time { return at.Add(3 * time.Second) }
	l.Update(s)
	if want := "   3.000s  pretransfer  250 of 1 000 pages (25 %), pass 2, 1 100 pages copied, 4 MiB, 1 MiB/s\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
	var screen strings.Builder
	term := NewTerminal(&screen)
	term.Update(s)
	s.Phase = relocate.PhaseReady
	term.Update(s)
	term.Phase(relocate.PhaseReady, 0, "the destination is ready")
	s.Phase, s.PagesRemaining = relocate.PhaseDraining, 10
	term.Update(s)
	s.Phase = relocate.PhaseDone
	term.Update(s)
	term.Close()
	if got := screen.String(); !strings.Contains(got, "the destination is ready") { // bars are drawn on terminals only
		t.Errorf("the terminal has shown %q", got)
	}
	if got := Summary(s); !strings.Contains(got, "before    1 100 pages copied in 4.0 s while the guest ran on, 4 MiB\n") {
		t.Errorf("the summary is %q", got)
	}
}

func TestEveryPhaseHasWords(t *testing.T) {
	for _, p := range []relocate.Phase{relocate.PhaseConnecting, relocate.PhasePreparing, relocate.PhasePreTransfer, relocate.PhaseReady, relocate.PhaseState, relocate.PhaseFrozen,
		relocate.PhaseLoaded, relocate.PhaseCommitted, relocate.PhaseDraining, relocate.PhaseDone, relocate.PhaseRolledBack, relocate.PhaseLost} {
		if what[p] == "" {
			t.Errorf("no words for %s", p)
		}
	}
}

func TestSummary(t *testing.T) {
	at := time.Unix(1000, 0)
	s := relocate.Status{
		VM: "web1", Peer: "hostB:7070", Phase: relocate.PhaseDone, Started: at, Resumed: at.Add(time.Second), Drained: at.Add(9 * time.Second), Ended: at.Add(10 * time.Second),
		DowntimeMS:    4.25,
		DowntimeParts: map[string]float64{"freeze": 1, "save": 1.5, "load": 1.25, "commit": 0.25, "resume": 0.25},
		PagesTotal:    524288, PagesDemand: 1200, PagesPrecache: 400000, PagesZero: 123088,
		BytesGuest: 2 << 30, BytesWire: 1 << 30, Reconnects: 1, WarmProblem: "what is here is ignored: web9: not in the cache",
		RDMA:         &relocate.RDMAStatus{Device: "mlx5_0", Port: 1, ReadsCompleted: 9000, ReadBytes: 1 << 30, PagesInPlace: 262000, ReadsRetried: 3, Messages: 2500, MessageBytes: 80 << 20, SendBuildMS: 1500, TCPFetches: 40, Fallbacks: 1, LastFallback: "port error"},
		FaultLatency: relocate.Latency{P50: 180, P99: 950, Max: 2_500_000, Count: 1200},
	}
	want := `web1 runs at hostB:7070
  downtime  4.2 ms (freeze 1.0, save 1.5, load 1.2, commit 0.2, resume 0.2)
  total     10 s
  pages     524 288: 1 200 on demand, 400 000 by precache, 123 088 zero
  warm      what is here is ignored: web9: not in the cache
  wire      1 GiB for 2 GiB of guest memory (ratio 2.00)
  rdma      mlx5_0 port 1: 9 000 READs, 1 GiB, 262 000 pages in place; 3 retried, 40 fetches by TCP
            2 500 answers by SEND, 80 MiB, made in 1.5 s
            1 times a channel lost RDMA, last because of port error
  drain     8.0 s, 2.15 Gbit/s on average
  faults    p50 180 µs, p99 950 µs, max 2.50 s (1 200)
  cuts      1, each taken up again
`
	if got := Summary(s); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	s = relocate.Status{VM: "web1", Phase: relocate.PhaseRolledBack, Error: relocate.ErrRolledBack.Error() + ": no route"}
	if got := Summary(s); got != "web1 was rolled back and runs on at the source\n  reason    no route\n" {
		t.Errorf("%q", got)
	}
}

// TestSummarySaysWhere: the peer of a destination is where the machine came from.
func TestSummarySaysWhere(t *testing.T) {
	for want, s := range map[string]relocate.Status{
		"web1 runs at hostB:7070\n":                 {Role: relocate.RoleSource, Peer: "hostB:7070"},
		"web1 is at hostB:7070, paused\n":           {Role: relocate.RoleSource, Peer: "hostB:7070", Options: relocate.Options{Paused: true}},
		"web1 runs here, from 10.0.0.1:41000\n":     {Role: relocate.RoleDestination, Peer: "10.0.0.1:41000"},
		"web1 is here, from 10.0.0.1:41000, paused": {Role: relocate.RoleDestination, Peer: "10.0.0.1:41000", Options: relocate.Options{Paused: true}},
	} {
		s.VM, s.Phase = "web1", relocate.PhaseDone
		if got := Summary(s); !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	cut := relocate.Status{VM: "web1", Phase: relocate.PhaseDraining, Reconnects: 2}
	if got := Summary(cut); !strings.Contains(got, "2, the last one goes on") {
		t.Errorf("%q", got)
	}
}
