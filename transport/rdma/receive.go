package rdma

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// lookEvery bounds a sleep of Receive, so that what has waited too long is seen.
const lookEvery = 100 * time.Millisecond

// errDead is the cause of the end of RDMA where a READ does not complete.
var errDead = errors.New("an RDMA READ does not complete")

// Receive implements [transport.Fetcher].
func (f *Fetcher) Receive(sink transport.Sink, c *transport.Completion) error {
	f.recvMu.Lock()
	defer f.recvMu.Unlock()
	f.sink.bind(sink)
	err := f.receive(c)
	if err != nil {
		// The channel is of no use any more; and the sink is the caller's again.
		f.base.Close()
		f.pump.Wait()
		f.pollMu.Lock()
		f.takeDown()
		f.pollMu.Unlock()
	}
	return err
}

// receiveBelow receives what comes over the channel beneath: answers to FETCH, and
// RDMA frames, which go to Side.
func (f *Fetcher) receiveBelow() {
	for {
		var c transport.Completion
		err := f.base.Receive(f.sink, &c)
		f.mu.Lock()
		if err != nil {
			f.err = err
		} else if fl := f.flights.at(c.ID); fl != nil {
			f.drop(fl)
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
func (f *Fetcher) side(h transport.Header, body []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.wake()
	switch h.Aux {
	case kindAccept:
		return f.accepted(body)
	case kindMapped, kindUnmapped:
		if f.met && f.over {
			return nil // late
		}
		var err error
		if h.Aux == kindMapped {
			err = f.table.mapped(&h, body)
		} else {
			err = f.table.unmapped(&h)
		}
		if err != nil {
			return err
		}
		f.prove()
		f.again()
		return nil
	case kindOff:
		f.breakDown(fmt.Errorf("the source: %.*q", transport.MaxText, body))
		return nil
	}
	return fmt.Errorf("%w: RDMA frame of kind %d at the destination", transport.ErrMalformed, h.Aux)
}

func (f *Fetcher) receive(c *transport.Completion) error {
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
		ok, now, err := f.next(c)
		if ok || err != nil {
			return err
		}
		if now.unsent {
			if err := f.send(); err != nil {
				return err
			}
		}
		n := 0
		if now.up {
			n, err = f.poll(f.opt.Spin)
		}
		if n == 0 && err == nil {
			err = f.sleep()
		}
		if err != nil {
			return err
		}
	}
}

// outlook is what there is to wait for.
type outlook struct {
	up     bool // there is a queue pair
	unsent bool // there is something for send
}

// next takes a completion that is there, or says what to wait for.
func (f *Fetcher) next(c *transport.Completion) (bool, outlook, error) {
	for {
		f.mu.Lock()
		switch {
		case f.answers.len() > 0:
			*c = f.answers.pop()
			f.mu.Unlock()
			return true, outlook{}, nil
		case f.popReady(c):
			f.mu.Unlock()
			return true, outlook{}, nil
		case f.zeros.len() > 0:
			p := f.zeros.pop()
			f.mu.Unlock()
			if err := f.zero(p); err != nil {
				return false, outlook{}, err
			}
		case f.err != nil:
			err := f.err
			f.mu.Unlock()
			return false, outlook{}, err
		default:
			now := outlook{up: f.q != nil, unsent: f.unsent()}
			f.mu.Unlock()
			return false, now, nil
		}
	}
}

// popReady takes a fetch that is answered by READs. mu is held.
func (f *Fetcher) popReady(c *transport.Completion) bool {
	if f.ready.len() == 0 {
		return false
	}
	fl := f.ready.pop()
	*c = transport.Completion{Fetch: fl.Fetch, Sent: fl.sent, Wire: fl.wire, Decode: fl.copied, Commit: fl.commit,
		WireBytes: fl.bytes, Data: fl.data, Zero: fl.zero, Ahead: fl.ahead}
	f.drop(fl)
	return true
}

// maxHole is the most pages of a hole that are reported at a time.
const maxHole = 1 << 30

// zero reports a hole, and as far as it goes on what follows.
func (f *Fetcher) zero(p part) error {
	f.pollMu.Lock() // the fetch may have READs that Poll lands
	defer f.pollMu.Unlock()
	begin := time.Now()
	r := transport.Range{Region: p.fl.Region, First: p.first, Count: p.count}
	if last := p.fl.First + uint64(p.fl.Count); p.first+uint64(p.count) == last {
		f.mu.Lock()
		p.fl.ahead = uint32(p.fl.reg.hole(last, maxHole))
		f.mu.Unlock()
		r.Count += p.fl.ahead
	}
	if err := f.sink.Zero(r); err != nil {
		return fmt.Errorf("zero %d pages at %d of region %d: %w", r.Count, r.First, r.Region, err)
	}
	p.fl.zero += p.count
	p.fl.commit += time.Since(begin)
	p.fl.wire = max(p.fl.wire, begin.Sub(p.fl.sent))
	f.mu.Lock()
	f.came(p.fl)
	f.mu.Unlock()
	return nil
}

// came ends a part of a flight. mu is held.
func (f *Fetcher) came(fl *flight) {
	if fl.parts--; fl.parts == 0 {
		f.ready.push(fl)
	}
}

// poll takes completions and lands them, and returns their number. If there is none
// but READs are under way, it looks for them for the time spin.
func (f *Fetcher) poll(spin time.Duration) (int, error) {
	f.pollMu.Lock()
	defer f.pollMu.Unlock()
	return f.take(spin)
}

// take does the work of poll. pollMu is held.
func (f *Fetcher) take(spin time.Duration) (int, error) {
	f.mu.Lock()
	q, busy := f.q, f.under > 0
	f.mu.Unlock()
	if q == nil || !busy {
		return 0, nil
	}
	n, err := q.poll(f.dones[:], spin)
	if err != nil {
		f.breakDown(err)
		return 0, nil
	}
	return n, f.land(f.dones[:n])
}

// Poll implements [transport.Poller].
func (f *Fetcher) Poll(c *transport.Completion) bool {
	for {
		f.mu.Lock()
		ok, idle := f.popReady(c), f.under == 0
		f.mu.Unlock()
		if ok || idle {
			return ok
		}
		// Whoever has pollMu is Receive, which looks whether READs are under way before
		// it sleeps; and without a sink nothing can be landed.
		if !f.sink.known() {
			f.wake()
			return false
		}
		if !f.pollMu.TryLock() {
			return false
		}
		n, err := f.take(f.opt.Spin)
		if n == 0 && err == nil {
			n, err = f.armed()
		}
		f.pollMu.Unlock()
		if err != nil {
			f.mu.Lock()
			f.err = cmp.Or(f.err, err)
			f.mu.Unlock()
			f.wake()
		}
		if n == 0 || err != nil {
			return false
		}
	}
}

// armed has Receive woken by the next completion, if READs are under way, and takes
// what came before that. pollMu is held.
func (f *Fetcher) armed() (int, error) {
	f.mu.Lock()
	q, busy := f.q, f.under > 0
	f.mu.Unlock()
	if q == nil || !busy {
		return 0, nil
	}
	if err := q.arm(); err != nil {
		f.breakDown(err)
		return 0, nil
	}
	return f.take(0)
}

// sleep waits for a completion, for an event of the channel beneath, or for the
// time to look after what is overdue.
func (f *Fetcher) sleep() error {
	f.sleeping.Store(true)
	defer f.sleeping.Store(false)
	f.mu.Lock()
	q, busy := f.q, f.under > 0
	// Whoever comes later sees that we sleep, and wakes us, or polls and then arms.
	work := f.answers.len()+f.ready.len()+f.zeros.len()+f.byFetch.len()+f.asks.len() > 0 || f.err != nil
	f.mu.Unlock()
	if work || f.broken.Load() != nil || f.closed.Load() {
		return nil
	}
	if q != nil && busy {
		if err := q.arm(); err != nil {
			f.breakDown(err)
			return nil
		}
		// One that came before the arming makes no event.
		if n, err := f.poll(0); n > 0 || err != nil {
			return err
		}
	}
	if err := f.wait(q); err != nil {
		return err
	}
	f.overdue(time.Now())
	return nil
}

// overdue ends RDMA if a READ hangs, and has precache that waits for a chunk too
// long go by FETCH.
func (f *Fetcher) overdue(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.ops {
		if o := &f.ops[i]; o.busy && now.Sub(o.posted) > f.opt.DeadAfter {
			f.breakDown(fmt.Errorf("%w: %v have passed", errDead, now.Sub(o.posted).Round(time.Millisecond)))
			return
		}
	}
	if f.opt.Only && f.q == nil {
		if len(f.waiting) > 0 && now.Sub(f.waiting[0].sent) > f.opt.DeadAfter {
			f.breakDown(fmt.Errorf("it was not set up within %v", f.opt.DeadAfter))
		}
		return
	}
	kept := f.waiting[:0]
	for _, fl := range f.waiting {
		if now.Sub(fl.sent) > f.opt.DeadAfter/2 {
			f.below(fl)
		} else {
			kept = append(kept, fl)
		}
	}
	f.waiting = kept
}

// end ends RDMA on this channel: what is outstanding goes by FETCH, or the channel
// ends with it.
func (f *Fetcher) end(why error) error {
	f.mu.Lock()
	over := f.q == nil && f.pending == nil && f.joining == nil
	f.mu.Unlock()
	if over {
		return nil
	}
	why = f.dev.reason(why)
	f.pollMu.Lock() // nobody is landing what is given up here
	defer f.pollMu.Unlock()
	if !f.takeDown() {
		return nil // it has ended before
	}
	f.mu.Lock()
	f.reads.clear()
	f.zeros.clear()
	f.asks.clear()
	f.waiting = nil
	done := make(map[*flight]bool)
	for f.ready.len() > 0 {
		done[f.ready.pop()] = true
	}
	f.flights.each(func(fl *flight) {
		switch {
		case f.opt.Only: // they are fetched again by another channel
		case done[fl]:
			f.ready.push(fl)
		case !fl.below:
			fl.data, fl.zero, fl.ahead = 0, 0, 0
			f.below(fl)
		}
	})
	f.mu.Unlock()
	if err := f.opt.over(f.dev, f.ch, f.stats, why); err != nil {
		return err
	}
	return f.send()
}
