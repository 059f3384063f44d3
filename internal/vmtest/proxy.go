package vmtest

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
)

// Proxy stands between two hosts and can cut them off.
type Proxy struct {
	l      net.Listener
	target string
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu
	down  bool              // guarded by mu
	spoil int               // guarded by mu; pieces to be damaged
}

// StartProxy listens on loopback and forwards to target; it ends with the test.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{l: l, target: target, conns: make(map[net.Conn]bool)}
	p.wg.Go(p.run)
	t.Cleanup(func() {
		l.Close()
		p.Cut()
		p.wg.Wait()
	})
	return p
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

func (p *Proxy) run() {
	for {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.target)
		if err != nil || !p.track(in, out) {
			in.Close()
			if out != nil {
				out.Close()
			}
			continue
		}
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			p.wg.Go(func() {
				var to io.Writer = pair[0]
				if pair[0] == out {
					to = spoiler{p, out}
				}
				io.Copy(to, pair[1])
				in.Close()
				out.Close()
			})
		}
	}
}

func (p *Proxy) track(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.conns[c] = true
	}
	return !p.down
}

// spoilFrom is the least length of a piece that is damaged: those of pages, not what the
// hosts say to each other.
const spoilFrom = 8 << 10

// Spoil flips a bit in each of the next n long pieces on their way to the target.
func (p *Proxy) Spoil(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spoil = n
}

// Spoilt reports whether all of them have gone through.
func (p *Proxy) Spoilt() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.spoil == 0
}

// spoiler is the way to the target.
type spoiler struct {
	p  *Proxy
	to net.Conn
}

func (s spoiler) Write(b []byte) (int, error) {
	s.p.mu.Lock()
	if s.p.spoil > 0 && len(b) >= spoilFrom {
		s.p.spoil--
		b = bytes.Clone(b)
		b[len(b)/2] ^= 1 << 3
	}
	s.p.mu.Unlock()
	return s.to.Write(b)
}

// Cut drops every connection and refuses new ones until Restore.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	for c := range p.conns {
		c.Close()
		delete(p.conns, c)
	}
}

// Restore lets connections through again.
func (p *Proxy) Restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}
