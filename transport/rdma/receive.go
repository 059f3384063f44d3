package rdma

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
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
		} else if fl := f.flights[c.ID]; fl != nil {
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
		var err error
		if h.Aux == kindMapped {
			err = f.table.mapped(&h, body)
		} else {
			err = f.table.unmapped(&h)
		}
		if err != nil {
			return err
		}
		waiting := f.waiting
		f.waiting = nil
		for _, fl := range waiting {
			f.route(fl)
		}
		f.post(time.Now())
		return nil
	case kindOff:
		f.breakDown(fmt.Errorf("the source: %.*q", transport.MaxText, body))
		return nil
	}
	return fmt.Errorf("%w: RDMA frame of kind %d at the destination", transport.ErrMalformed, h.Aux)
}

// accepted connects to the source's queue pair. mu is held.
func (f *Fetcher) accepted(body []byte) error {
	peer, err := parseEndpoint(body, true)
	if err != nil {
		return err
	}
	q := f.pending
	if q == nil {
		return fmt.Errorf("%w: a second ACCEPT, or one without CONNECT", transport.ErrMalformed)
	}
	to, err := f.dev.meet(peer, f.dev.caps.reads)
	if err == nil {
		err = q.connect(&to, f.mine.psn, false)
	}
	if err != nil {
		f.breakDown(err)
		return nil
	}
	f.table.cut(peer.chunk)
	f.q, f.pending = q, nil
	f.stats.Up.Add(1)
	return nil
}

func (f *Fetcher) receive(c *transport.Completion) error {
	for {
		if f.closed.Load() {
			return ErrClosed
		}
		if why := f.broken.Load(); why != nil {
			if err := f.end(*why); err != nil {
				return err
			}
		}
		ok, err := f.next(c)
		if ok || err != nil {
			return err
		}
		if err := f.send(); err != nil {
			return err
		}
		n, err := f.poll(f.opt.Spin)
		if n == 0 && err == nil {
			n, err = f.sleep()
		}
		if err == nil {
			err = f.land(f.dones[:n])
		}
		if err != nil {
			return err
		}
	}
}

// next takes a completion that is there.
func (f *Fetcher) next(c *transport.Completion) (bool, error) {
	for {
		f.mu.Lock()
		switch {
		case f.answers.len() > 0:
			*c = f.answers.pop()
			f.mu.Unlock()
			return true, nil
		case f.ready.len() > 0:
			fl := f.ready.pop()
			*c = transport.Completion{Fetch: fl.Fetch, Sent: fl.sent, Wire: fl.wire, Decode: fl.copied, Commit: fl.commit,
				WireBytes: fl.bytes, Data: fl.data, Zero: fl.zero, Ahead: fl.ahead}
			f.drop(fl)
			f.mu.Unlock()
			return true, nil
		case f.zeros.len() > 0:
			p := f.zeros.pop()
			f.mu.Unlock()
			if err := f.zero(p); err != nil {
				return false, err
			}
		case f.err != nil:
			err := f.err
			f.mu.Unlock()
			return false, err
		default:
			f.mu.Unlock()
			return false, nil
		}
	}
}

// maxHole is the most pages of a hole that are reported at a time.
const maxHole = 1 << 30

// zero reports a hole, and as far as it goes on what follows.
func (f *Fetcher) zero(p part) error {
	begin := time.Now()
	r := transport.Range{Region: p.fl.Region, First: p.first, Count: p.count}
	if last := p.fl.First + uint64(p.fl.Count); p.first+uint64(p.count) == last {
		f.mu.Lock()
		p.fl.ahead = uint32(f.table.regions[r.Region].hole(last, maxHole))
		f.mu.Unlock()
		r.Count += p.fl.ahead
	}
	if err := f.sink.Zero(r); err != nil {
		return fmt.Errorf("zero %d pages at %d of region %d: %w", r.Count, r.First, r.Region, err)
	}
	p.fl.zero += p.count
	p.fl.commit += time.Since(begin)
	p.fl.wire = max(p.fl.wire, begin.Sub(p.fl.sent))
	f.came(p.fl)
	return nil
}

