package faultd_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/kvmtest"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// A vCPU of KVM goes over memory that is elsewhere: its faults come out of
// KVM_RUN, are served by the engine over TCP, and what it reads adds up.
func TestKVM(t *testing.T) {
	const pages = 8 << 10
	img := newImage(t, pages, 41)
	var sum uint32
	buf := make([]byte, pageSize)
	for i := range pages { // pread: a read of a mapping would fill the holes
		_, err := unix.Pread(img.fd, buf, int64(i)*pageSize)
		must(t, err)
		sum += binary.LittleEndian.Uint32(buf)
	}
	for name, pre := range map[string]bool{"on demand only": false, "with precache": true} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 40*time.Second)
			srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
			vm, err := kvmtest.Start(ctx, pages*pageSize)
			if err != nil {
				t.Fatalf("%v (the test needs /dev/kvm: run it where KVM is, or in a VM with nested virtualisation)", err)
			}
			defer vm.Kill()
			u, err := uffd.Open(vm.UFFD)
			must(t, err)
			mem, err := faultd.NewShared(faultd.UFFDConfig{FD: u,
				Areas: []faultd.Area{{Region: region(pages), Addr: vm.Addr, FD: vm.Memfd}}})
			must(t, err)
			defer mem.Close()
			res, err := pagecache.New(pages)
			must(t, err)
			defer res.Close()
			e := start(t, faultd.Config{Regions: []faultd.Region{{Region: region(pages), Residency: res}},
				Memory: mem.Memory(), Open: srv.open(pages), PrecacheOff: !pre, Log: quiet()})
			defer e.Detach()
			got, err := vm.Run(0, pages, true)
			must(t, err)
			if got != sum {
				t.Errorf("the guest adds up to %#x, want %#x", got, sum)
			}
			s := drained(t, ctx, e)
			if s.Faults == 0 {
				t.Error("the vCPU took no fault")
			}
			// It goes on without the engine, and its writes are there.
			if again, err := vm.Run(0, pages, false); err != nil || again != sum {
				t.Errorf("after the drain: %#x, %v; want %#x", again, err, sum)
			}
			mem2, err := sysmem.MapShared(vm.Memfd, 0, pages*pageSize, false)
			must(t, err)
			defer sysmem.Unmap(mem2)
			for i := range uint32(pages) {
				if v := binary.LittleEndian.Uint32(mem2[i*pageSize+4:]); v != pages-i {
					t.Fatalf("page %d holds %d after the guest's write, want %d", i, v, pages-i)
				}
			}
			t.Logf("%d faults of the vCPU; µs: %+v", s.Faults, s.Stages[faultd.StageTotal].Summary())
		})
	}
}
