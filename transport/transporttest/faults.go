package transporttest

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fault is what happens to one direction of a connection, counted from the
// moment it is set.
type Fault struct {
	// Cut closes the connection after so many bytes, if CutSet.
	Cut    int64
	CutSet bool
	// Corrupt flips a bit of the byte with this index, if CorruptSet.
	Corrupt    int64
	CorruptSet bool
	// Stall stops all bytes after so many, if StallSet, until the connection
	// closes or another Fault is set.
	Stall    int64
	StallSet bool
	// Rate bounds the direction to so many bytes a second; 0: no bound.
	Rate int64
}

// CutAfter, CorruptAt, StallAfter and Throttle are Faults of one kind.
func CutAfter(n int64) Fault   { return Fault{Cut: n, CutSet: true} }
func CorruptAt(n int64) Fault  { return Fault{Corrupt: n, CorruptSet: true} }
func StallAfter(n int64) Fault { return Fault{Stall: n, StallSet: true} }
func Throttle(n int64) Fault   { return Fault{Rate: n} }

// ErrCut is what a connection returns that a Fault has cut.
var ErrCut = errors.New("cut by a fault")

// line is one direction.
type line struct {
	mu    sync.Mutex
	fault Fault
	seen  int64         // bytes since the fault was set
	reset chan struct{} // closed when another fault is set
}

func (l *line) set(f Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault, l.seen = f, 0
	if l.reset != nil {
		close(l.reset)
	}
	l.reset = make(chan struct{})
}

// pass lets p, or a front part of it, through; it may change it.
func (l *line) pass(p []byte, done <-chan struct{}) (int, error) {
	for {
		l.mu.Lock()
		f, seen, reset := l.fault, l.seen, l.reset
		n := int64(len(p))
		if f.CutSet {
			n = min(n, f.Cut-seen)
		}
		if f.StallSet {
			n = min(n, f.Stall-seen)
		}
		if f.Rate > 0 {
			n = min(n, max(1, f.Rate/100))
		}
		if n > 0 {
			if i := f.Corrupt - seen; f.CorruptSet && i >= 0 && i < n {
				p[i] ^= 0x10
			}
			l.seen += n
			l.mu.Unlock()
			if f.Rate > 0 {
				time.Sleep(time.Duration(n * int64(time.Second) / f.Rate)) // a slow link, not a wait
			}
			return int(n), nil
		}
		l.mu.Unlock()
		if f.CutSet && seen >= f.Cut {
			return 0, ErrCut
		}
		select {
		case <-reset:
		case <-done:
			return 0, net.ErrClosed
		}
	}
}

// Faults breaks a connection on demand.
type Faults struct {
	in, out *line
}

// NewFaults returns Faults that pass everything until told otherwise.
func NewFaults() *Faults { return &Faults{new(line), new(line)} }

// Reading sets what happens to the bytes that the wrapped side reads.
func (f *Faults) Reading(x Fault) { f.in.set(x) }

// Writing sets what happens to the bytes that the wrapped side writes.
func (f *Faults) Writing(x Fault) { f.out.set(x) }

// Conn is a net.Conn under Faults.
type Conn struct {
	net.Conn
	f    *Faults
	done chan struct{}
	once sync.Once

	rest []byte // read and not yet passed
	buf  []byte
}

// Wrap puts nc under f.
func (f *Faults) Wrap(nc net.Conn) *Conn {
	return &Conn{Conn: nc, f: f, done: make(chan struct{}), buf: make([]byte, 32<<10)}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		n, err := c.Conn.Read(c.buf)
		if n == 0 {
			return 0, err
		}
		c.rest = c.buf[:n]
	}
	n, err := c.f.in.pass(c.rest[:min(len(p), len(c.rest))], c.done)
	if err != nil {
		c.Close()
		return 0, err
	}
	copy(p, c.rest[:n])
	c.rest = c.rest[n:]
	return n, nil
}

// Write implements net.Conn. It leaves p alone.
func (c *Conn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		q := append([]byte(nil), p[done:min(len(p), done+32<<10)]...)
		n, err := c.f.out.pass(q, c.done)
		if err == nil {
			n, err = c.Conn.Write(q[:n])
		} else {
			c.Close()
		}
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Close implements net.Conn; it ends a stall.
func (c *Conn) Close() error {
	err := os.ErrClosed
	c.once.Do(func() {
		close(c.done)
		err = c.Conn.Close()
	})
	return err
}

// Relay passes connections on to addr ("host:port" or "unix:/path") under f and
// returns the address to dial in its place. Reading faults apply to what the
// dialling side sends, Writing faults to what it is sent. Real sockets stay at
// both ends, so that vectored and blocking I/O are tested too.
func Relay(t testing.TB, addr string, f *Faults) string {
	t.Helper()
	network, target, listen := "tcp", addr, "127.0.0.1:0"
	if p, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, target, listen = "unix", p, t.TempDir()+"/relay"
	}
	ln, err := net.Listen(network, listen)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []io.Closer
	wg.Go(func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial(network, target)
			if err != nil {
				a.Close()
				continue
			}
			front := f.Wrap(a)
			mu.Lock()
			open = append(open, front, b)
			mu.Unlock()
			wg.Go(func() { pump(b, front) })
			wg.Go(func() { pump(front, b) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	if network == "unix" {
		return "unix:" + listen
	}
	return ln.Addr().String()
}

// pump copies until src ends, and then ends dst. When dst fails first it leaves
// src to the other direction, which may still hold what dst's peer said last.
func pump(dst, src net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			dst.Close()
			return
		}
	}
}

// Mirror returns the same faults seen from the other end: its reading is f's
// writing. A relay's front wraps the dialled end, where the dialling side's
// reading is the relay's writing; Mirror puts f directly on the dialling side.
func (f *Faults) Mirror() *Faults { return &Faults{in: f.out, out: f.in} }
