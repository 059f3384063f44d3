package rig

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

// Shape is a limit on a host's uplink, the same in both directions.
type Shape struct {
	// BytesPerSecond is the rate.
	BytesPerSecond uint64
	// Burst is how many bytes may go at once; 0 is what the rate carries in
	// 2 ms, and 64 KiB at least.
	Burst uint32
	// Queue is how long a packet may wait before it is dropped; 0 is 50 ms.
	Queue time.Duration
	// Qdisc is what orders the packets that wait: "" is one queue, first in, first out,
	// as a switch's; QdiscCard that of a network card under Linux's default.
	Qdisc string
}

// QdiscCard is pfifo_fast: three queues by the packets' priority, the more urgent one
// first. It bounds packets, not the time that they wait.
const QdiscCard = "pfifo_fast"

// Shape limits the host's uplink by a token bucket filter (tc-tbf(8)) at each
// of its ends; a second call replaces the limit.
func (h *Host) Shape(s Shape) error {
	if s.BytesPerSecond == 0 {
		return fmt.Errorf("shape the uplink of host %s: a rate of 0 bytes/s would stop it; use Cut", h.Name)
	}
	if s.Burst == 0 {
		s.Burst = uint32(min(max(s.BytesPerSecond/500, 64<<10), 1<<30))
	}
	if s.Queue == 0 {
		s.Queue = 50 * time.Millisecond
	}
	return h.bothEnds(func(nl *netlink.Handle, l netlink.Link) error {
		limit := uint64(float64(s.BytesPerSecond)*s.Queue.Seconds()) + uint64(s.Burst)
		q := &netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       s.BytesPerSecond,
			Limit:      uint32(min(limit, 1<<31)),
			Buffer:     netlink.Xmittime(s.BytesPerSecond, s.Burst),
		}
		if err := nl.QdiscReplace(q); err != nil {
			return fmt.Errorf("tbf on %s: %w; the kernel needs CONFIG_NET_SCH_TBF", l.Attrs().Name, err)
		}
		if s.Qdisc == "" {
			return nil
		}
		inner := &netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.MakeHandle(1, 1)},
			QdiscType:  s.Qdisc,
		}
		if err := nl.QdiscReplace(inner); err != nil {
			return fmt.Errorf("queue %s on %s: %w", s.Qdisc, l.Attrs().Name, err)
		}
		return nil
	})
}

// Unshape takes the limit of Shape away; without one it does nothing.
func (h *Host) Unshape() error {
	return h.bothEnds(func(nl *netlink.Handle, l netlink.Link) error {
		qdiscs, err := nl.QdiscList(l)
		if err != nil {
			return fmt.Errorf("list the queues of %s: %w", l.Attrs().Name, err)
		}
		for _, q := range qdiscs {
			if q.Type() != "tbf" {
				continue
			}
			if err := nl.QdiscDel(q); err != nil {
				return fmt.Errorf("remove tbf from %s: %w", l.Attrs().Name, err)
			}
		}
		return nil
	})
}

func (h *Host) bothEnds(f func(*netlink.Handle, netlink.Link) error) error {
	one := func(name string) func(*netlink.Handle) error {
		return func(nl *netlink.Handle) error {
			l, err := nl.LinkByName(name)
			if err != nil {
				return fmt.Errorf("find link %s: %w", name, err)
			}
			return f(nl, l)
		}
	}
	if err := errors.Join(h.withNetlink(one(uplinkName)), h.rig.withSwitch(one(h.switchPort))); err != nil {
		return fmt.Errorf("shape the uplink of host %s: %w", h.Name, err)
	}
	return nil
}

// Cut takes the host off the switch, as if its cable was pulled: its uplink
// loses the carrier, and what is under way is lost.
func (h *Host) Cut() error {
	return h.rig.withSwitch(func(nl *netlink.Handle) error {
		l, err := nl.LinkByName(h.switchPort)
		if err != nil {
			return fmt.Errorf("cut host %s: %w", h.Name, err)
		}
		if err := nl.LinkSetDown(l); err != nil {
			return fmt.Errorf("cut host %s: %w", h.Name, err)
		}
		return nil
	})
}

// Restore undoes Cut; without one it does nothing.
func (h *Host) Restore() error {
	return h.rig.withSwitch(func(nl *netlink.Handle) error { return setUp(nl, h.switchPort) })
}
