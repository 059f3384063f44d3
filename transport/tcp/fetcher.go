package tcp

import (
	"errors"
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

type pending struct {
	transport.Fetch
	sent time.Time
}

// Fetcher is the destination's end of a page channel over a socket. It
// implements [transport.Fetcher].
type Fetcher struct {
	c *Conn

	mu  sync.Mutex
	out []pending // unanswered; guarded by mu

	wbuf     []byte        // guarded by the Conn's write lock
	progress atomic.Uint64 // counts pieces of answers

	// rmu is held through Receive; release takes it to free what follows.
	rmu     sync.Mutex
	ext     []transport.Extent
	dst     [][]byte
	land    [][]byte // where the bytes of each page go: dst, with room for dropped pages that others repeat
	own     [][]byte // the memory of land where it is not dst
	data    [][]byte // with repeats: of land, the data pages
	runs    []run
	vec     [][]byte
	encoded scratch // an encoded body
	plain   scratch // a decoded one, where it cannot go into place
	drop    scratch // bytes of pages that are not wanted
	spare   scratch // pages that are not wanted, but repeated
}

var _ transport.Fetcher = (*Fetcher)(nil)

func newFetcher(c *Conn) *Fetcher {
	return &Fetcher{c: c, wbuf: make([]byte, 0, fetchBatch*transport.HeaderSize),
		dst: make([][]byte, 0, min(c.MaxCount(), transport.DefaultMaxCount)),
		vec: make([][]byte, 0, maxIovecs)}
}

// Fetch sends requests, see [transport.Fetcher]. Requests that break a limit of
// the channel are the caller's mistake: nothing is sent, the channel lives on.
func (f *Fetcher) Fetch(fs []transport.Fetch) error {
	if err := f.register(fs); err != nil {
		return err
	}
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
		f.out = append(f.out, pending{fs[i], t})
	}
	return nil
}

// check is called with mu held.
func (f *Fetcher) check(r *transport.Fetch) error {
	reg, ok := f.c.region(r.Region)
	switch {
	case !ok:
		return errors.New("the region is not in the table given to SetRegions")
	case r.Count == 0 || r.First >= reg.Pages || uint64(r.Count) > reg.Pages-r.First:
		return fmt.Errorf("the region has %d pages", reg.Pages)
	case r.Plain && f.c.Features()&transport.FeatureWarm == 0:
		return errors.New("plain, but the warm feature is not in force")
	case r.Count > f.c.MaxCount():
		return fmt.Errorf("max_count of this channel is %d", f.c.MaxCount())
	case len(f.out) >= MaxOutstanding:
		return fmt.Errorf("%d fetches are outstanding, the limit", MaxOutstanding)
	case f.find(r.ID) >= 0:
		return fmt.Errorf("id %d is outstanding already", r.ID)
	}
	return nil
}

// find returns the index of id in out, or -1. mu is held. Answers mostly come
// in the order of their fetches, so the search is short.
func (f *Fetcher) find(id uint64) int {
	for i := range f.out {
		if f.out[i].ID == id {
			return i
		}
	}
	return -1
}

// lookup returns the pending fetch that an answer names.
func (f *Fetcher) lookup(id uint64) (pending, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.find(id); i >= 0 {
		return f.out[i], true
	}
	return pending{}, false
}

func (f *Fetcher) answered(id uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.find(id); i >= 0 {
		f.out = slices.Delete(f.out, i, i+1)
	}
}

// Outstanding appends the unanswered fetches to buf.
func (f *Fetcher) Outstanding(buf []transport.Fetch) []transport.Fetch {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.out {
		buf = append(buf, f.out[i].Fetch)
	}
	return buf
}

// overdue is the keepalive's question whether a fetch has waited too long.
func (f *Fetcher) overdue(p *progress, t, dead int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if seen := f.progress.Load(); seen != p.seen || len(f.out) == 0 {
		p.seen, p.at = seen, t
	}
	if len(f.out) == 0 {
		return nil
	}
	old := &f.out[0]
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
		f.encoded.free()
		f.plain.free()
		f.drop.free()
		f.spare.free()
		f.rmu.Unlock()
	}
}
