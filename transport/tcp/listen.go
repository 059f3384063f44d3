package tcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Listener accepts channels. Handshakes run side by side, so that a slow or
// hostile peer delays nobody else.
type Listener struct {
	ln     net.Listener
	o      ListenOptions
	conns  chan *Conn
	slots  chan struct{} // one element per half-open connection
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed atomic.Uint64
	last   atomic.Pointer[error]
}

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
		select {
		case l.slots <- struct{}{}:
		case <-l.ctx.Done():
			return
		}
		nc, err := l.ln.Accept()
		if err != nil {
			<-l.slots
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
		l.wg.Add(1)
		go l.shake(nc)
	}
}

func (l *Listener) shake(nc net.Conn) {
	defer l.wg.Done()
	defer func() { <-l.slots }()
	c, err := Server(l.ctx, nc, l.o)
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
