package tcp

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// MaxOutstanding bounds the unanswered fetches of one channel. Fetch fails at
// the bound: the planner's window is meant to stay far below it.
const MaxOutstanding = 4096

// fetchBatch is how many FETCH frames go out in one write.
const fetchBatch = 64

// pending is a fetch that has not been answered.
type pending struct {
	transport.Fetch // as the caller knows it
	sent            time.Time
	wire            uint64 // its id on the wire
	written         bool   // its FETCH goes out, or has; kept only where messages may come
	invited         bool   // it may be answered by a message
	lapsed          bool   // it was sent once more, by another id; either answer will do
	done            bool   // the other answer has come: this one is of no interest
}

// Fetcher is the destination's end of a page channel over a socket. It
// implements [transport.Fetcher].
type Fetcher struct {
	c *Conn

	mu  sync.Mutex
	out []pending // unanswered; guarded by mu

	wbuf     []byte        // guarded by the Conn's write lock
	progress atomic.Uint64 // counts pieces of answers

	rmu  sync.Mutex // held through Receive; release takes it to free conn's memory
	conn assembly   // of answers on the connection

	// What follows is for answers by message, see message.go.
	mmu     sync.Mutex // held through Deliver, likewise
	message assembly
	from    memory
	beside  atomic.Bool // messages may come, or might have
	credits int         // messages that may come and no fetch has asked for; guarded by mu
	over    bool        // there are no more messages; guarded by mu
	fresh   uint64      // the last id drawn for the wire; guarded by mu
}

var _ transport.Fetcher = (*Fetcher)(nil)

func newFetcher(c *Conn) *Fetcher {
	f := &Fetcher{c: c, wbuf: make([]byte, 0, fetchBatch*transport.HeaderSize)}
	f.conn = assembly{c: c, in: c.w, progress: &f.progress,
		dst: make([][]byte, 0, min(c.MaxCount(), transport.DefaultMaxCount)), vec: make([][]byte, 0, maxIovecs)}
	return f
}

// Fetch sends requests, see [transport.Fetcher]. Requests that break a limit of
// the channel are the caller's mistake: nothing is sent, the channel lives on.
func (f *Fetcher) Fetch(fs []transport.Fetch) error {
	if err := f.register(fs); err != nil {
		return err
	}
	return f.send(fs)
}

// send writes the FETCH frames of fs, which are outstanding.
func (f *Fetcher) send(fs []transport.Fetch) error {
	c := f.c
	if err := c.lock(); err != nil {
		return err
	}
	defer c.unlock()
	for len(fs) > 0 {
		n := min(len(fs), fetchBatch)
		b := f.wbuf[:n*transport.HeaderSize]
		for i := range fs[:n] {
			p := b[i*transport.HeaderSize:][:transport.HeaderSize]
			h := fs[i].Header()
			if f.beside.Load() {
				f.address(&h)
			}
			h.Put(p)
			transport.SetCRC(p, transport.HeaderCRC(p))
		}
		if err := c.w.write(b); err != nil {
			return c.fail(err)
		}
		fs = fs[n:]
	}
	return nil
}

// register checks fs and notes them as outstanding, all or none.
func (f *Fetcher) register(fs []transport.Fetch) error {
	t := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	old := len(f.out)
	for i := range fs {
		if err := f.check(&fs[i]); err != nil {
			f.out = f.out[:old]
			return fmt.Errorf("fetch %d pages at %d of region %d: %w", fs[i].Count, fs[i].First, fs[i].Region, err)
		}
		f.out = append(f.out, pending{Fetch: fs[i], sent: t, wire: f.wireID(fs[i].ID)})
	}
	for i := old; i < len(f.out) && f.credits > 0; i++ {
		f.out[i].invited = true
		f.credits--
	}
	return nil
}

// check is called with mu held.
func (f *Fetcher) check(r *transport.Fetch) error {
	reg, ok := f.c.region(r.Region)
	switch {
	case !ok:
		return fmt.Errorf("%w: the region is not in the table given to SetRegions", transport.ErrNotSent)
	case r.Count == 0 || r.First >= reg.Pages || uint64(r.Count) > reg.Pages-r.First:
		return fmt.Errorf("%w: the region has %d pages", transport.ErrNotSent, reg.Pages)
	case r.Plain && f.c.Features()&transport.FeatureWarm == 0:
		return fmt.Errorf("%w: plain, but the warm feature is not in force", transport.ErrNotSent)
	case r.Count > f.c.MaxCount():
		return fmt.Errorf("%w: max_count of this channel is %d", transport.ErrNotSent, f.c.MaxCount())
	case len(f.out) >= MaxOutstanding:
		return fmt.Errorf("%d fetches are outstanding, the limit", MaxOutstanding)
	case f.known(r.ID):
		return fmt.Errorf("id %d is outstanding already", r.ID)
	}
	return nil
}

// known says whether the caller's id is outstanding. mu is held.
func (f *Fetcher) known(id uint64) bool {
	for i := range f.out {
		if p := &f.out[i]; p.ID == id && !p.lapsed && !p.done {
			return true
		}
	}
	return false
}

// find returns the index in out of an id on the wire, or -1. mu is held. Answers
// mostly come in the order of their fetches, so the search is short.
func (f *Fetcher) find(wire uint64) int {
	for i := range f.out {
		if f.out[i].wire == wire {
			return i
		}
	}
	return -1
}

// lookup returns the pending fetch that an answer names.
func (f *Fetcher) lookup(wire uint64) (pending, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.find(wire); i >= 0 {
		return f.out[i], true
	}
	return pending{}, false
}

// answered ends a pending fetch. It reports whether the caller waits for it still:
// one that was sent twice may have had its other answer.
func (f *Fetcher) answered(wire uint64, message bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.find(wire)
	if i < 0 {
		return false
	}
	p := f.out[i]
	f.out = slices.Delete(f.out, i, i+1)
	if p.invited && !message && !f.over {
		f.credits++ // the message it asked for will not come
	}
	if f.over {
		f.settle(&p)
	}
	return !p.done
}

// Outstanding appends the unanswered fetches to buf.
func (f *Fetcher) Outstanding(buf []transport.Fetch) []transport.Fetch {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.out {
		if p := &f.out[i]; !p.lapsed && !p.done {
			buf = append(buf, p.Fetch)
		}
	}
	return buf
}

// overdue is the keepalive's question whether a fetch has waited too long.
func (f *Fetcher) overdue(p *progress, t, dead int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	first := slices.IndexFunc(f.out, func(p pending) bool { return !p.lapsed && !p.done })
	if seen := f.progress.Load(); seen != p.seen || first < 0 {
		p.seen, p.at = seen, t
	}
	if first < 0 {
		return nil
	}
	old := &f.out[first]
	wait := int64(time.Since(old.sent))
	if wait >= dead && t-p.at >= dead || wait >= stallLimit*dead {
		return fmt.Errorf("%w: fetch %d (%d pages at %d of region %d) unanswered for %v", ErrDead,
			old.ID, old.Count, old.First, old.Region, time.Duration(wait).Round(time.Millisecond))
	}
	return nil
}

// Close ends the channel, see [Conn.Close].
func (f *Fetcher) Close() error { return f.c.Close() }

// release frees the scratch memory once the channel has ended and nobody is in
// Receive; otherwise Receive does it when it returns.
func (f *Fetcher) release() {
	if f.rmu.TryLock() {
		f.conn.free()
		f.rmu.Unlock()
	}
	if f.mmu.TryLock() {
		f.message.free()
		f.mmu.Unlock()
	}
}
