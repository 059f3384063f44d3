//go:build !cgo || !rdma

package rdma

import (
	"errors"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// Without verbs no queue pair connects, as on a device that finds no path to the peer.

// sideChannel is a channel with RDMA frames, which it notes.
type sideChannel struct {
	Channel
	kind transport.Kind
	sent []transport.Header
}

func (c *sideChannel) Kind() transport.Kind { return c.kind }

func (*sideChannel) Features() transport.Features {
	return transport.FeatureRDMA | transport.FeatureSend
}

func (c *sideChannel) SendSide(h transport.Header, _ []byte) error {
	c.sent = append(c.sent, h)
	return nil
}

// noBase is a channel beneath that nothing comes over.
type noBase struct{ transport.MessageFetcher }

func (noBase) Recall() (int, error) { return 0, nil }

const latePages = 512

// connecting is a Fetcher that has sent CONNECT.
func connecting() (*Fetcher, *sideChannel) {
	ch := &sideChannel{kind: transport.Precache}
	f := &Fetcher{base: noBase{}, ch: ch, dev: pathless(), table: newTable([]transport.Region{{ID: 1, Pages: latePages, PageSize: 4096}}),
		sleeper: sleeper{wakeFD: -1}, sink: newLateSink(), stats: new(Stats), pending: new(queue)}
	return f, ch
}

func pathless() *Device {
	return &Device{dev: new(device), caps: caps{link: 2, mtu: 5, reads: 4, served: 4}, watch: make(map[int]func(error))}
}

// What the source has sent before it could know that RDMA is over at the destination, whose
// queue pair does not connect or whose port went down during the set-up, is late, and no
// breach: the channel goes on.
func TestLateFrames(t *testing.T) {
	accept := (&endpoint{qpn: 3, mtu: 5, link: 2, reads: 4, chunk: minChunkBytes}).append(nil)
	mapped := transport.Header{Aux: kindMapped, Region: 1, Count: latePages}
	window := appendWindow(nil, window{count: 8, rkey: 4, addr: 1 << 20})
	late := func(t *testing.T, f *Fetcher) {
		t.Helper()
		for _, x := range []struct {
			h    transport.Header
			body []byte
		}{{mapped, window}, {transport.Header{Aux: kindUnmapped, Region: 1}, []byte("no")}, {transport.Header{Aux: kindOff}, []byte("no")}} {
			if err := f.side(x.h, x.body); err != nil {
				t.Errorf("late frame of kind %d: %v", x.h.Aux, err)
			}
		}
	}
	t.Run("it does not connect", func(t *testing.T) {
		f, ch := connecting()
		if err := f.side(transport.Header{Aux: kindAccept}, accept); err != nil {
			t.Fatal(err)
		}
		late(t, f)
		f.pump.Wait()
		late(t, f)
		why := f.broken.Swap(nil)
		if why == nil {
			t.Fatal("nobody was told that it did not connect")
		}
		if err := f.end(*why); err != nil {
			t.Fatal(err)
		}
		late(t, f)
		if len(ch.sent) != 1 || ch.sent[0].Aux != kindOff {
			t.Errorf("sent %+v, want OFF", ch.sent)
		}
		if f.Up() || f.stats.Up.Load() != 0 {
			t.Error("RDMA is up")
		}
	})
	t.Run("it has ended", func(t *testing.T) {
		f, _ := connecting()
		if err := f.end(errors.New("port error")); err != nil {
			t.Fatal(err)
		}
		if err := f.side(transport.Header{Aux: kindAccept}, accept); err != nil {
			t.Errorf("late ACCEPT: %v", err)
		}
		f.pump.Wait()
		late(t, f)
		if f.Up() {
			t.Error("RDMA is up")
		}
	})
	t.Run("unasked", func(t *testing.T) {
		f, _ := connecting()
		if err := f.side(mapped, window); !errors.Is(err, transport.ErrMalformed) {
			t.Errorf("MAPPED before ACCEPT: %v", err)
		}
		if err := f.side(transport.Header{Aux: kindAccept}, accept); err != nil {
			t.Fatal(err)
		}
		if err := f.side(transport.Header{Aux: kindAccept}, accept); !errors.Is(err, transport.ErrMalformed) {
			t.Errorf("a second ACCEPT: %v", err)
		}
		f.pump.Wait()
	})
	t.Run("by message", func(t *testing.T) {
		accept := (&endpoint{qpn: 3, mtu: 5, link: 2, reads: 1, slots: 2, slotBytes: batchBytes}).append(nil)
		fresh := func() *BatchFetcher {
			return &BatchFetcher{base: noBase{}, ch: &sideChannel{kind: transport.Precache}, dev: pathless(), sleeper: sleeper{wakeFD: -1},
				sink: newLateSink(), stats: new(Stats), pending: new(queue), mine: endpoint{slots: 2, slotBytes: batchBytes}}
		}
		f := fresh()
		if err := f.end(errors.New("port error")); err != nil {
			t.Fatal(err)
		}
		if err := f.side(transport.Header{Aux: kindAccept}, accept); err != nil {
			t.Errorf("late ACCEPT: %v", err)
		}
		f = fresh()
		for i, breach := range []bool{false, true} {
			if err := f.side(transport.Header{Aux: kindAccept}, accept); errors.Is(err, transport.ErrMalformed) != breach {
				t.Errorf("ACCEPT %d: %v", i, err)
			}
		}
		f.pump.Wait()
		if f.broken.Load() == nil {
			t.Error("nobody was told that it did not connect")
		}
	})
}

// Before one READ has come no fetch is sent by READ: those on demand go by FETCH, others
// wait; holes are known without.
func TestUnproven(t *testing.T) {
	for _, kind := range []transport.Kind{transport.Demand, transport.Precache} {
		f, ch := connecting()
		ch.kind = kind
		f.q, f.pending, f.met = f.pending, nil, true
		f.slotSize, f.stageSlots, f.ops, f.stage, f.stageMR = 64<<10, 4, make([]op, 4), make([]byte, 4*64<<10), new(region)
		f.allFree()
		f.table.cut(minChunkBytes) // of 256 pages
		if err := f.side(transport.Header{Aux: kindMapped, Region: 1, First: 256, Count: 256}, nil); err != nil || f.under != 0 {
			t.Fatalf("a hole is read, or %v", err)
		}
		if err := f.side(transport.Header{Aux: kindMapped, Region: 1, Count: 256}, appendWindow(nil, window{count: 8, rkey: 4, addr: 1 << 20})); err != nil {
			t.Fatal(err)
		}
		if f.under != 1 {
			t.Fatalf("%v: %d READs are under way, want the first", kind, f.under)
		}
		now := time.Now()
		if err := f.enter([]transport.Fetch{
			{ID: 1, Range: transport.Range{Region: 1, First: 2, Count: 4}}, {ID: 2, Range: transport.Range{Region: 1, First: 20, Count: 4}},
		}, now); err != nil {
			t.Fatal(err)
		}
		f.route(f.flights.at(1))
		f.route(f.flights.at(2))
		demand := kind == transport.Demand
		if f.reads.len() != 0 || (f.byFetch.len() == 1) != demand || (len(f.waiting) == 1) == demand || f.zeros.len() != 1 {
			t.Errorf("%v: %d READs wait to be posted, %d fetches go by FETCH, %d wait; %d holes", kind, f.reads.len(), f.byFetch.len(), len(f.waiting), f.zeros.len())
		}
		if err := f.land([]done{{id: 3}}); err != nil {
			t.Fatal(err)
		}
		if f.proof != proven || (f.under == 1) == demand || len(f.waiting) != 0 || len(f.free)+f.under != 4 {
			t.Errorf("%v: after the first READ %d are under way, %d fetches wait, %d slots are free", kind, f.under, len(f.waiting), len(f.free))
		}
	}
}
