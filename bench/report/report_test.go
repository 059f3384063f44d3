package report

import (
	"encoding/json"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The names that the readers of report.json rely on.
func TestReportFieldNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "report.json")
	if err := Write(path, New()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(`vm accel ram_bytes downtime_ms client_blackout_ms total_ms warmup90_ms
		pages_total pages_demand pages_precache pages_zero bytes_guest bytes_wire
		fault_latency_us/mean fault_latency_us/p50 fault_latency_us/p99 fault_latency_us/p999 fault_latency_us/max
		fault_latency_us/count stages_us integrity/pages_checked integrity/mismatches integrity/guest_errors
		floors/local_fault_us floors/rtt_us floors/stream_bytes_per_s machine versions commit`) {
		m := got
		outer, inner, nested := strings.Cut(name, "/")
		if nested {
			m, _ = got[outer].(map[string]any)
			outer = inner
		}
		if _, ok := m[outer]; !ok {
			t.Errorf("report.json has no field %s", name)
		}
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("temporary files left behind: %v %v", left, err)
	}
}

func TestSummarize(t *testing.T) {
	var samples []time.Duration
	for i := 1000; i >= 1; i-- {
		samples = append(samples, time.Duration(i)*time.Microsecond)
	}
	want := Latency{Mean: 500.5, P50: 500, P90: 900, P99: 990, P999: 999, Max: 1000, Count: 1000}
	if got := Summarize(samples); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := Summarize(nil); got != (Latency{}) {
		t.Errorf("no samples: got %+v", got)
	}
}

func TestVerdict(t *testing.T) {
	for _, tc := range []struct {
		v    Verdict
		want bool
	}{
		{Verdict{Promised: 1.3, Value: SpreadOf([]float64{1.1, 9, 1.2})}, true},
		{Verdict{Promised: 1.3, Value: SpreadOf([]float64{1.1, 1.6})}, false},
		{Verdict{Promised: 0.8, AtLeast: true, Value: SpreadOf([]float64{0.9})}, true},
		{Verdict{Promised: 0.8, AtLeast: true, Value: SpreadOf([]float64{0.7})}, false},
		{Verdict{Promised: 1}, false},
		{Verdict{Info: true, Value: SpreadOf([]float64{7})}, true},
	} {
		if got := tc.v.Met(); got != tc.want {
			t.Errorf("%+v: Met() = %v", tc.v, got)
		}
	}
}

func TestIntegrityNeedsACheck(t *testing.T) {
	for _, tc := range []struct {
		i    Integrity
		want bool
	}{
		{Integrity{}, false},
		{Integrity{PagesChecked: 1}, true},
		{Integrity{PagesChecked: 1, Mismatches: 1}, false},
		{Integrity{PagesChecked: 1, GuestErrors: 1}, false},
		{Integrity{PagesChecked: 1, ClientErrors: 1}, false},
	} {
		if got := tc.i.OK(); got != tc.want {
			t.Errorf("%+v: OK() = %v", tc.i, got)
		}
	}
}

func TestTextNamesTheFailure(t *testing.T) {
	r := New()
	r.Integrity = Integrity{PagesChecked: 10, Mismatches: 2}
	r.Stages = map[string]Latency{"wire": {P50: 70}, "other": {P50: 1}}
	var b strings.Builder
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"FAILED", "2 differ", "  wire", "  other", "not within"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("summary lacks %q:\n%s", want, b.String())
		}
	}
}

func sampleTimeline() *Timeline {
	t := &Timeline{Title: "web1 moves from host A to host B under load", DrainedS: 2.35, DowntimeMS: 9.7, BeforePerSec: 310}
	start := time.Unix(0, 0)
	var bins []uint64
	for i := range 150 {
		at := float64(i-50) / 10
		rate := 31 + 2*math.Sin(float64(i))
		if at >= 0 {
			rate *= 1 - 0.8*math.Exp(-at/0.6)
		}
		bins = append(bins, uint64(rate))
	}
	t.AddBins(start, start.Add(5*time.Second), 100*time.Millisecond, bins)
	for i := range 80 {
		at := float64(i) / 10
		t.Samples = append(t.Samples, Sample{
			T: at, Demand: uint64(4000 * (1 - math.Exp(-at/0.4))),
			Resident: uint64(131072 * math.Min(1, at/2.35)), Total: 131072,
		})
	}
	return t
}

func TestTimelineFiles(t *testing.T) {
	dir := t.TempDir()
	if keep := os.Getenv("PAGEWARP_PLOT_DIR"); keep != "" {
		dir = keep
	}
	svg, img := filepath.Join(dir, "timeline.svg"), filepath.Join(dir, "timeline.png")
	if err := WriteTimeline(sampleTimeline(), svg, img); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(svg)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<svg", "switch-over", "Demand faults", "resident"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s lacks %q", svg, want)
		}
	}
	f, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	if b := m.Bounds(); b.Dx() < 800 || b.Dy() < 600 {
		t.Errorf("picture is %d×%d, too small to read", b.Dx(), b.Dy())
	}
	if err := WriteTimeline(&Timeline{}, svg, img); err == nil {
		t.Error("an empty timeline was drawn")
	}
}
