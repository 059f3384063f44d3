package rdma

import (
	"errors"
	"slices"
	"testing"

	"github.com/pagewarp/pagewarp/transport"
)

// asking is a source's end of a channel of two regions, of which nothing is registered.
func asking(pin Pin) *Attachment {
	regions := map[uint32]*exported{
		1: {Source: Source{Region: transport.Region{ID: 1, Pages: 1000, PageSize: 4096}}, unit: 256},
		2: {Source: Source{Region: transport.Region{ID: 2, Pages: 3, PageSize: 1 << 30}}, unit: 1},
	}
	return &Attachment{e: &Export{regions: regions, opt: ExportOptions{Pin: pin}}, asks: make(chan ask, 4), met: make(chan struct{}), cancel: func() {}}
}

// A MAP of what is no chunk ends the channel: nothing is kept of it, or a destination
// could have the source keep as many as it likes.
func TestMapOfNoChunk(t *testing.T) {
	a := asking(PinLazy)
	for _, h := range []transport.Header{{Region: 1, First: 1}, {Region: 1, First: 255}, {Region: 1, First: 1024}, {Region: 1, First: 1 << 63}, {Region: 2, First: 3}, {Region: 1, Count: 1}} {
		h.Aux = kindMap
		if err := a.side(h, nil); !errors.Is(err, transport.ErrMalformed) {
			t.Errorf("MAP of page %d (count %d) of region %d: %v", h.First, h.Count, h.Region, err)
		}
	}
	if len(a.asks) != 0 {
		t.Errorf("%d of them wait to be answered", len(a.asks))
	}
	for _, h := range []transport.Header{{Region: 1}, {Region: 1, First: 768}, {Region: 2, First: 2}, {Region: 3, First: 1}} {
		h.Aux = kindMap
		if err := a.side(h, nil); err != nil {
			t.Errorf("MAP of page %d of region %d: %v", h.First, h.Region, err)
		}
	}
	if err := a.side(transport.Header{Aux: kindMap, Region: 1}, nil); !errors.Is(err, transport.ErrMalformed) {
		t.Errorf("one more than can wait: %v", err)
	}
	if _, err := a.e.chunk(3, 1); err == nil || errors.Is(err, transport.ErrMalformed) {
		t.Errorf("a region that is not exported: %v", err) // it is said to be UNMAPPED
	}
}

// After OFF nothing more is registered, nor is what was asked for before, and an endpoint
// that comes then is not connected to.
func TestNothingAfterOff(t *testing.T) {
	a := asking(PinAll)
	ended := false
	a.cancel = func() { ended = true }
	if err := a.side(transport.Header{Aux: kindOff}, nil); err != nil {
		t.Fatal(err)
	}
	if !ended {
		t.Error("chunks are registered and told still")
	}
	for range cap(a.asks) + 1 {
		if err := a.side(transport.Header{Aux: kindMap, Region: 1}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.asks) != 0 {
		t.Errorf("%d MAPs wait to be answered", len(a.asks))
	}
	connect := (&endpoint{qpn: 3, mtu: 5, link: 2, reads: 4}).append(nil)
	if err := a.side(transport.Header{Aux: kindConnect}, connect); err != nil {
		t.Error(err) // without a device it would have had to panic
	}
	a.worker.Wait()
}

// What no connection with these regions and limits can carry is said to be that, as by
// every channel: the engine gives up such a session in the stead of dialling for ever.
func TestNotSent(t *testing.T) {
	f := &Fetcher{ch: pageChannel{features: transport.FeatureRDMA}, table: newTable([]transport.Region{{ID: 1, Pages: 100, PageSize: 4096}}), opt: FetchOptions{MaxCount: 64}}
	at := func(region uint32, first uint64, count uint32) transport.Fetch {
		return transport.Fetch{ID: 7, Range: transport.Range{Region: region, First: first, Count: count}}
	}
	plain := at(1, 0, 1)
	plain.Plain = true
	for _, x := range []transport.Fetch{at(2, 0, 1), at(1, 100, 1), at(1, 90, 11), at(1, 0, 0), at(1, 0, 65), plain} {
		good := at(1, 0, 1)
		good.ID = 6
		if err := f.Fetch([]transport.Fetch{good, x}); !errors.Is(err, transport.ErrNotSent) {
			t.Errorf("%+v: %v", x, err)
		}
		if n := len(f.Outstanding(nil)); n != 0 {
			t.Errorf("%+v: %d fetches are outstanding", x, n)
		}
	}
}

// Each kind of trouble at the source is told once, whatever comes before or after it.
func TestReportsEachKind(t *testing.T) {
	var told []string
	e := &Export{opt: ExportOptions{Report: func(err error) { told = append(told, err.Error()) }}}
	for range 2 {
		for kind, text := range map[trouble]string{notSetUp: "set-up", notRegistered: "budget", notSent: "RNR", notTakenBack: "EBUSY"} {
			e.report(kind, errors.New(text))
		}
	}
	slices.Sort(told)
	if want := []string{"EBUSY", "RNR", "budget", "set-up"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}
