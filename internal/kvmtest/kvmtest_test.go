package kvmtest

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
)

const patience = 20 * time.Second

func TestMain(m *testing.M) {
	Main()
	goleak.VerifyTestMain(m)
}

// guest is a VM with its userfaultfd registered over the region.
func guest(t *testing.T, pages int64) (*VM, *uffd.FD, *uffd.Reader, []byte) {
	t.Helper()
	vm, err := Start(t.Context(), pages*page)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vm.Kill)
	u, err := uffd.Open(vm.UFFD)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	if _, err := u.API(uffd.FeatureThreadID); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Register(vm.Addr, vm.Size, uffd.ModeMissing|uffd.ModeMinor); err != nil {
		t.Fatal(err)
	}
	rd, err := u.NewReader(uffd.ReaderConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rd.Close() })
	alias, err := sysmem.MapShared(vm.Memfd, 0, pages*page, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sysmem.Unmap(alias) })
	return vm, u, rd, alias
}

func TestFaultsOfAVCPU(t *testing.T) {
	const pages = 4096 // 16 MiB
	for _, write := range []bool{false, true} {
		vm, u, rd, alias := guest(t, pages)
		type result struct {
			sum uint32
			err error
		}
		done := make(chan result, 1)
		go func() {
			sum, err := vm.Run(0, pages, write)
			rd.Stop()
			done <- result{sum, err}
		}()
		var ev [uffd.Batch]uffd.Event
		served := make(map[uint64]bool)
		var want uint32
		for {
			n, err := rd.Wait(ev[:], patience)
			if errors.Is(err, uffd.ErrStopped) {
				break
			}
			if err != nil {
				t.Fatalf("after %d pages: %v", len(served), err)
			}
			for _, e := range ev[:n] {
				i := (e.Addr - vm.Addr) / page
				if e.Kind != uffd.KindFault || i >= pages {
					t.Fatalf("event %+v", e)
				}
				if !served[i] {
					served[i] = true
					touch.Fill(alias[i*page:][:page], i, 1)
					// A sum that depends on every bit of the number and on its place.
					v := uint32(i)*2654435761 + 12345
					binary.LittleEndian.PutUint32(alias[i*page:], v)
					want += v
				}
				if _, _, err := u.ContinueRange(e.Addr&^(page-1), page, page, 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		got := <-done
		if got.err != nil {
			t.Fatal(got.err)
		}
		if got.sum != want || len(served) != pages {
			t.Errorf("write %v: guest sums %#x over %d pages, want %#x over %d", write, got.sum, len(served), want, pages)
		}
		for i := range uint32(pages) {
			if v := binary.LittleEndian.Uint32(alias[i*page+4:]); write && v != pages-i {
				t.Fatalf("page %d holds %d after the guest's write, want %d", i, v, pages-i)
			}
		}
		// Resident now: a second run takes no fault, of which there is no reader.
		if sum, err := vm.Run(0, pages, false); err != nil || sum != want {
			t.Errorf("second run: %#x, %v; want %#x", sum, err, want)
		}
		vm.Kill()
	}
}

func TestKillInFault(t *testing.T) {
	vm, _, rd, _ := guest(t, 16)
	done := make(chan error, 1)
	go func() { _, err := vm.Run(3, 2, false); done <- err }()
	var ev [1]uffd.Event
	if _, err := rd.Wait(ev[:], patience); err != nil || ev[0].Addr&^(page-1) != vm.Addr+3*page {
		t.Fatalf("event %+v, %v; want a fault of page 3", ev[0], err)
	}
	vm.Kill()
	if err := <-done; !errors.Is(err, touch.ErrDead) {
		t.Errorf("%v, want ErrDead", err)
	}
	if err := unix.Kill(vm.Pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d is still there: %v", vm.Pid, err)
	}
}

func TestBounds(t *testing.T) {
	for _, size := range []int64{0, 100, MaxSize + page} {
		if vm, err := Start(t.Context(), size); err == nil {
			vm.Kill()
			t.Errorf("a region of %d bytes was accepted", size)
		}
	}
	vm, _, _, _ := guest(t, 16)
	if _, err := vm.Run(10, 7, false); err == nil {
		t.Error("pages beyond the region were accepted")
	}
}
