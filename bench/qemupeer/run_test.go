package qemupeer

import (
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/bench/report"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPeers(t *testing.T) {
	warm := 250.0
	r := &engine.Result{Rows: []engine.Row{
		{Engine: engine.Pagewarp, Run: 1, TotalMS: 900, DowntimeMS: 10, WorstGapMS: 20, Warmup90MS: &warm, Source: engine.Cost{SentBytes: 77}, Settings: "s"},
		{Engine: "qemu-postcopy-preempt", Run: 1, TotalMS: 1800, DowntimeMS: 40, WorstGapMS: 60, ObservedAfterS: 9, BadPages: 3},
	}}
	ps, err := peers(r)
	if err != nil || len(ps) != 2 {
		t.Fatalf("%+v, %v", ps, err)
	}
	want := report.Peer{System: Pagewarp, Run: 1, TotalMS: 900, DowntimeMS: 10, SlowMS: 250, WorstGapMS: 20, BytesWire: 77, SettingsNote: "s"}
	if ps[0] != want {
		t.Errorf("got %+v, want %+v", ps[0], want)
	}
	if ps[1].System != QEMU || ps[1].SlowMS != 9000 || !ps[1].StillSlow || ps[1].GuestErrors != 3 {
		t.Errorf("one that never recovered: %+v", ps[1])
	}
	vs := Compare(ps)
	if len(vs) != 11 || vs[7].Name != "time slow, QEMU postcopy, 1 × to the end of what was watched" || vs[2].Name != "total time, ratio of medians" || vs[2].Value.Median != 2 || !vs[2].Met() {
		t.Errorf("verdicts %+v", vs)
	}

	var table strings.Builder
	if err := report.PeersTable(&table, ps); err != nil || !strings.Contains(table.String(), "over 9,000") {
		t.Errorf("%v\n%s", err, table.String())
	}
	both := []report.Peer{ps[0], ps[1]}
	both[1].StillSlow = false
	if vs := Compare(both); len(vs) != 12 {
		t.Errorf("two that recovered have no ratio: %+v", vs)
	}

	r.Rows[1].Error = "crashed"
	r.Unavailable = []engine.Unavailable{{Engine: "x", Reason: "gone"}}
	ps, err = peers(r)
	if len(ps) != 1 || err == nil || !strings.Contains(err.Error(), "QEMU postcopy, run 1: crashed") || !strings.Contains(err.Error(), "x cannot run here: gone") {
		t.Errorf("a peer that crashed: %+v, %v", ps, err)
	}
}

func TestEngines(t *testing.T) {
	es, err := engines(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(es) != 2 || es[0].Name() != engine.Pagewarp || !strings.HasPrefix(es[1].Name(), "qemu-postcopy") {
		t.Errorf("engines %v", es)
	}
}
