package rdma

import (
	"fmt"
	"sort"

	"github.com/pagewarp/pagewarp/transport"
)

// state is what the destination knows of a chunk.
type state uint8

const (
	unknown state = iota
	asked         // MAP is under way
	mapped        // its windows are known
	refused       // it goes by FETCH
)

// maxAsking is how many chunks a destination asks for at a time: the source registers one
// after the other, some ms each, and would end a channel of which very many wait (maxAsked).
// Those that are not asked for are when they are wanted after that.
const maxAsking = 64

// table is the destination's view of what can be read. It belongs to whoever
// holds the Fetcher's lock.
type table struct {
	regions map[uint32]*regionTable
	asking  int // chunks in state asked
}

type regionTable struct {
	transport.Region
	unit    uint64 // pages of a chunk; 0 until ACCEPT
	states  []state
	windows [][]window // by chunk
}

func newTable(rs []transport.Region) *table {
	t := &table{regions: make(map[uint32]*regionTable, len(rs))}
	for _, r := range rs {
		t.regions[r.ID] = &regionTable{Region: r}
	}
	return t
}

// cut lays the chunks out, once their size is known.
func (t *table) cut(bytes uint32) {
	for _, r := range t.regions {
		r.unit = max(1, uint64(bytes)/uint64(r.PageSize))
		n := (r.Pages + r.unit - 1) / r.unit
		r.states = make([]state, n)
		r.windows = make([][]window, n)
	}
}

// mapped takes a MAPPED in.
func (t *table) mapped(h *transport.Header, body []byte) error {
	r, first, err := t.chunkOf(h)
	if err != nil {
		return err
	}
	end := h.First + uint64(h.Count)
	if h.Count == 0 || end > r.Pages || end != r.Pages && end%r.unit != 0 {
		return fmt.Errorf("%w: MAPPED of pages %d+%d of region %d (%d pages), which does not end where a chunk does", transport.ErrMalformed, h.First, h.Count, h.Region, r.Pages)
	}
	ws, err := parseWindows(body, h.First, h.Count, r.PageSize)
	if err != nil {
		return err
	}
	for c := first; c*r.unit < end; c++ {
		from, to := c*r.unit, min((c+1)*r.unit, end)
		var own []window
		for _, w := range ws {
			a, b := max(w.first, from), min(w.first+uint64(w.count), to)
			if a < b {
				own = append(own, window{first: a, count: uint32(b - a), rkey: w.rkey, addr: w.addr + (a-w.first)*uint64(r.PageSize)})
			}
		}
		t.know(r, c, mapped)
		r.windows[c] = own
	}
	return nil
}

// ask reports whether a chunk is to be asked for now.
func (t *table) ask(r *regionTable, c uint64) bool {
	if r.states[c] != unknown || t.asking >= maxAsking {
		return false
	}
	r.states[c] = asked
	t.asking++
	return true
}

// know notes what the source has said of a chunk.
func (t *table) know(r *regionTable, c uint64, s state) {
	if r.states[c] == asked {
		t.asking--
	}
	r.states[c] = s
}

// unmapped takes an UNMAPPED in.
func (t *table) unmapped(h *transport.Header) error {
	r, c, err := t.chunkOf(h)
	if err == nil {
		t.know(r, c, refused)
	}
	return err
}

func (t *table) chunkOf(h *transport.Header) (*regionTable, uint64, error) {
	r := t.regions[h.Region]
	if r == nil || r.unit == 0 || h.First >= r.Pages || h.First%r.unit != 0 {
		return nil, 0, fmt.Errorf("%w: RDMA frame about page %d of region %d, where no chunk begins", transport.ErrMalformed, h.First, h.Region)
	}
	return r, h.First / r.unit, nil
}

// piece is a part of a fetch that is had in one way.
type piece struct {
	first uint64
	count uint32
	zero  bool // a hole; else by READ
	rkey  uint32
	addr  uint64
}

// split cuts a range along windows and holes and appends the pieces. If a chunk
// of the range is not mapped, ok is false and chunk is its number; pieces are to
// be ignored then.
func (r *regionTable) split(rng transport.Range, pieces []piece) (_ []piece, chunk uint64, ok bool) {
	at, end := rng.First, rng.First+uint64(rng.Count)
	for at < end {
		c := at / r.unit
		if r.states[c] != mapped {
			return pieces, c, false
		}
		stop := min(end, (c+1)*r.unit)
		ws := r.windows[c]
		i := sort.Search(len(ws), func(i int) bool { return ws[i].first+uint64(ws[i].count) > at })
		for at < stop {
			if i == len(ws) || ws[i].first > at {
				next := stop
				if i < len(ws) {
					next = min(stop, ws[i].first)
				}
				pieces = append(pieces, piece{first: at, count: uint32(next - at), zero: true})
				at = next
				continue
			}
			w := &ws[i]
			next := min(stop, w.first+uint64(w.count))
			pieces = append(pieces, piece{first: at, count: uint32(next - at), rkey: w.rkey, addr: w.addr + (at-w.first)*uint64(r.PageSize)})
			at = next
			i++
		}
	}
	return pieces, 0, true
}

// hole returns how far the hole at page goes within what is mapped: the number
// of pages, at most limit.
func (r *regionTable) hole(page, limit uint64) uint64 {
	at := page
	for at < r.Pages && at-page < limit {
		c := at / r.unit
		if r.states[c] != mapped {
			break
		}
		ws := r.windows[c]
		i := sort.Search(len(ws), func(i int) bool { return ws[i].first+uint64(ws[i].count) > at })
		if i < len(ws) {
			at = max(at, ws[i].first)
			break
		}
		at = min((c+1)*r.unit, r.Pages)
	}
	return min(at-page, limit)
}
