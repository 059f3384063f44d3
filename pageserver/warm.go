package pageserver

import (
	"fmt"
	"sync/atomic"

	"github.com/pagewarp/pagewarp/internal/pagehash"
	"github.com/pagewarp/pagewarp/transport"
)

// Warm is what a destination says that it has of the image: hashes of its
// candidates, by region. It is filled before the image is frozen, and consulted
// from then on. Its methods are safe for concurrent use.
type Warm struct {
	key     pagehash.Key
	indexes map[uint32]*pagehash.Index // immutable

	// Pages hashed and found to be the same, by all channels.
	tried, same atomic.Uint64
}

// NewWarm returns the candidates, none as yet, of a session's image.
func NewWarm(token [32]byte, regions []transport.Region) (*Warm, error) {
	w := &Warm{key: pagehash.SessionKey(token), indexes: make(map[uint32]*pagehash.Index, len(regions))}
	for _, r := range regions {
		x, err := pagehash.NewIndex(r.Pages)
		if err != nil {
			return nil, fmt.Errorf("region %d (%q): %w", r.ID, r.Name, err)
		}
		w.indexes[r.ID] = x
	}
	return w, nil
}

// Take notes hashes that came from the destination, pagehash.Size bytes for each
// page of r. An error is the peer's mistake; it wraps transport.ErrMalformed.
func (w *Warm) Take(r transport.Range, hashes []byte) error {
	x := w.indexes[r.Region]
	if x == nil {
		return fmt.Errorf("%w: INDEX of region %d, which there is not", transport.ErrMalformed, r.Region)
	}
	if err := x.Take(r.First, hashes); err != nil {
		return fmt.Errorf("%w: INDEX of region %d: %w", transport.ErrMalformed, r.Region, err)
	}
	return nil
}

// Candidates returns how many pages the destination has offered.
func (w *Warm) Candidates() (n uint64) {
	for _, x := range w.indexes {
		n += x.Count()
	}
	return n
}

// On a demand channel a hash stands between a vCPU and its page. It pays while
// most candidates match; trial pages find out, and one in retryEvery goes on
// finding out.
const (
	trial      = 64
	retryEvery = 16
)

// pays reports whether a page is worth a hash on the fault path.
func (w *Warm) pays() bool {
	tried := w.tried.Load()
	return tried < trial || 2*w.same.Load() >= tried || tried%retryEvery == 0
}

// comparer is one channel's way to compare pages. A nil one has none to compare.
type comparer struct {
	w      *Warm
	hasher *pagehash.Hasher
	stats  *Stats
	bulk   bool
}

func (w *Warm) comparer(stats *Stats, bulk bool) *comparer {
	if w == nil {
		return nil
	}
	return &comparer{w: w, hasher: pagehash.NewHasher(w.key), stats: stats, bulk: bulk}
}

// index returns what the pages of f are compared with, nil for nothing.
func (c *comparer) index(f transport.Fetch) *pagehash.Index {
	if c == nil || f.Plain {
		return nil
	}
	if !c.bulk && !c.w.pays() {
		c.w.tried.Add(1) // or no page would be tried any more
		return nil
	}
	return c.w.indexes[f.Region]
}

// same reports whether a page of the image is what the destination has.
func (c *comparer) same(x *pagehash.Index, page uint64, mem []byte) bool {
	want, ok := x.Get(page)
	if !ok {
		return false
	}
	c.stats.Hashed.Add(1)
	c.w.tried.Add(1)
	if c.hasher.Sum(mem) != want {
		return false
	}
	c.w.same.Add(1)
	return true
}
