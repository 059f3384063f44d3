package relocate

import (
	"fmt"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/rdma"
)

// Values of Options.RDMALand.
const (
	// RDMALandAuto puts pages in place where memory was reserved: those on demand always,
	// precache as far as the link carries it in 50 µs, and not at all on one that is so
	// slow that a fault would wait for it much longer.
	RDMALandAuto    = "auto"
	RDMALandAlias   = "alias"   // in place, where memory was reserved; precache has 128 KiB under way
	RDMALandStaging = "staging" // in a buffer, to be copied
)

// RDMALands are the values of Options.RDMALand.
var RDMALands = []string{RDMALandAuto, RDMALandAlias, RDMALandStaging}

// landInPlace has the memory that was reserved registered for READs, in the background,
// while the machine still runs at its source: before READY is said, so that every channel
// finds it. Where that cannot be, and on the character device, pages come by the staging buffers.
func (in *incoming) landInPlace() {
	dev := in.rdmaDev.Load()
	if dev == nil || in.rec.Options.RDMALand == RDMALandStaging || in.rec.onDevice() {
		return
	}
	var to []rdma.Stretch
	in.memory.engine.EachReserved(func(r transport.Range, mem []byte) {
		to = append(to, rdma.Stretch{Range: r, Memory: mem})
	})
	if len(to) == 0 {
		return
	}
	land, err := rdma.NewLanding(dev, to, rdma.LandingOptions{Budget: in.host.cfg.RDMA.Budget, Report: func(err error) {
		in.warn("not all pages land in place", "err", err)
	}})
	if err != nil {
		in.warn("no page lands in place", "err", fmt.Errorf("RDMA by %s: %w", dev, err))
		return
	}
	in.memory.land = land
	in.landing.Store(land)
}

// closeLanding takes the registrations back. The engine's channels are closed.
func (g *guestMemory) closeLanding() error {
	if g.land == nil {
		return nil
	}
	g.in.landing.Store(nil)
	err := g.land.Close()
	g.land = nil
	return err
}
