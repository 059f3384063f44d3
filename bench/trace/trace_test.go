package trace

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func made(t *testing.T, text string) *Trace {
	t.Helper()
	s, err := ParseSynthetic(text)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := s.Make()
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func simulated(t *testing.T, tr *Trace, o Options) *Result {
	t.Helper()
	r, err := Simulate(context.Background(), tr, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// On demand only, every figure can be told beforehand.
func TestOnDemandOnly(t *testing.T) {
	tr := made(t, "sequential:ram=8,ws=4,zero=0,touches=1024,think=10us")
	o := Options{Policies: "none", RTT: 200 * time.Microsecond, Bandwidth: 8e9, LocalFault: 40 * time.Microsecond, ServeDemand: 6 * time.Microsecond}
	r := simulated(t, tr, o)
	if r.Faults != 1024 || r.DemandFetches != 1024 || r.DemandPages != 1024 || r.PrecacheFetches != 0 || r.Drained {
		t.Errorf("%+v: want 1,024 faults, each with a fetch, and no precache", r)
	}
	// Local fault, round trip, service, and 4,128 bytes at 1 GB/s.
	want := 40.0 + 200 + 6 + 4.128
	if math.Abs(r.Latency.P50-want) > 0.5 || math.Abs(r.Latency.Max-want) > 0.5 {
		t.Errorf("latency of p50 %v, max %v µs, want %v", r.Latency.P50, r.Latency.Max, want)
	}
	if alone := 0.01024; math.Abs(r.AloneS-alone) > 1e-9 || math.Abs(r.GuestS-alone-1024*want/1e6) > 1e-3 {
		t.Errorf("the guest took %v s, alone %v s; want %v and %v", r.GuestS, r.AloneS, alone+1024*want/1e6, alone)
	}
}

// Nothing is lost and nothing comes twice, whatever the policy and the network.
func TestConserved(t *testing.T) {
	for _, pattern := range Patterns() {
		tr := made(t, pattern+":ram=32,ws=16,zero=8,touches=20000,think=5us")
		for _, policies := range []string{"default", "sweep", "bubbles+sweep", "bubbles-small+follow"} {
			for _, o := range []Options{
				{}, {Loss: 0.02, RTT: 5 * time.Millisecond, Bandwidth: 1e9}, {Fair: true, Bandwidth: 100e6},
				{VCPUs: 8, ReadAround: 16, Demand: 4, Precache: 4}, {Cap: 20e6},
			} {
				o.Policies = policies
				r := simulated(t, tr, o)
				if !r.Drained || r.GuestS == 0 || r.Touches != 20000 {
					t.Fatalf("%s, %+v: drained %v, guest after %v s, %d touches", pattern, o, r.Drained, r.GuestS, r.Touches)
				}
				if r.DemandPages+r.PrecachePages != r.Pages {
					t.Errorf("%s, %+v: %d pages by demand, %d by precache, of %d", pattern, o, r.DemandPages, r.PrecachePages, r.Pages)
				}
				if o.Loss > 0 && r.LostSegments == 0 {
					t.Errorf("%s, %+v: nothing was lost", pattern, o)
				}
			}
		}
	}
}

// A drain cannot be faster than the link or a cap, nor much slower where nothing
// else holds it back.
func TestRates(t *testing.T) {
	tr := made(t, "random:ram=64,ws=8,zero=16,touches=100")
	bytes := 48.0 * (1 << 20)
	for _, c := range []struct {
		o    Options
		rate float64 // bytes/s
	}{
		{Options{Bandwidth: 1e9}, 125e6},
		{Options{Bandwidth: 1e9, Fair: true}, 125e6},
		{Options{Bandwidth: 10e9, Cap: 50e6}, 50e6},
		{Options{Bandwidth: 1e9, RTT: 20 * time.Millisecond}, 125e6},
	} {
		r := simulated(t, tr, c.o)
		if least := bytes / c.rate; r.DrainS < 0.95*least || r.DrainS > 1.6*least {
			t.Errorf("%+v: drained in %v s, want %v to %v", c.o, r.DrainS, 0.95*least, 1.6*least)
		}
	}
}

// More of what should help helps.
func TestDirections(t *testing.T) {
	tr := made(t, "zipf:ram=64,ws=32,touches=50000,think=20us")
	near := simulated(t, tr, Options{RTT: 100 * time.Microsecond})
	far := simulated(t, tr, Options{RTT: 10 * time.Millisecond})
	lossy := simulated(t, tr, Options{RTT: 10 * time.Millisecond, Loss: 0.01})
	none := simulated(t, tr, Options{RTT: 100 * time.Microsecond, Policies: "none"})
	if !(near.StallS < far.StallS && far.DrainS < lossy.DrainS && near.StallS < none.StallS) {
		t.Errorf("stalled for %v s at 0.1 ms, %v at 10 ms, %v without precache; drained in %v s, %v with losses",
			near.StallS, far.StallS, none.StallS, far.DrainS, lossy.DrainS)
	}
	if near.Warmup90S > far.Warmup90S {
		t.Errorf("warm after %v s at 0.1 ms, %v at 10 ms", near.Warmup90S, far.Warmup90S)
	}
}

// A guest that is slow to the end of the simulated time was never warm.
func TestNeverWarm(t *testing.T) {
	tr := made(t, "random:ram=64,ws=32,touches=50000,think=20us")
	o := Options{Policies: "none", RTT: 10 * time.Millisecond, Limit: time.Second}
	r := simulated(t, tr, o)
	if !r.NotWarm || r.GuestS != 0 {
		t.Errorf("not warm %v after %v s, the guest took %v s", r.NotWarm, r.Warmup90S, r.GuestS)
	}
	var b strings.Builder
	if err := (&Comparison{Results: []*Result{r}}).Text(&b); err != nil || strings.Count(b.String(), "never") != 3 {
		t.Errorf("%v\n%s", err, b.String())
	}
	o.Limit, o.Policies, o.RTT = 0, "", 100*time.Microsecond
	if r := simulated(t, tr, o); r.NotWarm || r.GuestS == 0 {
		t.Errorf("with precache: not warm %v, the guest took %v s", r.NotWarm, r.GuestS)
	}
}

func TestDeterministic(t *testing.T) {
	tr := made(t, "zipf:ram=32,ws=16,touches=20000")
	o := Options{Loss: 0.01, VCPUs: 4, RTT: time.Millisecond}
	a, b := simulated(t, tr, o), simulated(t, tr, o)
	a.TookMS, b.TookMS = 0, 0
	if !reflect.DeepEqual(a, b) {
		t.Errorf("two runs differ:\n%+v\n%+v", a, b)
	}
}

func TestFile(t *testing.T) {
	tr := made(t, "stride:ram=16,ws=8,touches=1000,stride=7")
	tr.Real = &Real{DrainS: 1.5, Faults: 3}
	for _, name := range []string{"a.json", "a.json.gz"} {
		path := filepath.Join(t.TempDir(), "made", name)
		if err := tr.Write(path); err != nil {
			t.Fatal(err)
		}
		back, err := Read(path)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(tr, back) {
			t.Errorf("%s: read something else than was written", name)
		}
	}
}

func TestBadFiles(t *testing.T) {
	good, err := json.Marshal(made(t, "random:ram=1,ws=1,zero=0,touches=2"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, from, to, says string }{
		{"no JSON", string(good), "hello", "invalid character"},
		{"cut short", string(good), string(good[:len(good)/2]), "unexpected EOF"},
		{"schema", `"schema":1`, `"schema":9`, "schema is 9"},
		{"outside", `"pages":256`, `"pages":1`, "which there is not"},
		{"huge", `"pages":256`, `"pages":9223372036854775807`, "has 9223372036854775807 pages"},
		{"page size", `"page_size":4096`, `"page_size":0`, "of 0 bytes"},
		{"touch", `[0,`, `[-1,`, "out of range"},
		{"no touches", `"touches":[`, `"touches":[],"x":[`, "not one touch"},
	} {
		text := strings.Replace(string(good), c.from, c.to, 1)
		if text == string(good) {
			t.Fatalf("%s: nothing was replaced in %s", c.name, good)
		}
		path := filepath.Join(t.TempDir(), "t.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want one that says %q", c.name, err, c.says)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, text := range []string{"", "what", "zipf:ram", "zipf:ram=x", "zipf:ws=99999", "zipf:exponent=1", "zipf:exponent=NaN", "random:touches=0", "random:think=-1s", "stride:stride=0", "zipf:nope=1"} {
		if _, err := ParseSynthetic(text); err == nil {
			t.Errorf("pattern %q was taken", text)
		}
	}
	tr := made(t, "random:ram=1,ws=1,zero=0,touches=2")
	for _, o := range []Options{{Policies: "what"}, {Policies: "sweep+"}, {Loss: 1}, {Loss: math.NaN()}, {Bandwidth: 1}, {VCPUs: -1}, {ReadAround: 3}, {Precache: 99}, {Ratio: -1}, {RTT: -1}} {
		if _, err := Simulate(context.Background(), tr, o); err == nil {
			t.Errorf("options %+v were taken", o)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Simulate(ctx, tr, Options{}); err == nil {
		t.Error("a simulation ended well although it was interrupted")
	}
}

func TestPlotAndText(t *testing.T) {
	tr := made(t, "zipf:ram=16,ws=8,touches=5000")
	c := Comparison{Load: tr.Load, Origin: tr.Origin}
	for _, p := range []string{"default", "none"} {
		c.Results = append(c.Results, simulated(t, tr, Options{Policies: p}))
	}
	var b strings.Builder
	if err := c.Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"default", "none", "never", "stalled s"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, b.String())
		}
	}
	dir := t.TempDir()
	if err := c.WritePlot(filepath.Join(dir, "a.svg"), filepath.Join(dir, "a.png")); err != nil {
		t.Fatal(err)
	}
	if i, err := os.Stat(filepath.Join(dir, "a.png")); err != nil || i.Size() < 5000 {
		t.Errorf("the plot has %v bytes (%v)", i, err)
	}
}

func BenchmarkSimulate(b *testing.B) {
	s, err := ParseSynthetic("zipf:ram=1024,touches=200000")
	if err != nil {
		b.Fatal(err)
	}
	tr, err := s.Make()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Simulate(context.Background(), tr, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
