package relocate

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
)

// TestImageIsAnotherFile: a source that is started anew in mid-drain finds another file
// where its machine's memory was, or none. It must not serve that to a guest; it says so,
// and serves the memory as soon as it is back.
func TestImageIsAnotherFile(t *testing.T) {
	for _, another := range []bool{true, false} {
		r := newRig(t, nil)
		r.relocate(r.b.addr, Options{Bandwidth: slow, Codec: "none"})
		r.a.await(t, "web1", PhaseDraining)
		r.b.await(t, "web1", PhaseDraining)
		ram := filepath.Join(r.a.dir, "vm.mem")
		r.a.stop(t)
		if err := os.Rename(ram, ram+".aside"); err != nil {
			t.Fatal(err)
		}
		want := "no such file"
		if another {
			want = "is another file than"
			if err := os.WriteFile(ram, noise(3, vmtest.RAMBytes), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r.a = startHost(t, r.root, "a", nil)
		vmtest.Wait(t, "the source to say "+want, func() bool {
			s := r.a.last(t, RoleSource)
			return s.Phase == PhaseDraining && strings.Contains(s.Error, want) && strings.Contains(s.Error, ram)
		})
		r.a.said(t, "the image of a machine that runs elsewhere cannot be served")
		if got := r.b.last(t, RoleDestination); got.Phase != PhaseDraining {
			t.Errorf("the destination is %s: %s", got.Phase, got.Error)
		}
		if err := os.Rename(ram+".aside", ram); err != nil {
			t.Fatal(err)
		}
		vmtest.Wait(t, "both sides to meet again", func() bool { return r.a.last(t, RoleSource).Connected && r.b.last(t, RoleDestination).Connected })
		if err := r.b.SetBandwidth("web1", 0); err != nil {
			t.Error(err)
		}
		r.a.await(t, "web1", PhaseDone)
		r.b.await(t, "web1", PhaseDone)
		r.runsAt(r.b)
	}
}

// TestKilledWhileLettingGo: a source that was killed between the end of its image and the
// journal's word of it learns from the destination that all is done.
func TestKilledWhileLettingGo(t *testing.T) {
	r := newRig(t, nil)
	r.arrives(Options{})
	r.b.awaitIdle(t)
	r.a.stop(t)
	recs, err := r.a.journal.load(time.Now())
	if err != nil || len(recs) != 1 {
		t.Fatalf("journal of the source: %v, %v", recs, err)
	}
	recs[0].Phase, recs[0].Ended = PhaseDraining, time.Time{}
	if err := r.a.journal.write(recs[0]); err != nil {
		t.Fatal(err)
	}
	r.a = startHost(t, r.root, "a", nil)
	r.a.await(t, "web1", PhaseDone)
	r.runsAt(r.b)
}

// TestAnothersFileStays: whoever has put another file in the place of a machine's memory
// while that was served keeps it.
func TestAnothersFileStays(t *testing.T) {
	for _, cache := range []bool{false, true} {
		root := vmtest.Dir(t)
		a, b := startHost(t, root, "a", func(c *HostConfig) {
			if cache {
				withCache(root, "a")(c)
			}
		}), startHost(t, root, "b", nil)
		t.Cleanup(func() { killAll(t, b) })
		vm := vmtest.Start(t, a.dir)
		want := vmtest.Pattern(3)
		vmtest.WritePattern(t, vm.RAM, want)
		a.adopt(t, "web1", vm.QMP)
		if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{Bandwidth: slow, Codec: "none"}); err != nil {
			t.Fatal(err)
		}
		b.await(t, "web1", PhaseDraining)
		if err := os.Rename(vm.RAM, vm.RAM+".aside"); err != nil {
			t.Fatal(err)
		}
		other := noise(5, 1<<20)
		if err := os.WriteFile(vm.RAM, other, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := b.SetBandwidth("web1", 0); err != nil {
			t.Fatal(err)
		}
		a.await(t, "web1", PhaseDone)
		b.await(t, "web1", PhaseDone)
		vmtest.CheckPattern(t, filepath.Join(b.dir, "vm.mem"), want)
		if got, err := os.ReadFile(vm.RAM); err != nil || !bytes.Equal(got, other) {
			t.Errorf("with a cache %v: the other file has %d bytes: %v", cache, len(got), err)
		}
		if es, err := a.Cache(); err != nil || len(es) != 0 {
			t.Errorf("the cache has %+v, %v", es, err)
		}
		a.said(t, "is another file than")
	}
}
