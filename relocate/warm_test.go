package relocate

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// withCache gives a host a cache of 1 GiB beside its RAM files.
func withCache(root, name string) func(*HostConfig) {
	return func(c *HostConfig) {
		c.Cache = CacheConfig{Dir: filepath.Join(root, name+"-cache"), Size: 1 << 30}
	}
}

// noise is memory that neither compresses nor repeats.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// moved is a machine that went from a to b, leaving its memory in a's cache.
type moved struct {
	a, b *testHost
	want []byte // what its RAM holds from noiseAt on
	path string // of the RAM file in a's cache
}

const noiseAt, noiseBytes = 32 << 20, 40 << 20

func moveOnce(t *testing.T) *moved {
	t.Helper()
	root := vmtest.Dir(t)
	m := &moved{a: startHost(t, root, "a", withCache(root, "a")), b: startHost(t, root, "b", withCache(root, "b")), want: noise(1, noiseBytes)}
	vm := vmtest.Start(t, m.a.dir)
	vmtest.WritePattern(t, vm.RAM, m.want)
	m.a.adopt(t, "web1", vm.QMP)
	if _, err := m.a.Relocate(t.Context(), "web1", m.b.addr, Options{}); err != nil {
		t.Fatal(err)
	}
	m.a.await(t, "web1", PhaseDone)
	m.b.await(t, "web1", PhaseDone)
	vmtest.Wait(t, "the memory in the cache", func() bool { es, err := m.a.Cache(); return err == nil && len(es) == 1 })
	es, err := m.a.Cache()
	if err != nil || es[0].VM != "web1" || es[0].Problem != "" || es[0].Bytes < noiseBytes {
		t.Fatalf("the cache has %+v, %v", es, err)
	}
	m.path = es[0].file(0)
	t.Cleanup(func() { killAll(t, m.a); killAll(t, m.b) })
	return m
}

// change writes other noise into part of the machine's memory at b.
func (m *moved) change(t *testing.T, from, n int) {
	t.Helper()
	copy(m.want[from:], noise(2, n))
	vmtest.WritePattern(t, filepath.Join(m.b.dir, "vm.mem"), m.want)
}

// back moves the machine back, paused, and compares all of its memory.
func (m *moved) back(t *testing.T, o Options) Status {
	t.Helper()
	o.Paused, o.KeepSource = true, true
	if _, err := m.b.Relocate(t.Context(), "web1", m.a.addr, o); err != nil {
		t.Fatal(err)
	}
	m.b.await(t, "web1", PhaseDone)
	vmtest.Wait(t, "a to finish", func() bool { return runState(t, m.a, "web1") == "paused" })
	if !bytes.Equal(vmtest.MapRAM(t, filepath.Join(m.a.dir, "vm.mem")), vmtest.MapRAM(t, filepath.Join(m.b.dir, "vm.mem"))) {
		t.Error("the two memory files differ after a paused relocation")
	}
	vmtest.CheckPattern(t, filepath.Join(m.a.dir, "vm.mem"), m.want)
	return m.b.last(t, RoleSource)
}

// said looks for a warning of a host's.
func (h *testHost) said(t *testing.T, text string) {
	t.Helper()
	events, cancel := h.Subscribe(0)
	defer cancel()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case e := <-events:
			if strings.Contains(e.Text, text) {
				return
			}
		case <-deadline:
			t.Errorf("nobody said %q", text)
			return
		}
	}
}

func TestWarmReturn(t *testing.T) {
	m := moveOnce(t)
	first := m.a.last(t, RoleSource)
	m.change(t, 1<<20, 4<<20) // a tenth
	s := m.back(t, Options{})
	t.Logf("first trip %d bytes, return %d; %d candidates, %d the same, %d bytes saved", first.BytesWire, s.BytesWire, s.PagesCandidate, s.PagesSame, s.BytesSaved)
	if s.BytesWire > first.BytesWire/3 {
		t.Errorf("the return took %d bytes, more than a third of the first trip's %d", s.BytesWire, first.BytesWire)
	}
	if s.PagesSame < (noiseBytes-4<<20)/4096 || s.BytesSaved != s.PagesSame*4096 || s.PagesCandidate < s.PagesSame {
		t.Errorf("%d candidates, %d pages the same, %d bytes saved", s.PagesCandidate, s.PagesSame, s.BytesSaved)
	}
	if es, err := m.a.Cache(); err != nil || len(es) != 0 {
		t.Errorf("the cache still has %+v, %v, though the machine runs here", es, err)
	}
}

func TestWarmReturnOnDemandOnly(t *testing.T) {
	m := moveOnce(t)
	if _, err := m.b.Relocate(t.Context(), "web1", m.a.addr, Options{OnDemandOnly: true, KeepSource: true}); err != nil {
		t.Fatal(err)
	}
	// The guest's own touches, in its BIOS, find pages that are here.
	vmtest.Wait(t, "pages confirmed on demand", func() bool {
		for _, s := range m.a.Statuses() {
			if s.Role == RoleDestination {
				return s.PagesSame > 0 && s.PagesDemand > 0 && s.PagesPrecache == 0
			}
		}
		return false
	})
}

