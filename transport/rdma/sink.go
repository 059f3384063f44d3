package rdma

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/pagewarp/pagewarp/transport"
)

// lateSink is a sink that becomes known at the first Receive. It makes one call at
// a time, from whichever goroutine, and has calls that come earlier wait; bound to
// nil it takes nothing.
type lateSink struct {
	once  sync.Once
	bound chan struct{}
	is    atomic.Bool // bound is closed

	mu sync.Mutex
	s  transport.Sink // immutable once bound is closed
}

func newLateSink() *lateSink { return &lateSink{bound: make(chan struct{})} }

// bind says which sink it is; only the first call counts.
func (l *lateSink) bind(s transport.Sink) {
	l.once.Do(func() {
		l.s = s
		close(l.bound)
		l.is.Store(true)
	})
}

func (l *lateSink) Reserve(r transport.Range, dst [][]byte) {
	<-l.bound
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.s == nil {
		clear(dst)
		return
	}
	l.s.Reserve(r, dst)
}

func (l *lateSink) Commit(r transport.Range, dst [][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.s == nil {
		return ErrClosed
	}
	return l.s.Commit(r, dst)
}

// known says whether it is known which sink it is.
func (l *lateSink) known() bool { return l.is.Load() }

// takes says whether pages go by Take; the sink is known.
func (l *lateSink) takes() bool {
	t, ok := l.s.(transport.TakeSink)
	return ok && t.Takes()
}

func (l *lateSink) take(r transport.Range, src [][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.s == nil {
		return ErrClosed
	}
	return l.s.(transport.TakeSink).Take(r, src)
}

// lender is the sink if it lends pages and is known, else nil.
func (l *lateSink) lender() transport.LendSink {
	if !l.known() {
		return nil
	}
	s, _ := l.s.(transport.LendSink)
	return s
}

// landed and reclaim end what the lender has lent.
func (l *lateSink) landed(r transport.Range, zero bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.s.(transport.LendSink).Landed(r, zero)
}

func (l *lateSink) reclaim(r transport.Range) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.s.(transport.LendSink).Reclaim(r)
}

func (l *lateSink) Abort(r transport.Range, dst [][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.s != nil {
		l.s.Abort(r, dst)
	}
}

func (l *lateSink) Zero(r transport.Range) error {
	<-l.bound
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.s == nil {
		return ErrClosed
	}
	return l.s.Zero(r)
}

// warm is the sink as one that has candidates. mu is held.
func (l *lateSink) warm() (transport.WarmSink, error) {
	if l.s == nil {
		return nil, ErrClosed
	}
	w, ok := l.s.(transport.WarmSink)
	if !ok {
		return nil, errors.New("the sink has no candidates, but the channel agreed on warm start")
	}
	return w, nil
}

// Same implements [transport.WarmSink].
func (l *lateSink) Same(r transport.Range, dst [][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	w, err := l.warm()
	if err != nil {
		return err
	}
	return w.Same(r, dst)
}

// Moved implements [transport.WarmSink].
func (l *lateSink) Moved(r transport.Range, from uint64, dst [][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	w, err := l.warm()
	if err != nil {
		return err
	}
	return w.Moved(r, from, dst)
}

var _ transport.WarmSink = (*lateSink)(nil)
