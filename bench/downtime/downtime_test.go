package downtime

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/bench/report"
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
