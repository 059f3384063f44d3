package relocate

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/pagewarp/pagewarp/transport"
)

// maxPageChannels bounds the connections of one kind in a session.
const maxPageChannels = 64

var errPoolClosed = errors.New("the session is over")

// chanPool hands the page channels that the source dials to the engine that
// fetches through them. Each (kind, index) has one slot: a newer connection
// replaces one that nobody has taken.
type chanPool struct {
	mu     sync.Mutex
	slots  map[slotKey]chan pooled // guarded by mu; each of capacity 1
	closed bool                    // guarded by mu
	done   chan struct{}
}

type slotKey struct {
	kind  transport.Kind
	index int
}

type pooled struct {
	fetcher transport.Fetcher
	epoch   uint64
}

func newChanPool() *chanPool {
	return &chanPool{slots: make(map[slotKey]chan pooled), done: make(chan struct{})}
}

func (p *chanPool) slot(k slotKey) (chan pooled, error) {
	if k.index < 0 || k.index >= maxPageChannels {
		return nil, fmt.Errorf("channel %v %d: a session has at most %d of a kind", k.kind, k.index, maxPageChannels)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errPoolClosed
	}
	c := p.slots[k]
	if c == nil {
		c = make(chan pooled, 1)
		p.slots[k] = c
	}
	return c, nil
}

// put offers a connected channel; on error the caller closes it.
func (p *chanPool) put(kind transport.Kind, index int, epoch uint64, f transport.Fetcher) error {
	c, err := p.slot(slotKey{kind, index})
	if err != nil {
		return err
	}
	in := pooled{f, epoch}
	for {
		select {
		case c <- in:
			p.mu.Lock()
			closed := p.closed
			p.mu.Unlock()
			if closed { // close ran between slot and send and may have missed it
				p.drain(c)
			}
			return nil
		case old := <-c:
			if old.epoch > in.epoch {
				old, in = in, old
			}
			old.fetcher.Close()
		}
	}
}

// open waits for the channel (kind, index).
func (p *chanPool) open(ctx context.Context, kind transport.Kind, index int) (transport.Fetcher, error) {
	in, err := p.take(ctx, kind, index)
	return in.fetcher, err
}

// take does so for somebody who may put it back.
func (p *chanPool) take(ctx context.Context, kind transport.Kind, index int) (pooled, error) {
	c, err := p.slot(slotKey{kind, index})
	if err != nil {
		return pooled{}, err
	}
	select {
	case in := <-c:
		return in, nil
	case <-p.done:
		return pooled{}, errPoolClosed
	case <-ctx.Done():
		return pooled{}, context.Cause(ctx)
	}
}

func (p *chanPool) drain(c chan pooled) {
	select {
	case in := <-c:
		in.fetcher.Close()
	default:
	}
}

// close ends the pool and the channels that nobody took.
func (p *chanPool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	close(p.done)
	for _, c := range p.slots {
		p.drain(c)
	}
}
