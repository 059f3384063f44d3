package tcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Listener accepts channels. Handshakes run side by side, so that a slow peer delays
// nobody else. Where there is no room for another one, the oldest that has had its
// second ends: hostile peers cost others that long, not HandshakeTimeout.
type Listener struct {
	ln     net.Listener
	o      ListenOptions
	conns  chan *Conn
	slots  chan struct{} // one element per connection that is not accepted yet
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed atomic.Uint64
	last   atomic.Pointer[error]

	mu      sync.Mutex
	shaking []*halfOpen // guarded by mu; whose handshakes are not done, the oldest first
}

// halfOpen is a connection whose handshake is not done.
type halfOpen struct {
	since time.Time
	end   context.CancelCauseFunc
}

// fairShare is how long a handshake may take while others wait for its place: several
// round trips around the world.
const fairShare = time.Second

var errCrowded = errors.New("its place was needed: as many connections as may be are not done with their handshake")

// Listen opens addr ("host:port" or "unix:/path"). A unix socket has mode 0600,
// and one left behind by a dead process is replaced.
func Listen(addr string, o ListenOptions) (*Listener, error) {
	if o.Admit == nil {
		return nil, errors.New("ListenOptions.Admit is not set")
	}
	ln, err := listenNet(addr)
	if err != nil {
		return nil, err
	}
	return Serve(ln, o)
}

// Serve is Listen on an open listener, which it owns from now on.
func Serve(ln net.Listener, o ListenOptions) (*Listener, error) {
	if o.Admit == nil {
		ln.Close()
		return nil, errors.New("ListenOptions.Admit is not set")
	}
	if o.HalfOpen <= 0 {
		o.HalfOpen = 64
	}
	l := &Listener{ln: ln, o: o, conns: make(chan *Conn), slots: make(chan struct{}, o.HalfOpen)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Add(1)
	go l.run()
	return l, nil
}

// Addr returns the address listened on.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Accept waits for a channel whose handshake has succeeded.
func (l *Listener) Accept(ctx context.Context) (*Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ctx.Done():
		return nil, fmt.Errorf("accept on %v: %w", l.Addr(), net.ErrClosed)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Failed returns how many handshakes have failed and what became of the last
// one, for metrics and logs.
func (l *Listener) Failed() (n uint64, last error) {
	if p := l.last.Load(); p != nil {
		last = *p
	}
	return l.failed.Load(), last
}

// Close stops listening and ends all handshakes. Accepted channels live on.
func (l *Listener) Close() error {
	l.cancel()
	err := l.ln.Close()
	l.wg.Wait()
	return err
}

func (l *Listener) run() {
	defer l.wg.Done()
	for {
		nc, err := l.ln.Accept()
		if err != nil {
			if l.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Most likely out of descriptors: others must close first.
			l.note(fmt.Errorf("accept on %v: %w", l.Addr(), err))
			select {
			case <-time.After(100 * time.Millisecond):
			case <-l.ctx.Done():
				return
			}
			continue
		}
		if !l.place() {
			nc.Close()
			return
		}
		l.wg.Add(1)
		go l.shake(nc)
	}
}

// place waits for a place for a connection; false is the listener's end.
func (l *Listener) place() bool {
	for {
		select {
		case l.slots <- struct{}{}:
			return true
		default:
		}
		t := time.NewTimer(l.crowd(time.Now()))
		select {
		case l.slots <- struct{}{}:
			t.Stop()
			return true
		case <-t.C:
		case <-l.ctx.Done():
			t.Stop()
			return false
		}
	}
}

// crowd ends the oldest handshake if it has had its time, and returns when to ask again.
func (l *Listener) crowd(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.shaking) == 0 {
		return fairShare // all wait for Accept
	}
	h := l.shaking[0]
	if left := fairShare - now.Sub(h.since); left > 0 {
		return left
	}
	l.shaking = l.shaking[1:]
	h.end(errCrowded)
	return fairShare
}

func (l *Listener) shake(nc net.Conn) {
	defer l.wg.Done()
	defer func() { <-l.slots }()
	ctx, end := context.WithCancelCause(l.ctx)
	h := &halfOpen{time.Now(), end}
	l.mu.Lock()
	l.shaking = append(l.shaking, h)
	l.mu.Unlock()
	c, err := Server(ctx, nc, l.o)
	l.mu.Lock()
	if i := slices.Index(l.shaking, h); i >= 0 {
		l.shaking = slices.Delete(l.shaking, i, i+1)
	}
	l.mu.Unlock()
	end(nil)
	if err != nil {
		l.note(err)
		return
	}
	select {
	case l.conns <- c:
	case <-l.ctx.Done():
		c.Close()
	case <-c.Done():
		c.Close()
	}
}

func (l *Listener) note(err error) {
	l.failed.Add(1)
	l.last.Store(&err)
	if l.o.Failed != nil && l.ctx.Err() == nil {
		l.o.Failed(err)
	}
}
