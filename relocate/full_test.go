package relocate

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// fill takes all of the file system under dir but so many bytes.
func fill(t *testing.T, dir string, leave int64) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, max(0, int64(st.Bavail)*st.Bsize-leave)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestStateDirectoryIsFull: with any little room in the state directory, at either host, a
// relocation is rolled back or succeeds. The claims of the destination are a mapped file
// there: a store to a page of it that cannot be had would be the end of the daemon.
func TestStateDirectoryIsFull(t *testing.T) {
	for _, full := range []string{"a", "b"} {
		t.Run("at "+full, func(t *testing.T) {
			root := vmtest.Dir(t)
			state := filepath.Join(root, full, "state")
			otherFileSystem(t, state, "1m")
			a, b := startHost(t, root, "a", nil), startHost(t, root, "b", nil)
			t.Cleanup(func() { killAll(t, b); a.stop(t); b.stop(t) }) // before the file system goes
			vm := vmtest.Start(t, a.dir)
			want := vmtest.Pattern(4)
			vmtest.WritePattern(t, vm.RAM, want)
			a.adopt(t, "web1", vm.QMP)
			moved, back := false, 0
			for pages := int64(0); pages < 16 && !moved; pages++ {
				fill(t, state, pages*4096)
				st, err := a.Relocate(t.Context(), "web1", b.addr, Options{})
				if err != nil {
					t.Fatal(err)
				}
				var end Status
				vmtest.Wait(t, "the end of it", func() bool {
					for _, s := range a.Statuses() {
						if s.Session == st.Session && s.Phase.Final() {
							end = s
						}
					}
					return end.Session != ""
				})
				b.awaitIdle(t)
				switch end.Phase {
				case PhaseDone:
					moved = true
				case PhaseRolledBack:
					back++
					vmtest.Wait(t, "the machine to run on", func() bool { return runState(t, a, "web1") == "running" })
				default:
					t.Fatalf("with %d pages left it is %s: %s", pages, end.Phase, end.Error)
				}
				t.Log(fmt.Sprint(pages, " pages left: ", end.Phase, " ", end.Error))
			}
			if !moved || back == 0 {
				t.Errorf("moved %v, rolled back %d times", moved, back)
			}
			vmtest.CheckPattern(t, filepath.Join(b.dir, "vm.mem"), want)
		})
	}
}

// TestResidencyHasItsMemory: claims for which the state directory has no room are an error
// before they are made use of.
func TestResidencyHasItsMemory(t *testing.T) {
	dir := filepath.Join(vmtest.Dir(t), "state")
	otherFileSystem(t, dir, "64k")
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	token, err := newToken()
	if err != nil {
		t.Fatal(err)
	}
	g := &guestMemory{in: newIncoming(&Host{journal: j, ctx: t.Context(), log: slog.New(slog.DiscardHandler)}, &record{Token: token, Role: RoleDestination})}
	defer g.in.cancel(nil)
	if _, err := g.residency(transport.Region{Pages: 1 << 20, PageSize: 4096}, true); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("claims of a mebi-page in 64 KiB: %v", err)
	}
	for _, table := range g.tables {
		if err := sysmem.Unmap(table); err != nil {
			t.Error(err)
		}
	}
}

// TestStateDirectoryFillsInTheDrain: a source that cannot write down what it does lets go of the
// machine all the same, which is memory of the host's.
func TestStateDirectoryFillsInTheDrain(t *testing.T) {
	root := vmtest.Dir(t)
	state := filepath.Join(root, "a", "state")
	otherFileSystem(t, state, "1m")
	a, b := startHost(t, root, "a", nil), startHost(t, root, "b", nil)
	t.Cleanup(func() { killAll(t, b); a.stop(t); b.stop(t) }) // before the file system goes
	vm := vmtest.Start(t, a.dir)
	want := vmtest.Pattern(5)
	vmtest.WritePattern(t, vm.RAM, want)
	a.adopt(t, "web1", vm.QMP)
	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{Bandwidth: slow}); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseDraining)
	b.await(t, "web1", PhaseDraining)
	fill(t, state, 0)
	if err := b.SetBandwidth("web1", 0); err != nil {
		t.Error(err)
	}
	a.await(t, "web1", PhaseDone)
	b.await(t, "web1", PhaseDone)
	select {
	case <-vm.Done:
	case <-time.After(10 * time.Second):
		t.Error("the source's QEMU is still there")
	}
	if exists(vm.RAM) {
		t.Error("the source's memory is still there")
	}
	vmtest.CheckPattern(t, filepath.Join(b.dir, "vm.mem"), want)
}
