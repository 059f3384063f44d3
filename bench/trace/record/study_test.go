package record

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/bench/trace"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/relocate"
)

// stored puts a made trace where a study looks for a recorded one.
func stored(t *testing.T, dir, name string) {
	t.Helper()
	s, err := trace.ParseSynthetic("zipf:ram=16,ws=8,zero=2,touches=4000,think=10us")
	if err != nil {
		t.Fatal(err)
	}
	tr, err := s.Make()
	if err != nil {
		t.Fatal(err)
	}
	tr.Link = trace.Measured{LocalFaultUS: 6, RTTUS: 60, BytesPerSec: 1e9, LinkBitsPerSec: 1e9, WireRatio: 0.5, DemandTotalUS: 85}
	tr.Real = &trace.Real{DrainS: 0.1, PagesDemand: 100, StallS: 0.01}
	if err := tr.Write(filepath.Join(dir, name+".json.gz")); err != nil {
		t.Fatal(err)
	}
}

// A study of a trace that is there has every plan under every condition, and its
// tables and plots.
func TestStudy(t *testing.T) {
	dir := t.TempDir()
	stored(t, dir, "zipf")
	o := StudyOptions{Dir: dir, Reuse: true, Only: []string{"zipf"}, RTTs: []time.Duration{100 * time.Microsecond, 10 * time.Millisecond}, Links: []float64{1e9, 1e10}}
	s, err := RunStudy(t.Context(), o)
	if err != nil || len(s.Traces) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	x := &s.Traces[0]
	if len(x.Results) != 2*2*len(plans) || x.Touches != 4000 || x.HotPages == 0 || x.DrainError == nil || *x.DrainError == 0 {
		t.Errorf("%d results, %d touches, %d listed pages, error %v", len(x.Results), x.Touches, x.HotPages, x.DrainError)
	}
	c := condition{1e10, 0.1}
	plain, around := x.find(c, Plain), x.find(c, ReadAround)
	if plain == nil || around == nil || plain.Faults == 0 || around.DemandPages < 2*around.DemandFetches {
		t.Fatalf("%+v, %+v", plain, around)
	}
	var b bytes.Buffer
	if err := s.Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.10 ms, 1 Gbit/s", "10.0 ms, 10 Gbit/s", "zipf", Listed + ", in %"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	files, err := s.Write(dir)
	if err != nil || len(files) != 3 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// What fails is told beside the rest; a study of nothing is an error; so is one
// that was interrupted, and a workload that there is not.
func TestStudyFails(t *testing.T) {
	dir := t.TempDir()
	stored(t, dir, "zipf")
	if err := os.WriteFile(filepath.Join(dir, "redis.json.gz"), []byte("no trace"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := StudyOptions{Dir: dir, Reuse: true, Only: []string{"redis", "zipf"}, RTTs: []time.Duration{time.Millisecond}, Links: []float64{1e10}}
	s, err := RunStudy(t.Context(), o)
	if err != nil || len(s.Traces) != 1 || !strings.Contains(s.Failures["redis"], "redis.json.gz") {
		t.Fatalf("%+v, %v", s, err)
	}
	var b bytes.Buffer
	if err := s.Text(&b); err != nil || !strings.Contains(b.String(), "FAILED: redis") {
		t.Errorf("%v\n%s", err, b.String())
	}
	o.Only = []string{"redis"}
	if _, err := RunStudy(t.Context(), o); err == nil || !strings.Contains(err.Error(), "not one workload") {
		t.Errorf("a study of nothing: %v", err)
	}
	o.Only = []string{"zpif"}
	if _, err := RunStudy(t.Context(), o); err == nil || !strings.Contains(err.Error(), "did you mean zipf?") {
		t.Errorf("an unknown workload: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("interrupted by the test")
	o.Only, o.Engine.Step = []string{"zipf", "redis"}, func(s string) {
		if strings.HasPrefix(s, "redis") {
			cancel(stop)
		}
	}
	stored(t, dir, "redis")
	if s, err := RunStudy(ctx, o); !errors.Is(err, stop) || len(s.Traces) != 1 {
		t.Errorf("%d traces, %v", len(s.Traces), err)
	}
}

// The last list comes first, each in its order.
func TestHotList(t *testing.T) {
	log := []relocate.FaultRecord{
		{At: 1, Page: 30, Class: relocate.FaultListed, Count: 2}, {At: 1, Page: 10, Class: relocate.FaultListed, Count: 1},
		{At: 2, Page: 5, Class: 0}, {At: 3, Region: 1, Page: 7, Class: relocate.FaultListed, Count: 9},
	}
	want := []pagecache.Run{{Region: 1, First: 7, Count: 9}, {First: 30, Count: 2}, {First: 10, Count: 1}}
	if got := hotList(log); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := hotList(slices.Repeat(log[:1], pagecache.MaxListed+5)); len(got) != pagecache.MaxListed {
		t.Errorf("%d runs", len(got))
	}
}
