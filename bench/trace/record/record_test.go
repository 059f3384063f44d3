package record

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/bench/trace"
	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/relocate"
)

func TestTouches(t *testing.T) {
	start := time.Unix(100, 0)
	at := func(us int64) int64 { return start.UnixNano() + us*1000 }
	log := []relocate.FaultRecord{
		{At: at(-50), Page: 1, Class: faultd.FaultFetched}, // the device state's
		{At: at(-20), Page: 1, Class: relocate.FaultServed},
		{At: at(10), Page: 2, Class: faultd.FaultFetched},
		{At: at(110), Page: 2, Class: relocate.FaultServed},
		{At: at(115), Page: 2, Class: faultd.FaultResident}, // touched before
		{At: at(130), Page: 3, Class: faultd.FaultZero},
		{At: at(140), Page: 4, Class: faultd.FaultFetched},
		{At: at(150), Page: 5, Class: faultd.FaultFetched}, // another vCPU's
	}
	us := time.Microsecond
	want := []trace.Touch{
		{At: 10 * us, Think: 10 * us, Page: 2},
		{At: 130 * us, Think: 20 * us, Page: 3, Class: trace.Zero},
		{At: 140 * us, Think: 10 * us, Page: 4},
		{At: 150 * us, Page: 5},
	}
	if got, err := touches(log, start); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, want %v: %v", got, want, err)
	}
	if _, err := touches(log[:2], start); err == nil {
		t.Error("a log without one touch makes a trace")
	}
}

func TestReadLogWantsOne(t *testing.T) {
	dir := t.TempDir()
	for i, want := range []string{"0 fault logs", "", "2 fault logs"} {
		if i > 0 {
			if err := os.WriteFile(filepath.Join(dir, strings.Repeat("x", i)+".faults"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := readLog(dir); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%d logs: %v", i, err)
		}
	}
}

func TestZeroRuns(t *testing.T) {
	const pages = 2000 // more than one read
	f, err := os.Create(filepath.Join(t.TempDir(), "mem"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(pages * pageSize); err != nil {
		t.Fatal(err)
	}
	for _, p := range []int64{0, 3, 1000, 1001} {
		if _, err := f.WriteAt([]byte{1}, p*pageSize+77); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(make([]byte, 400*pageSize), 1300*pageSize); err != nil { // zero, and no hole
		t.Fatal(err)
	}
	got, n, err := zeroRuns(f.Name())
	want := [][2]uint64{{1, 2}, {4, 996}, {1002, pages - 1002}}
	if err != nil || n != pages || !slices.Equal(got, want) {
		t.Errorf("%v of %d pages, want %v: %v", got, n, want, err)
	}
}

// TestSettings: the simulation has the policies of the real relocations.
func TestSettings(t *testing.T) {
	list, err := pagecache.Policies(strings.Split(realPolicies, ","))
	if err != nil {
		t.Fatal(err)
	}
	sim, err := trace.MakePolicies(simulatedPolicies, &trace.Trace{})
	if err != nil || len(sim) != len(list) {
		t.Fatalf("%d policies, %d simulated: %v", len(list), len(sim), err)
	}
	for i := range list {
		if list[i].Name() != sim[i].Name() {
			t.Errorf("policy %d is %s, simulated %s", i, list[i].Name(), sim[i].Name())
		}
	}
}

// TestAsRecorded: a link with a limit has one queue, one without has none that
// connections share.
func TestAsRecorded(t *testing.T) {
	tr := &trace.Trace{Link: trace.Measured{LocalFaultUS: 6, RTTUS: 60, BytesPerSec: 4e8, DemandTotalUS: 85}}
	us := time.Microsecond
	o := AsRecorded(tr)
	if !o.Fair || o.Bandwidth != 3.2e9 || o.RTT != 60*us || o.LocalFault != 6*us || o.ServeDemand != 25*us {
		t.Errorf("without a limit: %+v", o)
	}
	tr.Link.LinkBitsPerSec, tr.Link.DemandTotalUS = 1e9, 50
	if o = AsRecorded(tr); o.Fair || o.Bandwidth != 1e9 || o.ServeDemand != us {
		t.Errorf("1 Gbit/s: %+v", o)
	}
}

// Of several relocations those that failed, or damaged the guest, are told, and do
// not count; the others keep their numbers.
func TestRelocations(t *testing.T) {
	now := time.Now()
	status := &relocate.Status{Resumed: now, Drained: now.Add(time.Second), PagesDemand: 10, PagesPrecache: 90, BytesWire: 55 * pageSize}
	rs := relocationsOf([]engine.Row{
		{Run: 1, Status: status}, {Run: 2, Error: "given up", Status: status}, {Run: 3, BadPages: 4, Status: status}, {Run: 4}, {Run: 5, Status: status},
	})
	if len(rs.real) != 2 || !slices.Equal(rs.runs, []int{1, 5}) || len(rs.ratios) != 2 || rs.ratios[0] != 0.5 || rs.real[1].DrainS != 1 {
		t.Errorf("%+v", rs)
	}
	want := []string{"run 2: given up", "run 3: the guest's memory was damaged: 4 checks failed", "run 4: the destination's daemon told nothing of it"}
	if !slices.Equal(rs.failures, want) {
		t.Errorf("failures %q, want %q", rs.failures, want)
	}
	r := Recording{Trace: &trace.Trace{}, Real: rs.real, Runs: rs.runs, Failures: rs.failures, Simulated: &trace.Result{}}
	var b bytes.Buffer
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"real, run 1", "real, run 5", "FAILED: run 2: given up"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// Where there is nothing to compare with, there is no error of 0 %.
func TestNoError(t *testing.T) {
	s, err := trace.ParseSynthetic("zipf:ram=16,ws=8,zero=2,touches=4000,think=10us")
	if err != nil {
		t.Fatal(err)
	}
	tr, err := s.Make()
	if err != nil {
		t.Fatal(err)
	}
	tr.Link = trace.Measured{LocalFaultUS: 6, RTTUS: 60, BytesPerSec: 1e9, WireRatio: 0.5, DemandTotalUS: 85}
	tr.Real = &trace.Real{DrainS: 0.1} // as of a guest that never met an absent page
	r, err := check(t.Context(), tr)
	if err != nil || r.Simulated.DemandPages == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r.DrainError == nil || r.FaultError != nil || r.StallError != nil {
		t.Errorf("errors %v %v %v, want the first only", r.DrainError, r.FaultError, r.StallError)
	}
	if percent(r.FaultError) != "-" {
		t.Errorf("%q", percent(r.FaultError))
	}
}
