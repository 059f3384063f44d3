package tcp

import (
	"bytes"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/transporttest"
)

// rawPeer shakes hands as the listening side and leaves the rest to the test.
func rawPeer(t *testing.T, role transport.Role, kind transport.Kind, f transport.Features) (*Conn, *wire) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	type result struct {
		w   *wire
		err error
	}
	done := make(chan result, 1)
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			done <- result{nil, err}
			return
		}
		w, err := newWire(nc)
		if err == nil {
			_, err = welcomePeer(w, "", func(transport.Hello, string) (transport.Offer, *transport.RemoteError) {
				return transport.Offer{Role: role, Features: f}, nil
			})
		}
		done <- result{w, err}
	}()
	c, err := Dial(t.Context(), ln.Addr().String(), Options{Hello: transport.Hello{Kind: kind, Role: role.Peer(), Features: f, Token: known}})
	if err != nil {
		t.Fatal(err)
	}
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { c.Close(); r.w.base.Close() })
	return c, r.w
}

// TestHostilePages answers a fetch of 4 pages at 2 with frames that break the
// protocol: each ends the channel, names the breach, and delivers nothing.
func TestHostilePages(t *testing.T) {
	regs := []transport.Region{{ID: 1, Name: "ram", Pages: 16, PageSize: 4096}}
	table := func(es ...transport.Extent) []byte { return transport.AppendExtents(nil, es) }
	page := bytes.Repeat([]byte{7}, 4096)
	good := transport.Header{Type: transport.TypePages, ID: 5, Region: 1, First: 2, Count: 4}
	for _, c := range []struct {
		name string
		f    transport.Features
		edit func(h *transport.Header)
		body []byte
		want string
	}{
		{"other id", transport.AllFeatures, func(h *transport.Header) { h.ID = 6 }, nil, "fetch 6, which is not outstanding"},
		{"other count", transport.AllFeatures, func(h *transport.Header) { h.Count = 5 }, nil, "answers fetch"},
		{"other first", transport.AllFeatures, func(h *transport.Header) { h.First = 1 << 60 }, nil, "answers fetch"},
		{"other region", transport.AllFeatures, func(h *transport.Header) { h.Region = 2 }, nil, "answers fetch"},
		{"short", transport.AllFeatures, nil, page, "4096 bytes of data for 4 pages"},
		{"long", transport.AllFeatures, nil, bytes.Repeat(page, 5), "20480 bytes of data for 4 pages"},
		{"unknown codec", transport.AllFeatures, func(h *transport.Header) { h.Flags = 9 }, page, "uses codec 9, which is not in force"},
		{"codec not in force", transport.FeatureFill, func(h *transport.Header) { h.Flags = 1 }, page, "uses s2, which is not in force"},
		{"extents not in force", transport.FeatureS2, func(h *transport.Header) { h.Aux = 1 }, table(transport.Extent{Count: 4, Kind: transport.Fill}), "fill elision is not in force"},
		{"more extents than pages", transport.AllFeatures, func(h *transport.Header) { h.Aux = 5 }, make([]byte, 80), "5 extents for 4 pages"},
		{"table past the body", transport.AllFeatures, func(h *transport.Header) { h.Aux = 4 }, make([]byte, 32), "4 extents in a body of 32 bytes"},
		{"extents too short", transport.AllFeatures, func(h *transport.Header) { h.Aux = 1 }, table(transport.Extent{Count: 3, Kind: transport.Fill}), "leave 1 of 4 pages uncovered"},
		{"extents too long", transport.AllFeatures, func(h *transport.Header) { h.Aux = 1 }, table(transport.Extent{Count: 1 << 31, Kind: transport.Fill}), "reach past the 4 pages"},
		{"ahead not in force", transport.FeatureFill, func(h *transport.Header) { h.Ahead = 1 }, bytes.Repeat(page, 4), "ahead set, but"},
		{"ahead past the end", transport.AllFeatures, func(h *transport.Header) { h.Ahead = 11 }, bytes.Repeat(page, 4), "past the region's 16 pages"},
		{"same without the feature", transport.AllFeatures &^ transport.FeatureWarm, func(h *transport.Header) { h.Aux = 1 }, table(transport.Extent{Count: 4, Kind: transport.Same}), "says same of 4 pages"},
		{"same with a word", transport.AllFeatures, func(h *transport.Header) { h.Aux = 1 }, table(transport.Extent{Count: 4, Kind: transport.Same, Word: 7}), "has a fill word"},
		{"moved without warm", transport.AllFeatures &^ transport.FeatureWarm, func(h *transport.Header) { h.Aux = 1 }, table(transport.Extent{Count: 4, Kind: transport.Moved}), "says moved of 4 pages"},
		{"moved without the feature", transport.AllFeatures &^ transport.FeatureMoved, func(h *transport.Header) { h.Aux = 1 }, table(transport.Extent{Count: 4, Kind: transport.Moved}), "says moved of 4 pages"},
		{"moved from past the end", transport.AllFeatures, func(h *transport.Header) { h.Aux = 1 }, table(transport.Extent{Count: 4, Kind: transport.Moved, Word: 13}), "pages moved from 13+4 of a region with 16"},
		{"moved from far outside", transport.AllFeatures, func(h *transport.Header) { h.Aux = 1 }, table(transport.Extent{Count: 4, Kind: transport.Moved, Word: 1<<64 - 2}), "pages moved from 18446744073709551614+4 of a region with 16"},
		{"unknown kind", transport.AllFeatures, func(h *transport.Header) { h.Aux = 1 }, table(transport.Extent{Count: 4, Kind: 5}), "unknown kind 5"},
		{"repeat without the feature", transport.AllFeatures &^ transport.FeatureRepeat, func(h *transport.Header) { h.Aux = 2 },
			append(table(transport.Extent{Count: 1}, transport.Extent{Count: 3, Kind: transport.Repeat}), page...), "repeats 3 pages, but the feature is not in force"},
		{"repeat of nothing", transport.AllFeatures, func(h *transport.Header) { h.Aux = 1 }, table(transport.Extent{Count: 4, Kind: transport.Repeat}), "repeats data page 0, of 0 before it"},
		{"repeat of a later page", transport.AllFeatures, func(h *transport.Header) { h.Aux = 3 },
			append(table(transport.Extent{Count: 1}, transport.Extent{Count: 1, Kind: transport.Repeat, Word: 1}, transport.Extent{Count: 2}), bytes.Repeat(page, 3)...), "repeats data page 1, of 1 before it"},
		{"repeat far outside", transport.AllFeatures, func(h *transport.Header) { h.Aux = 2 },
			append(table(transport.Extent{Count: 1}, transport.Extent{Count: 3, Kind: transport.Repeat, Word: 1 << 63}), page...), "repeats data page 9223372036854775808"},
		{"repeats past the range", transport.AllFeatures, func(h *transport.Header) { h.Aux = 2 },
			append(table(transport.Extent{Count: 1}, transport.Extent{Count: 1 << 31, Kind: transport.Repeat}), page...), "reach past the 4 pages"},
		{"repeats and a codec without its data", transport.AllFeatures, func(h *transport.Header) { h.Aux, h.Flags = 2, 1 },
			table(transport.Extent{Count: 1}, transport.Extent{Count: 3, Kind: transport.Repeat}), "cannot decode block: s2"},
		{"empty s2", transport.AllFeatures, func(h *transport.Header) { h.Flags = 1 }, nil, "cannot decode block: s2"},
		{"empty zstd", transport.AllFeatures, func(h *transport.Header) { h.Flags = 2 }, nil, "zstd header"},
		{"repeats after a bomb", transport.AllFeatures, func(h *transport.Header) { h.Aux, h.Flags = 2, 1 },
			append(table(transport.Extent{Count: 1}, transport.Extent{Count: 3, Kind: transport.Repeat}), 0xff, 0xff, 0xff, 0x7f, 1, 2), "want 4096"},
		{"not s2", transport.AllFeatures, func(h *transport.Header) { h.Flags = 1 }, []byte{0x80, 0x80, 1, 0xff, 0xff}, "cannot decode block"},
		{"not zstd", transport.AllFeatures, func(h *transport.Header) { h.Flags = 2 }, page, "zstd header"},
		{"fetch to a destination", transport.AllFeatures, func(h *transport.Header) { h.Type = transport.TypeFetch }, nil, "FETCH on a demand channel at the destination"},
		{"message", transport.AllFeatures, func(h *transport.Header) { *h = transport.Header{Type: transport.TypeMessage} }, []byte("{}"), "MESSAGE on a demand channel"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, w := rawPeer(t, transport.Source, transport.Demand, c.f)
			conn.SetRegions(regs)
			f, err := conn.Fetcher()
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Fetch([]transport.Fetch{good.Fetch()}); err != nil {
				t.Fatal(err)
			}
			h := good
			if c.edit != nil {
				c.edit(&h)
			}
			if err := w.write(transport.AppendFrame(nil, h, c.body)); err != nil {
				t.Fatal(err)
			}
			sink := transporttest.NewSink(t, regs...)
			var done transport.Completion
			err = f.Receive(sink, &done)
			if !errors.Is(err, transport.ErrMalformed) && !errors.Is(err, transport.ErrDecode) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one about %q", err, c.want)
			}
			if n, held := sink.Counts(); n != 0 || held != 0 {
				t.Errorf("%d pages resident, %d reserved", n, held)
			}
			if len(f.Outstanding(nil)) != 1 {
				t.Error("the fetch is no longer outstanding")
			}
		})
	}
}

