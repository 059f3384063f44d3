package downtime

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/demo"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestVerdicts(t *testing.T) {
	result := func(gib uint64, ms ...float64) Result {
		return Result{RAMBytes: gib << 30, DowntimeMS: report.SpreadOf(ms), DaemonMiB: report.SpreadOf([]float64{30})}
	}
	vs := Verdicts([]Result{result(1, 9, 10, 40), result(16, 16, 20, 30)})
	if len(vs) != 5 {
		t.Fatalf("got %d verdicts: %+v", len(vs), vs)
	}
	if !vs[0].Met() || vs[0].Name != "downtime, 1 GiB" {
		t.Errorf("a median of 10 ms did not pass: %+v", vs[0])
	}
	if vs[2].Met() {
		t.Errorf("a median of 20 ms passed: %+v", vs[2])
	}
	if !vs[1].Met() || vs[1].Promised != PromisedMiB {
		t.Errorf("30 MiB did not pass: %+v", vs[1])
	}
	if vs[4].Value.Median != 2 {
		t.Errorf("ratio of medians %g, want 2", vs[4].Value.Median)
	}
}

func TestVerdictsShowParts(t *testing.T) {
	r := Result{RAMBytes: 1 << 30, DowntimeMS: report.SpreadOf([]float64{10}), DaemonMiB: report.SpreadOf([]float64{30}),
		Parts: map[string]report.Spread{"load": report.SpreadOf([]float64{4}), "freeze": report.SpreadOf([]float64{1})}}
	vs := Verdicts([]Result{r})
	if len(vs) != 4 || vs[1].Name != "  freeze" || vs[2].Name != "  load" || !vs[2].Info || vs[2].Value.Median != 4 {
		t.Errorf("verdicts %+v", vs)
	}
}

// That a relocation with a pre-transfer stands still for longer says nothing about
// the size of memory.
func TestVerdictsOfTwoKinds(t *testing.T) {
	result := func(gib uint64, pre bool, ms float64) Result {
		return Result{RAMBytes: gib << 30, PreTransfer: pre, DowntimeMS: report.SpreadOf([]float64{ms}), DaemonMiB: report.SpreadOf([]float64{30})}
	}
	vs := Verdicts([]Result{result(1, false, 10), result(1, true, 30), result(16, false, 20), result(16, true, 30)})
	got := map[string]float64{}
	for _, v := range vs {
		if strings.HasPrefix(v.Name, "largest") {
			got[v.Name] = v.Value.Median
		}
	}
	if len(got) != 2 || got["largest median : smallest median"] != 2 || got["largest median : smallest median, with a pre-transfer"] != 1 {
		t.Errorf("ratios %v, want 2 without and 1 with a pre-transfer", got)
	}
	if vs := Verdicts([]Result{result(1, false, 10), result(1, true, 30)}); len(vs) != 4 {
		t.Errorf("one size has a ratio of sizes: %+v", vs)
	}
}

// done is a daemon whose relocations all succeed.
type done struct{ demo.Client }

func (done) Relocate(context.Context, string, string, relocate.Options) (relocate.Status, error) {
	return relocate.Status{Session: "s"}, nil
}

func (done) Statuses(context.Context, string) ([]relocate.Status, error) {
	return []relocate.Status{{Session: "s", Phase: relocate.PhaseDone, DowntimeMS: 5}}, nil
}

func (done) Events(context.Context) ([]relocate.Event, error) { return nil, nil }

// The daemons say that all went well, and the guest does not answer: its downtime is
// no result.
func TestGuestThatDoesNotAnswer(t *testing.T) {
	side := func(name string) *demo.Side { return &demo.Side{Host: &rig.Host{Name: name}, Daemon: done{}} }
	pair := &demo.Pair{A: side("a"), B: side("b"), Client: &rig.Host{Name: "client", NS: "pagewarp-there-is-none"}}
	s := &sample{parts: map[string][]float64{}}
	m := &machine{name: "vm", guest: demo.GuestConfig(), answer: 100 * time.Millisecond, from: pair.A, to: pair.B, samples: []*sample{s}}
	if err := m.move(t.Context(), pair, s); err == nil || !strings.Contains(err.Error(), "vm did not answer within 100ms after it had moved to host b") {
		t.Errorf("error %v", err)
	}
	if rs := m.results(); len(rs) != 0 {
		t.Errorf("it has results: %+v", rs)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := m.verify(ctx, pair); err == nil {
		t.Error("its memory was verified")
	}
}
