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
	indexes map[uint32]*pagehash.Index  // immutable
	places  map[uint32]*pagehash.Places // immutable; nil for a region that is too large

	// Pages hashed and found to be the same, by all channels.
	tried, same atomic.Uint64
}

// NewWarm returns the candidates, none as yet, of a session's image.
func NewWarm(token [32]byte, regions []transport.Region) (*Warm, error) {
	w := &Warm{key: pagehash.SessionKey(token), indexes: make(map[uint32]*pagehash.Index, len(regions)), places: make(map[uint32]*pagehash.Places, len(regions))}
	for _, r := range regions {
		x, err := pagehash.NewIndex(r.Pages)
		if err != nil {
			return nil, fmt.Errorf("region %d (%q): %w", r.ID, r.Name, err)
		}
		w.indexes[r.ID], w.places[r.ID] = x, pagehash.NewPlaces(x)
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
	if p := w.places[r.Region]; p != nil {
		p.Add(r.First, uint64(len(hashes))/pagehash.Size)
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
	moved  bool // pages are looked for at other places, too
}

func (w *Warm) comparer(o *Options) *comparer {
	if w == nil {
		return nil
	}
	return &comparer{w: w, hasher: pagehash.NewHasher(w.key), stats: o.Stats, bulk: !o.Demand, moved: o.Moved && !o.Demand}
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

// compare says how a page of the image can be told: as what the destination has there,
// as what it has at the page that word names, or as data. Of a live image nothing is
// said of other places: the candidate there may be replaced by the time that counts.
func (c *comparer) compare(x *pagehash.Index, region uint32, page uint64, mem []byte, live bool) (kind transport.ExtentKind, word uint64) {
	want, ok := x.Get(page)
	var places *pagehash.Places
	if c.moved && !live {
		places = c.w.places[region]
	}
	if !ok && places == nil {
		return transport.Data, 0
	}
	c.stats.Hashed.Add(1)
	sum := c.hasher.Sum(mem)
	if ok {
		c.w.tried.Add(1)
		if sum == want {
			c.w.same.Add(1)
			return transport.Same, 0
		}
	}
	if places != nil {
		if from, ok := places.Find(sum); ok {
			return transport.Moved, from
		}
	}
	return transport.Data, 0
}
