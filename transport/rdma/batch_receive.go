package rdma

import (
	"errors"
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// errSilent is the cause of the end of RDMA where answers by SEND do not come.
var errSilent = errors.New("no answer comes by SEND")

// Receive implements [transport.Fetcher].
func (f *BatchFetcher) Receive(sink transport.Sink, c *transport.Completion) error {
	f.recvMu.Lock()
	defer f.recvMu.Unlock()
	f.sink.bind(sink)
	err := f.receive(c)
	if err != nil {
		// The channel is of no use any more; and the sink is the caller's again.
		f.base.Close()
		f.pump.Wait()
	}
	return err
}

// receiveBelow receives what comes over the connection: answers, and RDMA frames,
// which go to side.
func (f *BatchFetcher) receiveBelow() {
	for {
		var c transport.Completion
		err := f.base.Receive(f.sink, &c)
		f.mu.Lock()
		if err != nil {
			f.err = err
		} else {
			f.stats.Beneath.Add(1)
			f.answers.push(c)
		}
		f.mu.Unlock()
		f.wake()
		if err != nil {
			return
		}
	}
}

// side takes an RDMA frame of the channel.
func (f *BatchFetcher) side(h transport.Header, body []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.wake()
	switch h.Aux {
	case kindAccept:
		return f.accepted(body)
	case kindOff:
		f.breakDown(fmt.Errorf("the source: %.*q", transport.MaxText, body))
		return nil
	}
	return fmt.Errorf("%w: RDMA frame of kind %d where answers come by SEND", transport.ErrMalformed, h.Aux)
}

func (f *BatchFetcher) receive(c *transport.Completion) error {
	for {
		if f.closed.Load() {
			return ErrClosed
		}
		// Taken, or it would keep the channel from sleeping for the rest of its life.
		if why := f.broken.Swap(nil); why != nil {
			if err := f.end(*why); err != nil {
				return err
			}
		}
		f.mu.Lock()
		if f.answers.len() > 0 {
			*c = f.answers.pop()
			f.mu.Unlock()
			f.seen = time.Now()
			return nil
		}
		err, q, held := f.err, f.q, f.held.len()
		f.mu.Unlock()
		if err != nil {
			return err
		}
		if held > 0 && q != nil {
			if err := f.flush(); err != nil {
				return err
			}
		}
		n := 0
		if q != nil {
			if n, err = f.take(q, f.opt.Spin); err != nil {
				return err
			}
		}
		if n == 0 {
			if err := f.sleep(q); err != nil {
				return err
			}
		}
	}
}

// take takes messages in, and returns their number; it looks for the first one for the
// time spin. Their buffers are posted again before more messages are asked for.
func (f *BatchFetcher) take(q *queue, spin time.Duration) (int, error) {
	n, err := q.poll(f.dones[:], spin)
	if err != nil {
		f.breakDown(err)
		return 1, nil
	}
	f.back = f.back[:0]
	for i := range f.dones[:n] {
		bad, err := f.deliver(&f.dones[i])
		if err != nil {
			return 0, err
		}
		if bad != nil {
			f.breakDown(bad)
			return n, nil
		}
		f.back = append(f.back, f.slots[f.dones[i].id])
	}
	if n == 0 {
		return 0, nil
	}
	if err := q.receive(f.back); err != nil {
		f.breakDown(err)
		return n, nil
	}
	f.base.Invite(n)
	return n, nil
}

// deliver takes one message in; bad is an error that ends RDMA, err one that ends the
// channel.
func (f *BatchFetcher) deliver(d *done) (bad, err error) {
	switch {
	case d.id >= uint64(len(f.slots)):
		return fmt.Errorf("a completion has the unknown id %d", d.id), nil
	case d.status != 0:
		return fmt.Errorf("a message was not received: %s (vendor code %#x)", statusText(d.status), d.vendor), nil
	case int(d.bytes) > f.slotSize:
		return fmt.Errorf("a message has %d bytes, its buffer %d", d.bytes, f.slotSize), nil
	}
	var c transport.Completion
	f.box.reset()
	err = f.base.Deliver(f.mem[int(d.id)*f.slotSize:][:d.bytes], &f.box, &c)
	if errors.Is(err, transport.ErrMalformed) || errors.Is(err, transport.ErrDecode) {
		return fmt.Errorf("a message of the source's: %w", err), nil
	}
	if err != nil {
		return nil, err
	}
	f.stats.Messages.Add(1)
	f.stats.MessageBytes.Add(uint64(d.bytes))
	f.mu.Lock()
	f.answers.push(c)
	f.mu.Unlock()
	return nil, nil
}

// sleep waits for a message, for an event of the connection, or for the time to look
// after what is overdue.
func (f *BatchFetcher) sleep(q *queue) error {
	f.sleeping.Store(true)
	defer f.sleeping.Store(false)
	f.mu.Lock()
	// Whoever comes later sees that we sleep, and wakes us.
	work := f.answers.len() > 0 || f.err != nil || f.q != q || q != nil && f.held.len() > 0 && f.base.Invited() > 0
	f.mu.Unlock()
	if work || f.broken.Load() != nil || f.closed.Load() {
		return nil
	}
	if q != nil {
		if err := q.arm(); err != nil {
			f.breakDown(err)
			return nil
		}
		// One that came before the arming makes no event.
		if n, err := f.take(q, 0); n > 0 || err != nil {
			return err
		}
	}
	if err := f.wait(q); err != nil {
		return err
	}
	f.overdue(time.Now())
	return nil
}

// overdue ends RDMA where nothing comes by it that is due, before the channel is
// taken for dead as a whole.
func (f *BatchFetcher) overdue(now time.Time) {
	f.mu.Lock()
	up, held := f.q != nil, f.held.len()
	f.mu.Unlock()
	switch {
	case up && f.base.Awaited() == 0, !up && held == 0:
		f.seen = now
	case up && now.Sub(f.seen) > f.opt.DeadAfter/2:
		f.breakDown(fmt.Errorf("%w for %v, and %d fetches wait for one", errSilent, now.Sub(f.seen).Round(time.Millisecond), f.base.Awaited()))
	case !up && now.Sub(f.seen) > f.opt.DeadAfter:
		f.breakDown(fmt.Errorf("it was not set up within %v", f.opt.DeadAfter))
	}
}

// end ends RDMA on this channel: what was to come by SEND goes by FETCH, or the channel
// ends with it.
func (f *BatchFetcher) end(why error) error {
	f.mu.Lock()
	q, pending, joining := f.q, f.pending, f.joining
	f.q, f.pending, f.joining, f.over = nil, nil, nil, true // join closes what it has
	f.mu.Unlock()
	if q == nil && pending == nil && joining == nil {
		return nil // it has ended before
	}
	why = f.dev.reason(why)
	for _, x := range []*queue{q, pending} {
		if x != nil {
			x.close() // from here on nothing is written into the buffers
		}
	}
	if q != nil {
		f.stats.Up.Add(-1)
	}
	if err := f.opt.over(f.dev, f.ch, f.stats, why); err != nil {
		return err
	}
	n, rerr := f.base.Recall()
	f.stats.Recalled.Add(uint64(n))
	return rerr
}