// came ends a part of a flight.
func (f *Fetcher) came(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.parts--; fl.parts == 0 {
		f.ready.push(fl)
	}
}

// poll takes completions.
func (f *Fetcher) poll(spin time.Duration) (int, error) {
	f.mu.Lock()
	q := f.q
	busy := len(f.free) < len(f.ops)
	f.mu.Unlock()
	if q == nil {
		return 0, nil
	}
	if !busy {
		spin = 0
	}
	n, err := q.poll(f.dones[:], spin)
	if err != nil {
		f.breakDown(err)
		return 0, nil
	}
	return n, nil
}

// sleep waits for a completion, for an event of the channel beneath, or for the
// time to look after what is overdue.
func (f *Fetcher) sleep() (int, error) {
	f.sleeping.Store(true)
	defer f.sleeping.Store(false)
	f.mu.Lock()
	q := f.q
	// Whoever comes later sees that we sleep, and wakes us.
	work := f.answers.len()+f.ready.len()+f.zeros.len()+f.byFetch.len()+f.asks.len() > 0 || f.err != nil
	f.mu.Unlock()
	if work || f.broken.Load() != nil || f.closed.Load() {
		return 0, nil
	}
	fds := [2]unix.PollFd{{Fd: int32(f.wakeFD), Events: unix.POLLIN}, {Fd: -1}}
	if q != nil {
		if err := q.arm(); err != nil {
			f.breakDown(err)
			return 0, nil
		}
		// One that came before the arming makes no event.
		if n, err := f.poll(0); n > 0 || err != nil {
			return n, err
		}
		fds[1] = unix.PollFd{Fd: int32(q.fd), Events: unix.POLLIN}
	}
	_, err := unix.Poll(fds[:], int(lookEvery/time.Millisecond))
	if err != nil && err != unix.EINTR {
		return 0, fmt.Errorf("wait for RDMA: %w", err)
	}
	if fds[0].Revents != 0 {
		var b [8]byte
		unix.Read(f.wakeFD, b[:]) // an empty one is as good
	}
	if q != nil && fds[1].Revents != 0 {
		q.disarm()
	}
	f.overdue(time.Now())
	return 0, nil
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

// land brings the pages of completed READs to their place, and posts what waited
// for a slot.
func (f *Fetcher) land(dones []done) error {
	for i := range dones {
		d := &dones[i]
		if d.id >= uint64(len(f.ops)) {
			f.breakDown(fmt.Errorf("a completion has the unknown id %d", d.id))
			return nil
		}
		if d.status != 0 {
			f.breakDown(fmt.Errorf("READ failed: %s (vendor code %#x)", statusText(d.status), d.vendor))
			return nil
		}
		// The op is ours until its slot is free: nobody else touches it.
		o := &f.ops[d.id]
		mem := f.stage[int(d.id)*f.slotSize:]
		f.stats.Completed.Add(1)
		for _, p := range o.parts {
			ps := int(f.table.regions[p.fl.Region].PageSize)
			size := int(p.count) * ps
			if err := f.deliver(p, mem[:size], ps); err != nil {
				return err
			}
			mem = mem[size:]
		}
		f.mu.Lock()
		o.busy = false
		clear(o.parts)
		o.parts = o.parts[:0]
		f.free = append(f.free, int(d.id))
		f.mu.Unlock()
	}
	if len(dones) > 0 {
		f.mu.Lock()
		f.post(time.Now())
		f.mu.Unlock()
	}
	return nil
}

// deliver gives the pages of one part to the sink, run by run: those that read as
// zero stay holes.
func (f *Fetcher) deliver(p part, mem []byte, ps int) error {
	fl := p.fl
	begin := time.Now()
	fl.wire = begin.Sub(fl.sent)
	fl.bytes += len(mem)
	f.stats.Bytes.Add(uint64(len(mem)))
	for at := uint32(0); at < p.count; {
		zero := isZero(mem[int(at)*ps:][:ps])
		n := uint32(1)
		for at+n < p.count && isZero(mem[int(at+n)*ps:][:ps]) == zero {
			n++
		}
		r := transport.Range{Region: fl.Region, First: p.first + uint64(at), Count: n}
		var err error
		if zero {
			fl.zero += n
			err = f.sink.Zero(r)
		} else {
			fl.data += n
			err = f.place(fl, r, mem[int(at)*ps:][:int(n)*ps], ps)
		}
		if err != nil {
			return fmt.Errorf("install %d pages at %d of region %d: %w", n, r.First, r.Region, err)
		}
		at += n
	}
	fl.commit += time.Since(begin)
	f.came(fl)
	return nil
}

func isZero(page []byte) bool {
	word, same := sysmem.SameFill(page)
	return same && word == 0
}

// place claims the pages of r, writes those it got, and commits them.
func (f *Fetcher) place(fl *flight, r transport.Range, mem []byte, ps int) error {
	begin := time.Now()
	if cap(f.dst) < int(r.Count) {
		f.dst = make([][]byte, r.Count)
	}
	dst := f.dst[:r.Count]
	defer clear(dst)
	f.sink.Reserve(r, dst)
	if err := write(dst, mem, ps); err != nil {
		f.sink.Abort(r, dst)
		return err
	}
	took := time.Since(begin)
	fl.copied += took
	fl.commit -= took // the caller counts all
	return f.sink.Commit(r, dst)
}

// write copies pages. A file system that is full answers a store by SIGBUS, which
// becomes an error.
func write(dst [][]byte, mem []byte, ps int) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		fault, ok := p.(interface {
			runtime.Error
			Addr() uintptr
		})
		if !ok {
			panic(p)
		}
		err = fmt.Errorf("write received pages at address %#x: %w: %w", fault.Addr(), transport.ErrNoMemory, fault)
	}()
	for i, d := range dst {
		if d != nil {
			if len(d) != ps {
				return fmt.Errorf("sink reserved %d bytes for a page of %d", len(d), ps)
			}
			copy(d, mem[i*ps:])
		}
	}
	return nil
}

