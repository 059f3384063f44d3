package tcp

import (
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// notSentLow bounds what a demand channel's socket holds back unsent, in bytes:
// a few answers, so that a new one is near the front.
const notSentLow = 64 << 10

// interactive is the priority of packets that somebody waits for (SO_PRIORITY,
// TC_PRIO_INTERACTIVE; a higher one needs CAP_NET_ADMIN). Linux's own queues go by it,
// pfifo_fast, prio and, since 6.8, fq: on the host's own link a demand answer overtakes what
// precache, and anybody else, has put there. Precache keeps the default: below it, a busy
// link could hold a drain up for ever.
const interactive = 6

// tuneSocket sets the options that the channel's kind asks for. Nobody uses the
// socket yet.
func (c *Conn) tuneSocket() error {
	s := c.w.sock
	if s == nil {
		return nil
	}
	if c.Kind() != transport.Precache {
		err := s.control("set the socket's priority", func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, interactive)
		})
		if err != nil {
			return err
		}
	}
	if c.Kind() == transport.Control {
		return nil // Go sets TCP_NODELAY
	}
	if c.Kind() == transport.Demand {
		if err := c.tuneDemand(s); err != nil {
			return err
		}
	} // of a stream the kernel tunes the buffers
	if c.tune.BlockingIO {
		spin := c.tune.Spin
		if c.Kind() != transport.Demand {
			spin = 0
		}
		return s.setBlocking(spin)
	}
	return nil
}

func (c *Conn) tuneDemand(s *sock) error {
	return s.control("set options of the socket", func(fd int) error {
		if n := c.tune.SocketBuffer; n > 0 {
			for _, opt := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, n); err != nil {
					return err
				}
			}
		}
		if c.w.base.LocalAddr().Network() == "tcp" {
			return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLow)
		}
		return nil
	})
}
