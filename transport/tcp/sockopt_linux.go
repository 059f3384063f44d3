package tcp

import (
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// notSentLow bounds what a demand channel's socket holds back unsent, in bytes:
// a few answers, so that a new one is near the front.
const notSentLow = 64 << 10

// tuneSocket sets the options that the channel's kind asks for. Nobody uses the
// socket yet.
func (c *Conn) tuneSocket() error {
	s := c.w.sock
	if s == nil || c.Kind() == transport.Control {
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
