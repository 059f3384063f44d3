package tcp

import (
	"testing"

	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// What somebody waits for is urgent in Linux's own queues, precache is not.
func TestPriority(t *testing.T) {
	l := listen(t, "127.0.0.1:0", ListenOptions{Tuning: Tuning{BlockingIO: true}})
	for kind, want := range map[transport.Kind]int{transport.Control: interactive, transport.Demand: interactive, transport.Precache: 0} {
		got := accept(t, l)
		hello := demandHello()
		hello.Kind = kind
		c, err := Dial(t.Context(), l.Addr().String(), Options{Hello: hello, Tuning: Tuning{BlockingIO: true}})
		if err != nil {
			t.Fatal(err)
		}
		s := <-got
		for _, x := range []*Conn{c, s} {
			var prio int
			if err := x.w.sock.control("read the priority", func(fd int) (err error) {
				prio, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY)
				return err
			}); err != nil || prio != want {
				t.Errorf("%v at the %v: priority %d, %v; want %d", kind, x.Role(), prio, err, want)
			}
		}
		c.Close()
		s.Close()
	}
}
