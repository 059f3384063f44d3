package tcp

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/transporttest"
)

// pigeon carries messages from one goroutine to another.
type pigeon struct {
	mem  [256 << 10]byte
	sent chan []byte
	most int
	rate float64
	lost atomic.Bool
}

func (p *pigeon) Room() ([]byte, int, bool) { return p.mem[:], p.most, !p.lost.Load() }
func (p *pigeon) Leave()                    {}
func (p *pigeon) Rate() float64             { return p.rate }
func (p *pigeon) Send(n int) bool {
	p.sent <- slices.Clone(p.mem[:n])
	return true
}

// carried is a channel whose answers can come by pigeon.
type carried struct {
	t    *testing.T
	c    *Conn
	f    *Fetcher
	r    *Responder
	p    *pigeon
	im   *transporttest.Image
	sink *transporttest.Sink
}

func newCarried(t *testing.T, mode transport.CodecMode) *carried {
	t.Helper()
	im := transporttest.NewImage(t, transport.Region{ID: 1, Name: "ram", Pages: 256, PageSize: 4096})
	for p := range uint64(256) {
		im.Put(1, p, transporttest.Text, p)
	}
	features := transport.AllFeatures&^transport.FeatureWarm | transport.FeatureRDMA | transport.FeatureSend
	ln, err := Listen("127.0.0.1:0", ListenOptions{Tuning: Tuning{Codec: mode}, Admit: func(transport.Hello, string) (transport.Offer, *transport.RemoteError) {
		return transport.Offer{Role: transport.Source, Features: features}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dst, err := Dial(t.Context(), ln.Addr().String(), Options{Hello: transport.Hello{Kind: transport.Precache, Role: transport.Destination, Features: features, Token: known}})
	if err != nil {
		t.Fatal(err)
	}
	src, err := ln.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dst.SetRegions(im.Regions)
	x := &carried{t: t, c: src, p: &pigeon{sent: make(chan []byte, 64), most: 200 << 10}, im: im, sink: transporttest.NewSink(t, im.Regions...)}
	x.f, _ = dst.Fetcher()
	x.r, _ = src.Responder()
	src.Carry(x.p)
	t.Cleanup(func() { dst.Close(); src.Close() })
	return x
}

// ask sends fetches of 16 pages and returns what the source saw.
func (x *carried) ask(first uint64, n int) []transport.Fetch {
	x.t.Helper()
	var fs []transport.Fetch
	for i := range uint64(n) {
		fs = append(fs, transport.Fetch{ID: first + i*16, Range: transport.Range{Region: 1, First: first + i*16, Count: 16}})
	}
	if err := x.f.Fetch(fs); err != nil {
		x.t.Fatal(err)
	}
	return x.see(n)
}

func (x *carried) see(n int) []transport.Fetch {
	x.t.Helper()
	got := make([]transport.Fetch, n)
	for k := 0; k < n; {
		m, err := x.r.Next(got[k:])
		if err != nil {
			x.t.Fatal(err)
		}
		k += m
	}
	return got
}

func (x *carried) answer(f transport.Fetch) {
	x.t.Helper()
	if err := x.im.Answer(x.r, f, true); err != nil {
		x.t.Fatal(err)
	}
}

func (x *carried) receive() (c transport.Completion) {
	x.t.Helper()
	if err := x.f.Receive(x.sink, &c); err != nil {
		x.t.Fatal(err)
	}
	return c
}

func (x *carried) deliver() (c transport.Completion) {
	x.t.Helper()
	if err := x.f.Deliver(<-x.p.sent, x.sink, &c); err != nil {
		x.t.Fatal(err)
	}
	return c
}

// As many fetches as were invited ask for a message, the others have the connection;
// an answer on the connection gives its message back.
func TestInvitations(t *testing.T) {
	for _, mode := range []transport.CodecMode{transport.ModeNone, transport.ModeS2, transport.ModeZstd} {
		x := newCarried(t, mode)
		x.f.Invite(2)
		for _, f := range x.ask(0, 3) {
			x.answer(f)
		}
		if n := len(x.p.sent); n != 2 || x.f.Invited() != 0 || x.f.Awaited() != 2 {
			t.Fatalf("%d messages, %d invited, %d awaited", n, x.f.Invited(), x.f.Awaited())
		}
		if c := x.receive(); c.ID != 32 {
			t.Errorf("%+v came by the connection", c)
		}
		for _, id := range []uint64{0, 16} {
			if c := x.deliver(); c.ID != id || c.Codec != transport.Codec(mode) || c.Data != 16 {
				t.Errorf("%+v came by message", c)
			}
		}
		x.f.Invite(2)
		x.p.most = 5000 // nothing fits, not even encoded
		for _, f := range x.ask(48, 2) {
			x.answer(f)
		}
		x.receive()
		x.receive()
		x.p.most = 200 << 10
		fs := x.ask(80, 1)
		if err := x.r.Refuse(fs[0].ID, transport.CodeIO, "no"); err != nil {
			t.Fatal(err)
		}
		if c := x.receive(); c.Refused == nil || x.f.Invited() != 2 {
			t.Errorf("%+v, %d invited", c, x.f.Invited())
		}
		x.sink.Check(t, x.im, transport.Range{Region: 1, Count: 80})
		if _, out := x.c.Bytes(); x.c.Carried() == 0 || out == 0 {
			t.Errorf("%d bytes were carried, %d went by the connection", x.c.Carried(), out)
		}
	}
}

// After the end of messages what they were to bring is fetched again; either answer
// will do, the other one is no breach, and ids can be used again.
func TestRecall(t *testing.T) {
	x := newCarried(t, transport.ModeS2)
	x.f.Invite(8)
	fs := x.ask(0, 3)
	x.answer(fs[0]) // by a message, which is lost
	x.p.lost.Store(true)
	if n, err := x.f.Recall(); n != 3 || err != nil {
		t.Fatalf("%d fetched again, %v", n, err)
	}
	if left := x.f.Outstanding(nil); len(left) != 3 {
		t.Errorf("outstanding: %v", left)
	}
	again := x.see(3)
	for i, f := range again {
		if f.Range != fs[i].Range || f.ID == fs[i].ID {
			t.Errorf("fetched again: %+v, before %+v", f, fs[i])
		}
	}
	x.answer(again[0])
	x.answer(fs[1]) // the first one late, then the second one
	x.answer(again[1])
	x.answer(again[2])
	for _, want := range []uint64{0, 16, 32} {
		if c := x.receive(); c.ID != want {
			t.Errorf("fetch %d was answered, want %d", c.ID, want)
		}
	}
	if left := x.f.Outstanding(nil); len(left) != 0 || x.f.Awaited() != 0 || x.f.Invited() != 0 {
		t.Errorf("outstanding: %v", left)
	}
	x.sink.Check(t, x.im, transport.Range{Region: 1, Count: 48})
	// The answer to fs[2] may come still, so that its id is not used for another fetch.
	next := x.ask(32, 1)
	if next[0].ID == fs[2].ID {
		t.Errorf("id %d is used for two fetches", next[0].ID)
	}
	x.answer(fs[2])
	x.answer(next[0])
	if c := x.receive(); c.ID != 32 {
		t.Errorf("%+v", c)
	}
	x.f.Invite(4)
	if x.f.Invited() != 0 {
		t.Error("messages are invited after their end")
	}
}

// What is no answer to a fetch that asked for a message is refused, and nothing of it
// is installed.
func TestStrangeMessages(t *testing.T) {
	x := newCarried(t, transport.ModeNone)
	x.f.Invite(1)
	fs := x.ask(0, 2) // the second one did not ask
	page := func(f transport.Fetch, edit func(*transport.Header)) []byte {
		h := transport.Header{Type: transport.TypePages, ID: f.ID, Region: 1, First: f.First, Count: f.Count}
		if edit != nil {
			edit(&h)
		}
		return transport.AppendFrame(nil, h, x.im.Memory(f.Range))
	}
	good := page(fs[0], nil)
	bad := slices.Clone(good)
	bad[5000] ^= 1
	for _, c := range []struct {
		msg  []byte
		want string
	}{
		{good[:39], "header has 39 bytes"}, {good[:len(good)-1], "has PAGES with a body"}, {append(good[:len(good):len(good)], 0), "has PAGES with a body"},
		{bad, "damaged on the way"}, {page(fs[1], nil), "did not ask for one"}, {page(fs[0], func(h *transport.Header) { h.ID = 9 }), "not outstanding"},
		{transport.AppendFrame(nil, transport.Header{Type: transport.TypePing}, nil), "want PAGES"},
		{page(fs[0], func(h *transport.Header) { h.Flags = 1 }), "s2 data for 16 pages"},
	} {
		var done transport.Completion
		err := x.f.Deliver(c.msg, x.sink, &done)
		if !errors.Is(err, transport.ErrMalformed) && !errors.Is(err, transport.ErrDecode) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want an error about %q", err, c.want)
		}
		if n, held := x.sink.Counts(); n != 0 || held != 0 {
			t.Fatalf("%d pages are resident, %d reserved", n, held)
		}
	}
	var done transport.Completion
	if err := x.f.Deliver(good, x.sink, &done); err != nil {
		t.Fatal(err)
	}
	if err := x.f.Deliver(good, x.sink, &done); !errors.Is(err, transport.ErrMalformed) {
		t.Errorf("a message twice: %v", err)
	}
}

// A FETCH that asks for a message where that was not agreed on ends the channel.
func TestMessageNotInForce(t *testing.T) {
	conn, w := rawPeer(t, transport.Destination, transport.Precache, transport.AllFeatures|transport.FeatureRDMA)
	r, err := conn.Responder()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.write(transport.AppendFrame(nil, transport.Header{Type: transport.TypeFetch, Flags: transport.FetchMessage, ID: 3, Region: 1, Count: 1}, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(make([]transport.Fetch, 1)); !errors.Is(err, transport.ErrMalformed) || !strings.Contains(err.Error(), "by message") {
		t.Errorf("the source ended with %v", err)
	}
}

// A message costs no allocation.
func TestMessageNoAllocation(t *testing.T) {
	x := newCarried(t, transport.ModeNone)
	x.f.Invite(1)
	mem := make([]byte, 4096)
	var sink transport.Sink = oneSink{mem}
	f := []transport.Fetch{{ID: 1, Range: transport.Range{Region: 1, First: 3, Count: 1}}}
	got := make([]transport.Fetch, 1)
	msg := transport.AppendFrame(nil, transport.Header{Type: transport.TypePages, ID: 1, Region: 1, First: 3, Count: 1}, mem)
	var c transport.Completion
	allocs := testing.AllocsPerRun(100, func() {
		if err := x.f.Fetch(f); err != nil {
			t.Fatal(err)
		}
		if _, err := x.r.Next(got); err != nil {
			t.Fatal(err)
		}
		if err := x.f.Deliver(msg, sink, &c); err != nil {
			t.Fatal(err)
		}
		x.f.Invite(1)
		x.r.allowed(1)
	})
	if allocs > 0 {
		t.Errorf("%v allocations for a message", allocs)
	}
}

// oneSink takes one page after the other at one place.
type oneSink struct{ mem []byte }

func (s oneSink) Reserve(_ transport.Range, dst [][]byte) { dst[0] = s.mem }
func (oneSink) Commit(transport.Range, [][]byte) error    { return nil }
func (oneSink) Abort(transport.Range, [][]byte)           {}
func (oneSink) Zero(transport.Range) error                { return nil }

// What the carrier knows of its way decides, from the first answer on, whether it pays to
// compress, not what is known of the connection.
func TestCarriedByTheRate(t *testing.T) {
	for name, c := range map[string]struct {
		rate float64
		raw  bool
	}{"not known": {0, true}, "slow": {2 << 20, false}, "fast": {50e9, true}} {
		t.Run(name, func(t *testing.T) {
			x := newCarried(t, transport.ModeAuto)
			x.p.rate = c.rate
			x.f.Invite(3)
			for _, f := range x.ask(0, 3) {
				x.answer(f)
				if len(x.p.sent) != 1 {
					t.Fatalf("%d messages", len(x.p.sent))
				}
				if n := len(<-x.p.sent); (n >= 16*4096) != c.raw {
					t.Errorf("the answer to fetch %d has %d bytes", f.ID, n)
				}
			}
		})
	}
}
