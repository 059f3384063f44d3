//go:build rdmavm

package rdma

import (
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/softroce"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/vishvananda/netlink"
)

// There is a device, and no way to the peer's, which the kernel finds out in a second: all
// comes by FETCH, meanwhile and then, over one connection, although the source tells of
// chunks as soon as it is connected itself.
func TestNoWay(t *testing.T) {
	link, err := netlink.LinkByName(softroce.Netdev)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetARPOn(link); err != nil { // or whoever is asked for is taken to be there
		t.Fatal(err)
	}
	defer func() {
		if err := netlink.LinkSetARPOff(link); err != nil {
			t.Error(err)
		}
	}()
	for _, end := range []string{"destination", "source"} {
		t.Run(end, func(t *testing.T) {
			lost := lostDevice(t)
			o := rigOptions{srcDev: lost, export: ExportOptions{Pin: PinAll}}
			if end == "source" {
				o = rigOptions{dstDev: lost}
			}
			s := newStream(t, 4096, o)
			begin, during := time.Now(), 0
			s.receive(s.post(0, 4096))
			took := time.Since(begin)
			await(t, "the end of RDMA", func() bool {
				during++
				s.receive(s.post(0, 64)) // whole pages that are dropped; it has Receive look
				return len(s.down) > 0
			})
			if end == "source" {
				select {
				case err := <-s.trouble:
					if !strings.Contains(err.Error(), "ibv_modify_qp to RTR") {
						t.Error(err)
					}
				default:
					t.Error("the source's operator was not told")
				}
			}
			s.fell("ibv_modify_qp to RTR")
			s.whole(4096)
			if reads, _, _ := counts(s.f); reads != 0 {
				t.Errorf("%d READs", reads)
			}
			t.Logf("64 fetches took %v; %d more were answered until RDMA was over, %v from the beginning", took, during, time.Since(begin))
		})
	}
}

// lostDevice tells of an address that nobody has.
func lostDevice(t *testing.T) *Device {
	d := testDevice(t)
	copy(d.caps.gid[:], []byte{10: 0xff, 11: 0xff, 12: 10, 13: 77, 14: 0, 15: 9})
	return d
}

// Both ends are connected, and what the destination sends does not arrive: no fault waits
// until that is found out.
func TestNoPackets(t *testing.T) {
	s := newStream(t, 1024, rigOptions{kind: transport.Demand, srcDev: lostDevice(t), export: ExportOptions{Pin: PinAll}, fetch: FetchOptions{DeadAfter: 20 * time.Second}})
	await(t, "the chunks", func() bool {
		s.f.mu.Lock()
		defer s.f.mu.Unlock()
		return s.f.q != nil && s.f.table.regions[1].states[0] == mapped
	})
	s.receive(s.post(0, 1024))
	s.whole(1024)
	if !s.f.Up() {
		t.Error("the faults were answered after the end of RDMA")
	}
	if reads, _, beneath := counts(s.f); reads != 0 || beneath == 0 {
		t.Errorf("%d READs, %d fetches beneath", reads, beneath)
	}
	if n := s.f.Stats().Posted.Load(); n != 1 {
		t.Errorf("%d READs are under way, want the first", n)
	}
}