// end ends RDMA on this channel: what is outstanding goes by FETCH.
func (f *Fetcher) end(why error) error {
	f.mu.Lock()
	q, pending := f.q, f.pending
	f.q, f.pending = nil, nil
	if q == nil && pending == nil {
		f.mu.Unlock()
		return nil // it has ended before
	}
	f.reads.clear()
	f.zeros.clear()
	f.asks.clear()
	f.waiting = nil
	f.free = f.free[:0]
	retried := uint64(0)
	for i := range f.ops {
		if f.ops[i].busy {
			retried++
		}
		f.ops[i] = op{}
		f.free = append(f.free, i)
	}
	done := make(map[*flight]bool)
	for f.ready.len() > 0 {
		done[f.ready.pop()] = true
	}
	for _, fl := range f.flights {
		switch {
		case done[fl]:
			f.ready.push(fl)
		case !fl.below:
			fl.data, fl.zero, fl.ahead = 0, 0, 0
			f.below(fl)
		}
	}
	f.mu.Unlock()
	for _, q := range []*queue{q, pending} {
		if q != nil {
			q.close() // from here on nothing is written into the stage
		}
	}
	if q != nil {
		f.stats.Up.Add(-1)
	}
	f.stats.Retried.Add(retried)
	f.stats.Fallbacks.Add(1)
	err := fmt.Errorf("RDMA by %s: %w", f.dev, why)
	if f.opt.Down != nil {
		f.opt.Down(err)
	}
	text := err.Error()
	if err := f.ch.SendSide(transport.Header{Aux: kindOff}, []byte(text[:min(len(text), transport.MaxText)])); err != nil {
		return err
	}
	return f.send()
}
