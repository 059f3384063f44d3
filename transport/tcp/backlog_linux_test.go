package tcp

import (
	"cmp"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// link plays a link to a backlog: each reading, 8 ms after the last, the round trip is
// rtt and rate bytes per second have been acknowledged.
type link struct {
	b     backlog
	now   time.Time
	acked uint64
	// kernel is the rate that the kernel says, in bytes per second.
	kernel float64
}

func (l *link) read(n int, rate float64, rtt, minRTT time.Duration) (told float64) {
	const step = 8 * time.Millisecond
	for range n {
		l.now = l.now.Add(step)
		l.acked += uint64(rate * step.Seconds())
		told = l.b.look(linkState{rate: cmp.Or(l.kernel, 7), acked: l.acked, rtt: rtt, minRTT: minRTT}, l.now)
	}
	return told
}

func TestBacklog(t *testing.T) {
	const gbit = 117e6
	const us = time.Microsecond
	l := link{now: time.Unix(1, 0), acked: 1}
	// A moment of a queue is none.
	for range 5 {
		l.read(queueReadings, gbit, 900*us, 10*us)
		l.read(1, gbit, 200*us, 10*us)
	}
	if l.b.bound != 0 {
		t.Fatalf("bound %d after moments of a queue", l.b.bound)
	}
	l.kernel = 9e9
	if told := l.read(1, gbit, 200*us, 10*us); told != l.kernel {
		t.Errorf("rate %.0f without a queue, want the kernel's", told)
	}
	if told := l.read(1, gbit, 900*us, 10*us); told < 0.99*gbit || told > 1.01*gbit {
		t.Errorf("rate %.0f with a queue and a burst that the kernel saw, want what was carried", told)
	}
	l.kernel = 7
	if told := l.read(1, gbit, 200*us, 10*us); told < 0.99*gbit || told > 1.01*gbit {
		t.Errorf("rate %.0f without a queue, where the kernel says less than was carried, want that", told)
	}
	told := l.read(queueReadings+1, gbit, 900*us, 10*us)
	if told < 0.99*gbit || told > 1.01*gbit {
		t.Errorf("rate %.0f with a queue, want what was carried", told)
	}
	if want := int(gbit * 160e-6); l.b.bound < want*98/100 || l.b.bound > want*102/100 {
		t.Fatalf("bound %d at 1 Gbit/s, want what it carries in 160 µs, %d", l.b.bound, want)
	}
	at := l.b.bound
	if l.read(20, gbit, 180*us, 10*us); l.b.bound != at {
		t.Errorf("bound %d, was %d, though the queue is as it should be", l.b.bound, at)
	}
	if l.read(1, gbit, 700*us, 10*us); l.b.bound != at/2 {
		t.Errorf("bound %d with a long queue, want half of %d", l.b.bound, at)
	}
	if l.read(9, gbit/2, 900*us, 10*us); l.b.bound != backlogLeast {
		t.Errorf("bound %d on a link that has become slow, want the least", l.b.bound)
	}
	// The limit is lifted: some readings later there is no bound.
	if l.read(4, 1e9, 50*us, 10*us); l.b.bound != 0 {
		t.Errorf("bound %d on a link without a queue", l.b.bound)
	}
	// A fast link, and a long one, may have queues.
	if l.read(50, 1.2e9, 900*us, 10*us); l.b.bound != 0 {
		t.Errorf("bound %d at 10 Gbit/s", l.b.bound)
	}
	if l.read(50, gbit, 12*time.Millisecond, 10*time.Millisecond); l.b.bound != 0 {
		t.Errorf("bound %d on a path of 10 ms", l.b.bound)
	}
}

// Where round trips are long since CPUs are short, a bound makes crumbs of what is sent:
// it is lifted, for longer each time.
func TestBoundThatCosts(t *testing.T) {
	const free, us = 50e6, time.Microsecond
	l := link{now: time.Unix(1, 0), acked: 1}
	for _, lift := range []time.Duration{1, 2, 4, 8, 16, 16} {
		if l.read(queueReadings+2, free, 900*us, 10*us); l.b.bound == 0 {
			t.Fatal("no bound with a queue")
		}
		if l.read(1, free/2, 900*us, 10*us); l.b.bound == 0 {
			t.Fatal("no bound, though half is carried under it")
		}
		// The host did something else for a moment.
		for range 20 {
			l.read(3, free/10, 900*us, 10*us)
			l.read(6, free, 900*us, 10*us)
		}
		if l.b.bound == 0 {
			t.Fatal("no bound after moments in which little was carried")
		}
		if l.read(int(boundTrial/(8*time.Millisecond)), free/10, 900*us, 10*us); l.b.bound == 0 {
			t.Fatal("no bound after less than the trial")
		}
		if l.read(1, free/10, 900*us, 10*us); l.b.bound != 0 {
			t.Fatal("a bound that does harm stays")
		}
		for begin := l.now; l.b.bound == 0; {
			if l.read(1, free, 900*us, 10*us); l.now.Sub(begin) > 20*time.Second {
				t.Fatal("never a bound again")
			}
			if d := l.now.Sub(begin); l.b.bound != 0 && (d < lift*time.Second || d > lift*time.Second+100*time.Millisecond) {
				t.Errorf("a bound again after %v, want %d s", d, lift)
			}
		}
	}
}

// The kernel takes the bound, and tunes the buffer again without one.
func TestLimit(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWire(nc)
	if err != nil {
		t.Fatal(err)
	}
	defer w.base.Close()
	option := func(name int) (v int) {
		err := w.sock.control("ask", func(fd int) (err error) {
			v, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, name)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	w.limit(16 << 10)
	if size, lock := option(unix.SO_SNDBUF), option(unix.SO_BUF_LOCK); size != 32<<10 || lock != 1 || w.sendCall != 16<<10 {
		t.Errorf("send buffer of %d, lock %d, calls of %d", size, lock, w.sendCall)
	}
	w.limit(0)
	if lock := option(unix.SO_BUF_LOCK); lock != 0 || w.sendCall != maxSendCall {
		t.Errorf("lock %d, calls of %d without a bound", lock, w.sendCall)
	}
}

// TestBoundHolds: no more than the bound waits in a socket whose packets the kernel holds back
// for pacing.
func TestBoundHolds(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if nc, err := ln.Accept(); err == nil {
			io.Copy(io.Discard, nc)
			nc.Close()
		}
	}()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWire(nc)
	if err != nil {
		t.Fatal(err)
	}
	defer w.base.Close()
	control := func(f func(fd int) error) {
		t.Helper()
		if err := w.sock.control("ask", f); err != nil {
			t.Fatal(err)
		}
	}
	const bound = 8 << 10
	control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, 2<<20) })
	w.limit(bound)
	most := 0
	for range 20 {
		nc.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		if err := w.write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a megabyte at 2 MiB/s in 20 ms: %v", err)
		}
		control(func(fd int) error {
			n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQNSD)
			most = max(most, n)
			return err
		})
	}
	// The kernel takes a call's bytes while its own count, twice the bound, is not reached.
	if most == 0 || most > 3*bound {
		t.Errorf("up to %d bytes wait in the socket, with a bound of %d", most, bound)
	}
}