// TestHostileFetches sends a source what it must refuse or hang up on.
func TestHostileFetches(t *testing.T) {
	conn, w := rawPeer(t, transport.Destination, transport.Precache, 0)
	r, err := conn.Responder()
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan error, 1)
	go func() { _, err := r.Next(make([]transport.Fetch, 4)); next <- err }()
	for i, h := range []transport.Header{
		{Type: transport.TypeFetch, ID: 0, Region: 1, Count: 0},
		{Type: transport.TypeFetch, ID: 1, Region: 1, Count: transport.DefaultMaxCount + 1},
		{Type: transport.TypeFetch, ID: 2, Region: 1, Count: 2, First: ^uint64(0)},
	} {
		if err := w.write(transport.AppendFrame(nil, h, nil)); err != nil {
			t.Fatal(err)
		}
		a, crc, err := w.frame(0)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := w.small(&a, crc); err != nil || a.Type != transport.TypeRefuse || a.ID != uint64(i) || transport.Code(a.Aux) != transport.CodeRange {
			t.Fatalf("%v %d %q, %v; want REFUSE RANGE", a.Type, a.Aux, text, err)
		}
	}
	if err := w.write(transport.AppendFrame(nil, transport.Header{Type: transport.TypeState}, []byte("x"))); err != nil {
		t.Fatal(err)
	}
	if err := <-next; !errors.Is(err, transport.ErrMalformed) || !strings.Contains(err.Error(), "STATE on a precache channel at the source") {
		t.Errorf("the source ended with %v", err)
	}
	a, crc, err := w.frame(0)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := w.small(&a, crc); err != nil || a.Type != transport.TypeClose || transport.Code(a.Aux) != transport.CodeMalformed || !strings.Contains(string(text), "STATE") {
		t.Errorf("%v %d %q, %v; want CLOSE MALFORMED", a.Type, a.Aux, text, err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

func TestDescriptors(t *testing.T) {
	open := func() {
		for _, h := range []*harness{{addr: "127.0.0.1:0"}, {addr: "127.0.0.1:0", tune: Tuning{BlockingIO: true}}, tlsHarness(t, Tuning{BlockingIO: true})} {
			d, s := h.conns(t, transporttest.Options{Kind: transport.Demand})
			d.Close()
			s.Close()
		}
	}
	open() // the poller and the random source open theirs
	before := descriptors(t)
	for range 10 {
		open()
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
