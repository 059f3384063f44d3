package fault

import (
	"net/netip"

	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// way is the network between the two ends: loopback, or a limited link between
// two namespaces.
type way struct{ hosts *rig.Rig } // nil is loopback

func newWay(link uint64, qdisc string) (*way, error) {
	if link == 0 {
		return &way{}, nil
	}
	hosts, err := rig.New("a", "b")
	if err != nil {
		return nil, err
	}
	w := &way{hosts}
	if err := hosts.Host("a").Shape(rig.Shape{BytesPerSecond: link, Qdisc: qdisc}); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// pair is how the floors connect: as the engine does, the source dials.
func (w *way) pair() floor.Pair {
	if w.hosts == nil {
		return floor.Loopback
	}
	// The end that listens is the one that answers, and answers are what fills the
	// limited link.
	a, b := w.hosts.Host("a"), w.hosts.Host("b")
	return floor.Between(a.Addr, a.Listen, b.Dial)
}

// options places an engine at the two ends.
func (w *way) options(o Options) Options {
	if w.hosts != nil {
		a, b := w.hosts.Host("a"), w.hosts.Host("b")
		o.Source, o.Destination, o.Addr = a.Command, b.Command, netip.AddrPortFrom(b.Addr, 0).String()
	}
	return o
}

func (w *way) close() error {
	if w.hosts == nil {
		return nil
	}
	return w.hosts.Close()
}
