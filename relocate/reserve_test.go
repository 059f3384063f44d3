package relocate

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
	"pgregory.net/rapid"
)

// dataRuns names every page that was written, and holes only next to these.
func TestDataRuns(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "pw-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "ram")
	rapid.Check(t, func(t *rapid.T) {
		const pages = 300
		written := rapid.SliceOfN(rapid.Uint64Range(0, pages-1), 0, 60).Draw(t, "written")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(pages * 4096); err != nil {
			t.Fatal(err)
		}
		for _, p := range written {
			if _, err := f.WriteAt([]byte{1}, int64(p)*4096+5); err != nil {
				t.Fatal(err)
			}
		}
		r := transport.Region{ID: 4, Pages: pages, PageSize: 4096}
		runs, err := dataRuns([]memoryRecord{{Path: path}}, []transport.Region{r})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(written)
		covered, at := 0, uint64(0)
		for i, run := range runs {
			if run.Region != 4 || run.Count == 0 || i > 0 && run.First <= at+reserveGap || run.First+uint64(run.Count) > pages {
				t.Fatalf("runs %v", runs)
			}
			at = run.First + uint64(run.Count)
			last := run.First - 1
			for _, p := range written {
				if p < run.First || p >= at {
					continue
				}
				covered++
				if p != last && p-last > reserveGap+1 {
					t.Fatalf("run %v has a hole of %d pages before page %d", run, p-last-1, p)
				}
				last = p
			}
			if last != at-1 {
				t.Fatalf("run %v ends with a hole", run)
			}
		}
		if covered != len(written) {
			t.Fatalf("runs %v have %d of %d pages: %v", runs, covered, len(written), written)
		}
	})
}

// A list as long as it may be, of a memory in pieces, fits into a message.
func TestDataRunsAreBounded(t *testing.T) {
	runs := make([]pagecache.Run, maxDataRuns)
	for i := range runs {
		runs[i] = pagecache.Run{First: uint64(i) * 1 << 20, Count: 1 << 19}
	}
	b := appendRuns(nil, runs)
	if got, err := parseRuns(b); err != nil || len(got) != maxDataRuns || len(b) > 300<<10 {
		t.Errorf("%d of %d runs in %d bytes: %v", len(got), maxDataRuns, len(b), err)
	}
	if maxDataRuns > pagecache.MaxListed || reservePages%faultd.ReserveGranule != 0 {
		t.Error("the bounds do not fit each other")
	}
}

// TestReservedRelocation moves a guest that writes, paused, to a host that reserves: every
// page is the same, and the memory takes no more there than at the source.
func TestReservedRelocation(t *testing.T) {
	root := vmtest.Dir(t)
	a, b := startHost(t, root, "a", nil), startHost(t, root, "b", func(cfg *HostConfig) { cfg.Reserve = DefaultReserve })
	vm := vmtest.Start(t, a.dir, vmtest.Writer(t)...)
	want := noise(1, vmtest.WriterOffset-noiseAt)
	vmtest.Writes(t, vm.RAM)
	vmtest.WritePattern(t, vm.RAM, want)
	a.adopt(t, "web1", vm.QMP)
	t.Cleanup(func() { killAll(t, b) })
	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{Paused: true, KeepSource: true}); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseDone)
	b.await(t, "web1", PhaseDone)
	blocks := func(h *testHost) uint64 {
		n, err := memoryRecord{Path: filepath.Join(h.dir, "vm.mem")}.allocated()
		if err != nil {
			t.Fatal(err)
		}
		return uint64(n) / 4096
	}
	source, here := blocks(a), blocks(b) // before the comparison, which touches holes
	sameMemory(t, a, b, want)
	s := b.last(t, RoleDestination)
	t.Logf("%d pages reserved, %d in memory at the source, %d here, %d of them by precache", s.PagesReserved, source, here, s.PagesPrecache)
	if least := uint64(len(want)) / 4096 * 9 / 10; s.PagesReserved < least || s.PagesReserved > source+reservePages {
		t.Errorf("%d pages were reserved, of %d that the source has", s.PagesReserved, source)
	}
	if here > source+2*zeroGapPages {
		t.Errorf("the memory takes %d pages here, %d at the source", here, source)
	}
}

// zeroGapPages are some that precache writes though they are zero, between others.
const zeroGapPages = 256