// TestWarmBadCache has every damage that a cache can have: the machine comes
// without it, whole, and somebody says so.
func TestWarmBadCache(t *testing.T) {
	for _, tt := range []struct {
		name, said string
		damage     func(t *testing.T, m *moved) Options
	}{
		{"of another machine", "pages are here already", func(t *testing.T, m *moved) Options {
			if err := os.WriteFile(m.path, noise(9, vmtest.RAMBytes), 0o600); err != nil {
				t.Fatal(err)
			}
			return Options{}
		}},
		{"truncated", "used in part", func(t *testing.T, m *moved) Options {
			if err := os.Truncate(m.path, 33<<20+100); err != nil {
				t.Fatal(err)
			}
			return Options{}
		}},
		{"other version", "is of version 7, this daemon reads 1", func(t *testing.T, m *moved) Options {
			rewriteMeta(t, m.path, func(e *CacheEntry) { e.Version = 7 })
			return Options{}
		}},
		{"other layout", "of a machine with other memory", func(t *testing.T, m *moved) Options {
			rewriteMeta(t, m.path, func(e *CacheEntry) { e.Regions[0].PageSize = 2 << 20 })
			return Options{}
		}},
		{"no description", "description cannot be read", func(t *testing.T, m *moved) Options {
			if err := os.WriteFile(filepath.Join(filepath.Dir(m.path), cacheMeta), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			return Options{}
		}},
		{"not a file", "no regular file", func(t *testing.T, m *moved) Options {
			if err := os.Remove(m.path); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mkfifo(m.path, 0o600); err != nil {
				t.Fatal(err)
			}
			return Options{}
		}},
		{"a file elsewhere", "neither in the cache nor in a directory of cache.allow", func(t *testing.T, m *moved) Options {
			return Options{Warm: "/etc/hostname"}
		}},
		{"no such machine", "not in the cache", func(t *testing.T, m *moved) Options { return Options{Warm: "web9"} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := moveOnce(t)
			s := m.back(t, tt.damage(t, m))
			m.a.said(t, tt.said)
			if told := s.WarmProblem != ""; told != (tt.name != "of another machine") || told && !strings.Contains(s.WarmProblem, tt.said) {
				t.Errorf("the source is told %q", s.WarmProblem)
			}
			if tt.name == "truncated" {
				return // what was left of it is of use
			}
			if s.PagesSame != 0 {
				t.Errorf("%d pages are the same as of such a cache", s.PagesSame)
			}
		})
	}
}

func rewriteMeta(t *testing.T, path string, change func(*CacheEntry)) {
	t.Helper()
	name := filepath.Join(filepath.Dir(path), cacheMeta)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var e CacheEntry
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatal(err)
	}
	change(&e)
	if err := writeFileAtomic(name, &e); err != nil {
		t.Fatal(err)
	}
}

// TestWarmTwin names a file: the memory of another machine that ran here.
func TestWarmTwin(t *testing.T) {
	m := moveOnce(t)
	twin := filepath.Join(filepath.Dir(filepath.Dir(m.path)), "twin.mem")
	if err := os.Rename(m.path, twin); err != nil {
		t.Fatal(err)
	}
	if s := m.back(t, Options{Warm: twin}); s.PagesSame < noiseBytes/4096 {
		t.Errorf("%d pages the same", s.PagesSame)
	}
}

// TestWarmDoesNotFit has caches that cannot take the memory of a machine: it is
// freed, and the relocation does not care.
func TestWarmDoesNotFit(t *testing.T) {
	for _, tt := range []struct {
		name, said string
		cache      func(t *testing.T, root string) CacheConfig
	}{
		{"over its size", "the cache may have 8 MiB (cache.size)", func(t *testing.T, root string) CacheConfig {
			return CacheConfig{Dir: filepath.Join(root, "a-cache"), Size: 8 << 20}
		}},
		{"full disk", "no space left on device", func(t *testing.T, root string) CacheConfig {
			dir := filepath.Join(root, "a-cache")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
				t.Fatalf("mount a small tmpfs (this test needs root): %v", err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			})
			return CacheConfig{Dir: dir, Size: 1 << 30}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := vmtest.Dir(t)
			a, b := startHost(t, root, "a", func(c *HostConfig) { c.Cache = tt.cache(t, root) }), startHost(t, root, "b", nil)
			vm := vmtest.Start(t, a.dir)
			want := noise(1, noiseBytes)
			vmtest.WritePattern(t, vm.RAM, want)
			a.adopt(t, "web1", vm.QMP)
			if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{}); err != nil {
				t.Fatal(err)
			}
			a.await(t, "web1", PhaseDone)
			a.said(t, tt.said)
			vmtest.CheckPattern(t, filepath.Join(b.dir, "vm.mem"), want)
			vmtest.Wait(t, "the memory to be freed", func() bool { return !exists(vm.RAM) })
			if es, err := a.Cache(); err != nil || len(es) != 0 {
				t.Errorf("the cache has %+v, %v", es, err)
			}
			killAll(t, b)
		})
	}
}

