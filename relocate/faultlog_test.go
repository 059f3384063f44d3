package relocate

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/pagecache"
)

func TestFaultLogRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		classes := []faultd.FaultClass{faultd.FaultFetched, faultd.FaultJoined, faultd.FaultInstalling, faultd.FaultResident, faultd.FaultZero, FaultServed, FaultListed}
		want := rapid.SliceOf(rapid.Custom(func(t *rapid.T) FaultRecord {
			r := FaultRecord{
				At: rapid.Int64Range(1, math.MaxInt64).Draw(t, "at"), Page: rapid.Uint64().Draw(t, "page"),
				Region: rapid.Uint32().Draw(t, "region"), Class: rapid.SampledFrom(classes).Draw(t, "class"),
			}
			if r.Class == FaultListed {
				r.Count = rapid.Uint32Range(1, mostListed).Draw(t, "count")
			}
			return r
		})).Draw(t, "records")
		var b []byte
		for _, r := range want {
			b = r.append(b)
		}
		if len(b) != len(want)*FaultRecordSize {
			t.Fatalf("%d bytes of %d records", len(b), len(want))
		}
		cut := rapid.IntRange(0, FaultRecordSize-1).Draw(t, "cut")
		got, err := parseFaults(append(b, make([]byte, cut)...))
		slices.SortStableFunc(want, func(a, b FaultRecord) int {
			return time.Unix(0, a.At).Compare(time.Unix(0, b.At))
		})
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v, want %v: %v", got, want, err)
		}
	})
}

func TestFaultLogDamaged(t *testing.T) {
	good := FaultRecord{At: 7, Page: 1, Class: faultd.FaultZero}.append(nil)
	for name, c := range map[string]struct {
		at   int
		to   byte
		want string
	}{
		"time":  {7, 0x80, "record 1 has the time -"},
		"class": {20, 9, "record 1 has the class 9"},
		"end":   {23, 0x80, "record 1 of the class 4 has 8388608 pages"},
	} {
		t.Run(name, func(t *testing.T) {
			b := append(slices.Clone(good), good...)
			b[FaultRecordSize+c.at] = c.to
			path := filepath.Join(t.TempDir(), "web1-1.faults")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadFaultLog(path); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	if _, err := ReadFaultLog(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that there is not can be read")
	}
}

// TestFaultLogIsBounded: what does not fit is dropped, and close says how much.
func TestFaultLogIsBounded(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	l := &faultLog{file: f, stop: make(chan struct{}), done: make(chan struct{}), buf: make([]byte, 0, 2*FaultRecordSize)}
	now := time.Now()
	if n := testing.AllocsPerRun(1, func() { l.Fault(0, 1, faultd.FaultFetched, now) }); n != 0 {
		t.Errorf("%v allocations a fault", n)
	}
	for range 3 {
		l.Served(0, 1, now)
	}
	go l.run()
	if err := l.close(); err == nil || !strings.Contains(err.Error(), "lacks 3 faults") {
		t.Errorf("close: %v", err)
	}
	if rs, err := ReadFaultLog(f.Name()); err != nil || len(rs) != 2 {
		t.Errorf("%d records: %v", len(rs), err)
	}
}

// TestFaultLogLists: a hot list is in the log, in its order, whatever its length.
func TestFaultLogLists(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	l := &faultLog{file: f, stop: make(chan struct{}), done: make(chan struct{}), buf: make([]byte, 0, 9*FaultRecordSize)}
	go l.run()
	l.Listed([]pagecache.Run{{Region: 1, First: 7, Count: mostListed + 2}, {Region: 0, First: 3, Count: 1}})
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	rs, err := ReadFaultLog(f.Name())
	if err != nil || len(rs) != 3 {
		t.Fatalf("%v, %v", rs, err)
	}
	at := rs[0].At
	want := []FaultRecord{{at, 7, 1, FaultListed, mostListed}, {at, 7 + mostListed, 1, FaultListed, 2}, {at, 3, 0, FaultListed, 1}}
	if !slices.Equal(rs, want) {
		t.Errorf("%v, want %v", rs, want)
	}
}

// TestFaultLog: a relocation with a log writes every fetch of a page on demand,
// and its end; and the hot list.
func TestFaultLog(t *testing.T) {
	dir := filepath.Join(vmtest.Dir(t), "faults")
	r := newRig(t, func(c *HostConfig) { c.FaultLogDir = dir })
	began := time.Now()
	r.arrives(Options{Precache: strings.Join(pagecache.PolicyNames, ",")})
	r.b.awaitIdle(t)
	r.runsAt(r.b)
	logs, err := filepath.Glob(filepath.Join(dir, "web1-*.faults"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("fault logs %v: %v", logs, err)
	}
	rs, err := ReadFaultLog(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	open := map[uint64]bool{}
	fetched, listed := 0, uint64(0)
	for _, x := range rs {
		if x.At < began.UnixNano() || x.At > time.Now().UnixNano() {
			t.Errorf("record %+v is not of this test's time", x)
		}
		switch x.Class {
		case faultd.FaultFetched:
			fetched++
			open[x.Page] = true
		case FaultServed:
			if !open[x.Page] {
				t.Errorf("page %d was served without a fault", x.Page)
			}
			delete(open, x.Page)
		case FaultListed:
			listed += uint64(x.Count)
		}
	}
	s := r.b.last(t, RoleDestination)
	if fetched == 0 || uint64(fetched) > s.PagesDemand+s.PagesPrecache+s.PagesZero {
		t.Errorf("%d fetches are logged, %d pages came on demand", fetched, s.PagesDemand)
	}
	if listed == 0 || listed != s.HotPages {
		t.Errorf("%d pages of a hot list are logged, %d were taken", listed, s.HotPages)
	}
	t.Logf("%d records, %d fetches, %d pages on demand", len(rs), fetched, s.PagesDemand)
}
