package tcp

import (
	"fmt"

	"github.com/pagewarp/pagewarp/transport"
)

// SetSide says who takes RDMA frames, which the peer may send only where
// [transport.FeatureRDMA] is in force. Without one they are dropped: a peer that
// asks is not answered. It is called before the channel is read.
func (c *Conn) SetSide(s transport.Side) { c.side.Store(&s) }

// Carry says what brings answers whose fetches allow it (nil: nothing any more), at the
// source's end of a page channel with [transport.FeatureSend] in force.
func (c *Conn) Carry(by transport.Carrier) {
	if by == nil {
		c.responder.carrier.Store(nil)
		return
	}
	c.responder.carrier.Store(&by)
}

// SendSide sends an RDMA frame: Aux, Region, Count and First of h, and a body of
// at most [transport.MaxRDMA] bytes.
func (c *Conn) SendSide(h transport.Header, body []byte) error {
	if c.Features()&transport.FeatureRDMA == 0 || c.control != nil || len(body) > transport.MaxRDMA {
		return fmt.Errorf("RDMA frame with %d bytes on a %v channel with features %v: that cannot be sent", len(body), c.Kind(), c.Features())
	}
	h.Type = transport.TypeRDMA
	frame := transport.AppendFrame(nil, h, body)
	if err := c.lock(); err != nil {
		return err
	}
	defer c.unlock()
	if err := c.w.write(frame); err != nil {
		return c.fail(err)
	}
	return nil
}

func (c *Conn) sideFrame(h *transport.Header, crc uint32) (bool, error) {
	if c.Features()&transport.FeatureRDMA == 0 || c.control != nil {
		return false, nil
	}
	body, err := c.w.small(h, crc)
	if err != nil {
		return true, err
	}
	if s := c.side.Load(); s != nil {
		err = (*s)(*h, body)
	}
	return true, err
}