// TestWarmTakenUp stops the destination's host in mid-drain and starts another in
// its place, then does so with the source's: neither knows of candidates any more.
func TestWarmTakenUp(t *testing.T) {
	for _, which := range []string{"destination", "source"} {
		t.Run(which, func(t *testing.T) {
			m := moveOnce(t)
			m.change(t, 0, noiseBytes/2)
			// Slow enough to be stopped in mid-drain.
			if _, err := m.b.Relocate(t.Context(), "web1", m.a.addr, Options{Bandwidth: 4 << 20, Codec: "none", KeepSource: true, Paused: true}); err != nil {
				t.Fatal(err)
			}
			vmtest.Wait(t, "the drain at a", func() bool {
				for _, s := range m.a.Statuses() {
					if s.Role == RoleDestination {
						return s.Phase == PhaseDraining && s.PagesSame > 0
					}
				}
				return false
			})
			old := m.a
			if which == "source" {
				old = m.b
			}
			cfg := old.cfg
			cfg.Listen = []string{old.addr}
			old.stop(t)
			h, err := NewHost(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			fresh := &testHost{Host: h, dir: old.dir, addr: old.addr, serve: make(chan error, 1)}
			go func() { fresh.serve <- h.Serve() }()
			t.Cleanup(func() { fresh.stop(t) })
			if which == "source" {
				m.b = fresh
			} else {
				m.a = fresh
			}
			vmtest.Wait(t, "the cap to be lifted", func() bool { return m.a.SetBandwidth("web1", 0) == nil })
			vmtest.Wait(t, "the machine at a", func() bool { return runState(t, m.a, "web1") == "paused" })
			if !bytes.Equal(vmtest.MapRAM(t, filepath.Join(m.a.dir, "vm.mem")), vmtest.MapRAM(t, filepath.Join(m.b.dir, "vm.mem"))) {
				t.Error("the two memory files differ")
			}
			vmtest.CheckPattern(t, filepath.Join(m.a.dir, "vm.mem"), m.want)
		})
	}
}

func TestCacheEvictsWhatWasUsedLongestAgo(t *testing.T) {
	root := vmtest.Dir(t)
	c, err := openCache(CacheConfig{Dir: filepath.Join(root, "cache"), Size: 3 << 20})
	if err != nil {
		t.Fatal(err)
	}
	keep := func(vm string, bytes int) []string {
		t.Helper()
		path := filepath.Join(root, vm+".mem")
		if err := os.WriteFile(path, noise(1, bytes), 0o600); err != nil {
			t.Fatal(err)
		}
		gone, err := keepIn(t.Context(), c, vm, []transport.Region{{Name: "ram", Pages: uint64(bytes >> 12), PageSize: 4096}}, []memoryRecord{{Path: path}})
		if err != nil {
			t.Fatal(err)
		}
		return gone
	}
	names := func() (out []string) {
		es, err := c.list()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			out = append(out, e.VM)
		}
		return out
	}
	keep("one", 1<<20)
	keep("two", 1<<20)
	keep("three", 1<<20)
	e, err := c.find("one")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.used(e); err != nil {
		t.Fatal(err)
	}
	if gone := keep("four", 1<<20); len(gone) != 1 || gone[0] != "two" {
		t.Errorf("%q had to go, want two", gone)
	}
	keep("one", 1<<20) // replaces its own
	if got := names(); !slices.Equal(got, []string{"three", "four", "one"}) {
		t.Errorf("the cache has %q", got)
	}
	// For a machine that needs the memory its own goes last.
	if gone, err := c.giveWay(2<<20, "three"); err != nil || !slices.Equal(gone, []string{"four", "one"}) {
		t.Errorf("%q gave way, %v", gone, err)
	}
	if err := c.drop("three"); err != nil {
		t.Fatal(err)
	}
	if err := c.drop("three"); !errors.Is(err, ErrNotCached) {
		t.Errorf("dropped twice: %v", err)
	}
	if err := c.drop("../cache"); !errors.Is(err, ErrNotCached) {
		t.Errorf("dropped from outside: %v", err)
	}
}

func TestCacheDirectoryMustBePrivate(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := openCache(CacheConfig{Dir: dir, Size: 1}); err == nil || !strings.Contains(err.Error(), "mode 0700") {
		t.Errorf("a directory open to all: %v", err)
	}
	if _, err := openCache(CacheConfig{Dir: "cache", Size: 1}); err == nil {
		t.Error("a relative path was taken")
	}
}
