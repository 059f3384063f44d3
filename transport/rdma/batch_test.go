package rdma

import (
	"errors"
	"slices"
	"testing"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/transporttest"
)

// Room for messages is told where they were agreed on, within bounds, and not together
// with chunks for READs.
func TestEndpointOfMessages(t *testing.T) {
	e := endpoint{qpn: 17, psn: 3, mtu: 5, link: 2, reads: 1, slots: batchSlots, slotBytes: batchBytes}
	for _, accept := range []bool{false, true} {
		if got, err := parseEndpoint(e.append(nil), accept, true); err != nil || got != e {
			t.Errorf("accept=%t: %+v, %v", accept, got, err)
		}
		if _, err := parseEndpoint(e.append(nil), accept, false); !errors.Is(err, transport.ErrMalformed) {
			t.Errorf("accept=%t: messages that were not agreed on gave %v", accept, err)
		}
	}
	for _, edit := range []func(*endpoint){
		func(e *endpoint) { e.slots = 0 }, func(e *endpoint) { e.slotBytes = 0 }, func(e *endpoint) { e.slots = maxSlots + 1 },
		func(e *endpoint) { e.slotBytes = minSlotBytes - 1 }, func(e *endpoint) { e.slotBytes = maxSlotBytes + 1 }, func(e *endpoint) { e.chunk = chunkBytes },
	} {
		bad := e
		edit(&bad)
		if _, err := parseEndpoint(bad.append(nil), true, true); !errors.Is(err, transport.ErrMalformed) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// takingSink is a sink that takes pages out of the Fetcher's memory.
type takingSink struct {
	*transporttest.Sink
	runs []transport.Range
}

func (*takingSink) Takes() bool { return true }

func (s *takingSink) Take(r transport.Range, src [][]byte) error {
	s.runs = append(s.runs, r)
	dst := make([][]byte, r.Count)
	s.Reserve(r, dst)
	for i := range dst {
		if dst[i] != nil {
			copy(dst[i], src[i])
		}
	}
	return s.Commit(r, dst)
}

// Pages that a sink takes are not claimed before they are there; those that are as its
// candidates are left to it, and the runs around them are taken; what finds no room in
// the box is the sink's from the beginning; an answer that fails leaves nothing.
func TestBox(t *testing.T) {
	reg := transport.Region{ID: 1, Name: "ram", Pages: 4096, PageSize: pageBytes}
	im := transporttest.NewImage(t, reg)
	for p := range reg.Pages {
		im.Put(1, p, transporttest.Random, 3)
	}
	sink := &takingSink{Sink: transporttest.NewSink(t, reg)}
	for p := uint64(4); p < 6; p++ {
		sink.Prime(im, 1, p)
	}
	sink.Candidate = func(_ uint32, p uint64, _ []byte) bool { return p == 4 }
	late := newLateSink()
	late.bind(sink)
	b := &box{s: late, pageSize: map[uint32]int{1: pageBytes}}
	defer b.free()

	r := transport.Range{Region: 1, Count: 8}
	dst := make([][]byte, 8)
	b.Reserve(r, dst)
	if got, held := sink.Counts(); got+held != 0 {
		t.Errorf("%d pages are resident and %d reserved before they are there", got, held)
	}
	for i, m := range dst {
		copy(m, im.Memory(transport.Range{Region: 1, First: uint64(i), Count: 1}))
	}
	if err := b.Same(transport.Range{Region: 1, First: 4, Count: 2}, dst[4:6]); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(r, dst); err != nil {
		t.Fatal(err)
	}
	sink.Check(t, im, transport.Range{Region: 1, Count: 5}, transport.Range{Region: 1, First: 6, Count: 2})
	if want := []transport.Range{{Region: 1, Count: 4}, {Region: 1, First: 6, Count: 2}}; !slices.Equal(sink.runs, want) {
		t.Errorf("taken: %+v, want %+v", sink.runs, want)
	}
	if got, held := sink.Counts(); got != 7 || held != 0 {
		t.Errorf("%d pages are resident, %d reserved; page 5 was not what the source has", got, held)
	}

	b.reset()
	aborted := transport.Range{Region: 1, First: 8, Count: 8}
	b.Reserve(aborted, dst)
	b.Abort(aborted, dst)
	whole := transport.Range{Region: 1, First: 16, Count: boxBytes/pageBytes - 8}
	more := transport.Range{Region: 1, First: whole.First + uint64(whole.Count), Count: 16}
	for _, x := range []transport.Range{whole, more} { // 8 pages are used by now
		d := make([][]byte, x.Count)
		b.Reserve(x, d)
		if _, held := sink.Counts(); held != int(more.Count) && x == more || held != 0 && x == whole {
			t.Errorf("%d pages are reserved after %+v", held, x)
		}
		for i, m := range d {
			copy(m, im.Memory(transport.Range{Region: 1, First: x.First + uint64(i), Count: 1}))
		}
		if err := b.Commit(x, d); err != nil {
			t.Fatal(err)
		}
		sink.Check(t, im, x)
	}
	if got, held := sink.Counts(); got != 7+int(whole.Count+more.Count) || held != 0 {
		t.Errorf("%d pages are resident, %d reserved", got, held)
	}
}

const pageBytes = 4096
