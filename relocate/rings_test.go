package relocate

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"pgregory.net/rapid"
)

// newDiskRig is a rig whose machine has a virtio disk, of which the firmware has set
// the queue up.
func newDiskRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, root: vmtest.Dir(t)}
	r.a, r.b = startHost(t, r.root, "a", nil), startHost(t, r.root, "b", nil)
	r.proxy = vmtest.StartProxy(t, r.b.addr)
	r.vm = vmtest.Start(t, r.a.dir, "-blockdev", "null-co,node-name=d,size=1048576", "-device", "virtio-blk-pci,drive=d")
	v, err := qemu.Connect(t.Context(), r.vm.QMP)
	if err != nil {
		t.Fatal(err)
	}
	vmtest.Wait(t, "the firmware to set the disk's queue up", func() bool {
		rings, err := v.Rings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(rings) > 0
	})
	v.Close()
	r.want = vmtest.Pattern(7)
	vmtest.WritePattern(t, r.vm.RAM, r.want)
	r.a.adopt(t, "web1", r.vm.QMP)
	t.Cleanup(func() { killAll(t, r.b) })
	return r
}

// TestRings: the pages of the machine's virtqueue come before its VMM touches them,
// unless the operator has chosen otherwise; the machine and its memory arrive.
func TestRings(t *testing.T) {
	for name, c := range map[string]struct {
		o     Options
		pages bool // come
	}{
		"by default": {Options{}, true}, "named": {Options{Precache: Rings + ",sweep"}, true},
		"not named": {Options{Precache: "sweep"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newDiskRig(t)
			r.arrives(c.o)
			r.runsAt(r.b)
			var got PolicyCount
			for _, p := range r.b.last(t, RoleDestination).Policies {
				if p.Name == Rings {
					got = p
				}
			}
			if c.pages != (got.Pages > 0) || got.Runs > got.Pages || got.Pages > 16 {
				t.Errorf("rings: %+v, want some: %v", got, c.pages)
			}
		})
	}
}

// TestRingsHostile: lists of a source that lies are said to be wrong, and the
// relocation goes on.
func TestRingsHostile(t *testing.T) {
	for name, c := range map[string]struct {
		run  pagecache.Run
		want string
	}{
		"no such region":  {pagecache.Run{Region: 9, Count: 1}, "there is no region 9"},
		"no such page":    {pagecache.Run{First: 1 << 40, Count: 1}, "pages 1099511627776+1: region 0 has"},
		"too many pages":  {pagecache.Run{Count: 4096}, "more than 256 pages"},
		"pages that wrap": {pagecache.Run{First: 1<<64 - 1, Count: 2}, "pages 18446744073709551615+2"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.relocate(r.b.addr, Options{})
			body, err := json.Marshal(hotMsg{Method: ringsMethod, Runs: appendRuns(nil, []pagecache.Run{c.run})})
			if err != nil {
				t.Fatal(err)
			}
			r.atPhase(r.b, PhasePreparing, func() { // the machine has no queue: no other list comes
				r.b.mu.Lock()
				defer r.b.mu.Unlock()
				for _, in := range r.b.incoming {
					in.optional(tcp.Message{Kind: msgHot, Body: body})
				}
			})
			if s := r.awaitEnd(); s.Phase != PhaseDone {
				t.Fatalf("ended %s: %s", s.Phase, s.Error)
			}
			r.b.await(t, "web1", PhaseDone)
			r.runsAt(r.b)
			events, _ := r.b.events.after(0)
			if !slices.ContainsFunc(events, func(e Event) bool {
				return e.Kind == "warning" && strings.Contains(e.Text, "list of virtqueues is ignored") && strings.Contains(e.Text, c.want)
			}) {
				t.Errorf("no warning has %q: %+v", c.want, events)
			}
		})
	}
}

// TestJoinPages: every page is in one run, in order, up to the bound.
func TestJoinPages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		page := rapid.Custom(func(t *rapid.T) pagecache.Run {
			return pagecache.Run{Region: rapid.Uint32Range(0, 2).Draw(t, "region"), First: rapid.Uint64Range(0, 400).Draw(t, "page"), Count: 1}
		})
		pages := rapid.SliceOfN(page, 0, 600).Draw(t, "pages")
		want := map[pagecache.Run]bool{}
		for _, p := range pages {
			want[p] = true
		}
		n := 0
		last := pagecache.Run{}
		for i, r := range joinPages(slices.Clone(pages)) {
			if i > 0 && (r.Region < last.Region || r.Region == last.Region && r.First <= last.First+uint64(last.Count)) {
				t.Fatalf("run %+v after %+v", r, last)
			}
			last = r
			for k := range uint64(r.Count) {
				if n++; !want[pagecache.Run{Region: r.Region, First: r.First + k, Count: 1}] {
					t.Fatalf("page %d of %+v was not given", k, r)
				}
			}
		}
		if n != min(len(want), faultd.MaxExpected) {
			t.Fatalf("%d pages of %d", n, len(want))
		}
	})
}
