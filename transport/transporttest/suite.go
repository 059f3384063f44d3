package transporttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/transport"
)

// Options is what a case of the suite asks of a channel.
type Options struct {
	Kind      transport.Kind
	Index     uint16
	Features  transport.Features
	MaxBody   uint32 // bytes; 0: the default
	MaxCount  uint32 // pages; 0: the default
	Codec     transport.CodecMode
	DeadAfter time.Duration // 0: the default
	Regions   []transport.Region
	Faults    *Faults // to be put between the ends, the destination's side wrapped
	// Sink is where pages will be received, for a transport that brings them into place
	// by itself; nil where that is not known beforehand.
	Sink *Sink
	// Image is what the source has, for a transport that reads it without asking;
	// nil where the case is about the source's answers.
	Image *Image
}

// Harness opens channels of one transport.
type Harness interface {
	// Pair opens a page channel and returns both ends. The caller closes them.
	Pair(t testing.TB, o Options) (transport.Fetcher, transport.Responder)
}

// OneSided is a [Harness] whose pages may come without an answer of the source, and
// so without its codecs and its description of them.
type OneSided interface{ OneSided() }

// answered says whether each fetch is answered by the source.
func answered(h Harness) bool {
	_, one := h.(OneSided)
	return !one
}

// PrecacheOnly is a [Harness] of a transport for precache alone, beside a connection
// that has the suite of its own: what is about that, and about demand, is left out.
type PrecacheOnly interface{ PrecacheOnly() }

// kinds are the kinds of page channels of a transport.
func kinds(h Harness) []transport.Kind {
	if _, one := h.(PrecacheOnly); one {
		return []transport.Kind{transport.Precache}
	}
	return []transport.Kind{transport.Demand, transport.Precache}
}

// beneath names the cases that are about demand channels, or about a connection's bytes.
var beneath = []string{"WarmHostile", "Refuse", "RangeErrors", "Corrupt", "CutMidway", "Stall"}

// Run runs the suite against the harness that open makes for each case.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	run(t, open, nil)
}

// RunPrecache runs what of the suite concerns a [PrecacheOnly] harness.
func RunPrecache(t *testing.T, open func(t *testing.T) Harness) {
	run(t, open, beneath)
}

func run(t *testing.T, open func(t *testing.T) Harness, without []string) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, h Harness)
	}{
		{"Codecs", testCodecs},
		{"NoFeatures", testNoFeatures},
		{"DroppedPages", testDropped},
		{"Ahead", testAhead},
		{"Repeat", testRepeat},
		{"Warm", testWarm},
		{"WarmHostile", testWarmHostile},
		{"Moved", testMoved},
		{"MaxCount", testMaxCount},
		{"HugePages", testHugePages},
		{"Concurrent", testConcurrent},
		{"Refuse", testRefuse},
		{"RangeErrors", testRangeErrors},
		{"TooLong", testTooLong},
		{"Outstanding", testOutstanding},
		{"OrderlyClose", testOrderlyClose},
		{"CloseUnblocks", testCloseUnblocks},
		{"CommitError", testCommitError},
		{"Corrupt", testCorrupt},
		{"CutMidway", testCut},
		{"Stall", testStall},
		{"Property", testProperty},
	} {
		if slices.Contains(without, c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			// The harness's own clean-up must have run before the check.
			t.Run("case", func(t *testing.T) { c.run(t, open(t)) })
		})
	}
}

const small, huge = 4 << 10, 2 << 20

func regions() []transport.Region {
	return []transport.Region{{ID: 1, Name: "ram", Pages: 2048, PageSize: small}, {ID: 7, Name: "rom", Pages: 600, PageSize: small}}
}

// ends is a channel with a page server behind it.
type ends struct {
	t     *testing.T
	im    *Image
	sink  *Sink
	f     transport.Fetcher
	r     transport.Responder
	serve chan error
}

// channel opens a channel over im that is served until the test ends.
func channel(t *testing.T, h Harness, o Options, im *Image, elide bool) *ends {
	t.Helper()
	o.Image = im
	return answeredChannel(t, h, o, im, elide)
}

// answeredChannel is a channel whose fetches the source must see.
func answeredChannel(t *testing.T, h Harness, o Options, im *Image, elide bool) *ends {
	t.Helper()
	o.Regions = im.Regions
	if o.Kind == 0 {
		o.Kind = transport.Precache
	}
	if o.Sink == nil {
		o.Sink = NewSink(t, im.Regions...)
	}
	e := &ends{t: t, im: im, sink: o.Sink, serve: make(chan error, 1)}
	e.f, e.r = h.Pair(t, o)
	go func() { e.serve <- im.Serve(e.r, elide) }()
	t.Cleanup(func() {
		e.f.Close()
		e.r.Close()
		if err, ok := <-e.serve; ok {
			_ = err // the cases that care have taken it
		}
	})
	return e
}

// get fetches ranges in one batch and receives all answers.
func (e *ends) get(rs ...transport.Range) []transport.Completion {
	e.t.Helper()
	fs := make([]transport.Fetch, len(rs))
	for i, r := range rs {
		fs[i] = transport.Fetch{ID: uint64(i) + 1, Range: r}
	}
	if err := e.f.Fetch(fs); err != nil {
		e.t.Fatal(err)
	}
	cs := make([]transport.Completion, len(rs))
	for i := range cs {
		if err := e.f.Receive(e.sink, &cs[i]); err != nil {
			e.t.Fatal(err)
		}
	}
	if left := e.f.Outstanding(nil); len(left) != 0 {
		e.t.Fatalf("outstanding after all answers: %v", left)
	}
	return cs
}

func span(region uint32, first uint64, count uint32) transport.Range {
	return transport.Range{Region: region, First: first, Count: count}
}

// whole cuts a region into fetches of count pages.
func whole(reg transport.Region, count uint32) (rs []transport.Range) {
	for p := uint64(0); p < reg.Pages; p += uint64(count) {
		rs = append(rs, span(reg.ID, p, uint32(min(uint64(count), reg.Pages-p))))
	}
	return rs
}

func mixed(t testing.TB, seed uint64) *Image {
	im := NewImage(t, regions()...)
	for _, r := range im.Regions {
		im.Mix(r.ID, seed)
	}
	return im
}

// bounded fails the test, with the error it got, if f does not return in time.
func bounded(t *testing.T, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		t.Fatalf("%s did not return", what)
		return nil
	}
}

func testCodecs(t *testing.T, h Harness) {
	im := mixed(t, 1)
	for _, kind := range kinds(h) {
		for _, mode := range []transport.CodecMode{transport.ModeNone, transport.ModeS2, transport.ModeZstd, transport.ModeAuto} {
			for _, elide := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v-%v-elide=%v", kind, mode, elide), func(t *testing.T) {
					e := channel(t, h, Options{Kind: kind, Features: transport.AllFeatures, Codec: mode}, im, elide)
					var used [3]int
					var rs []transport.Range
					for _, reg := range im.Regions {
						rs = append(rs, whole(reg, 100)...)
					}
					for _, c := range e.get(rs...) {
						used[c.Codec]++
						if c.Data+c.Fill+c.Zero != c.Count || answered(h) && !elide && c.Data != c.Count || c.WireBytes == 0 || c.Wire <= 0 {
							t.Errorf("completion does not add up: %+v", c)
						}
					}
					e.sink.Check(t, im, span(1, 0, 2048), span(7, 0, 600))
					if want := transport.Codec(mode); answered(h) && mode != transport.ModeAuto && used[want] == 0 {
						t.Errorf("no answer used %v: %v", want, used)
					}
				})
			}
		}
	}
}

func testNoFeatures(t *testing.T, h Harness) {
	im := mixed(t, 2)
	e := channel(t, h, Options{Codec: transport.ModeZstd}, im, true)
	for _, c := range e.get(whole(im.Regions[0], 512)...) {
		if answered(h) && c.Data != c.Count || c.Codec != transport.CodecNone || answered(h) && c.Ahead != 0 {
			t.Errorf("a feature was used that is not in force: %+v", c)
		}
	}
	e.sink.Check(t, im, span(1, 0, 2048))
}

// testDropped has pages that are claimed already: their memory must stay as it
// is, and their neighbours must arrive.
func testDropped(t *testing.T, h Harness) {
	im := mixed(t, 3)
	for _, mode := range []transport.CodecMode{transport.ModeNone, transport.ModeS2, transport.ModeZstd} {
		t.Run(mode.String(), func(t *testing.T) {
			e := channel(t, h, Options{Features: transport.AllFeatures, Codec: mode}, im, false)
			for _, p := range []uint64{0, 3, 4, 5, 100, 511, 600} {
				e.sink.Take(span(1, p, 1))
			}
			e.sink.Take(span(1, 1024, 512)) // a whole answer
			e.get(whole(im.Regions[0], 512)...)
			e.sink.Check(t, im, span(1, 1, 2), span(1, 6, 94), span(1, 101, 410), span(1, 512, 88), span(1, 601, 423), span(1, 1536, 512))
			for _, p := range []uint64{0, 3, 4, 5, 100, 511, 600, 1024, 1535} {
				if b := e.sink.im.Memory(span(1, p, 1)); b[0] != 0xa5 || b[small-1] != 0xa5 {
					t.Errorf("page %d was claimed before and has been written", p)
				}
			}
		})
	}
}

func testAhead(t *testing.T, h Harness) {
	im := NewImage(t, transport.Region{ID: 3, Name: "sparse", Pages: 1 << 14, PageSize: small})
	im.Put(3, 1, Random, 1)
	im.Put(3, 1<<14-1, Text, 1)
	e := channel(t, h, Options{Features: transport.AllFeatures}, im, true)
	cs := e.get(span(3, 0, 2))
	if want := uint32(1<<14 - 3); cs[0].Ahead != want {
		t.Fatalf("ahead is %d, want %d", cs[0].Ahead, want)
	}
	e.get(span(3, 1<<14-1, 1))
	e.sink.Check(t, im, span(3, 0, 1<<14))
}

func testMaxCount(t *testing.T, h Harness) {
	im := mixed(t, 4)
	e := channel(t, h, Options{Features: transport.AllFeatures, MaxCount: 1024}, im, true)
	e.get(span(1, 0, 1024), span(1, 1024, 1024))
	e.sink.Check(t, im, span(1, 0, 2048))
	err := e.f.Fetch([]transport.Fetch{{ID: 1, Range: span(1, 0, 1025)}})
	if err == nil {
		t.Fatal("a fetch over max_count was sent")
	}
	e.get(span(1, 0, 1)) // the channel lives on
}

func testHugePages(t *testing.T, h Harness) {
	im := NewImage(t, transport.Region{ID: 9, Name: "huge", Pages: 4, PageSize: huge})
	im.Put(9, 0, Random, 5)
	im.Put(9, 1, Text, 5)
	im.Put(9, 3, Word, 5)
	for _, mode := range []transport.CodecMode{transport.ModeNone, transport.ModeZstd} {
		e := channel(t, h, Options{Features: transport.AllFeatures, Codec: mode}, im, true)
		e.sink.Take(span(9, 1, 1))
		e.get(span(9, 0, 2), span(9, 2, 1), span(9, 3, 1))
		e.sink.Check(t, im, span(9, 0, 1), span(9, 2, 2))
	}
}

// testConcurrent has several channels deliver the same ranges into one sink.
func testConcurrent(t *testing.T, h Harness) {
	im := mixed(t, 6)
	var es []*ends
	sink := NewSink(t, im.Regions...)
	for i := range 4 {
		kind := kinds(h)[i%len(kinds(h))]
		es = append(es, channel(t, h, Options{Kind: kind, Index: uint16(i / 2), Features: transport.AllFeatures, Codec: transport.ModeS2, Sink: sink}, im, i < 2))
	}
	var wg sync.WaitGroup
	for i, e := range es {
		rs := whole(im.Regions[0], uint32(31+7*i))
		wg.Go(func() {
			fs := make([]transport.Fetch, len(rs))
			for k, r := range rs {
				fs[k] = transport.Fetch{ID: uint64(k), Range: r}
			}
			// Half are sent while answers come in.
			if err := e.f.Fetch(fs[:len(fs)/2]); err != nil {
				t.Error(err)
			}
			sent := make(chan error, 1)
			go func() { sent <- e.f.Fetch(fs[len(fs)/2:]) }()
			var c transport.Completion
			for range fs {
				if err := e.f.Receive(sink, &c); err != nil {
					t.Error(err)
					break
				}
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	sink.Check(t, im, span(1, 0, 2048))
}

func testRefuse(t *testing.T, h Harness) {
	im := mixed(t, 7)
	o := Options{Kind: transport.Demand, Features: transport.AllFeatures, Regions: im.Regions}
	f, r := h.Pair(t, o)
	defer f.Close()
	defer r.Close()
	sink := NewSink(t, im.Regions...)
	if err := f.Fetch([]transport.Fetch{{ID: 5, Range: span(1, 0, 1)}, {ID: 6, Range: span(1, 1, 1)}}); err != nil {
		t.Fatal(err)
	}
	buf := make([]transport.Fetch, 8)
	for got := 0; got < 2; {
		n, err := r.Next(buf[got:])
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	// Out of order, and one refused.
	if err := im.Answer(r, buf[1], false); err != nil {
		t.Fatal(err)
	}
	if err := r.Refuse(5, transport.CodeIO, "disk on fire"); err != nil {
		t.Fatal(err)
	}
	var c transport.Completion
	if err := f.Receive(sink, &c); err != nil || c.ID != 6 || c.Refused != nil {
		t.Fatalf("%+v, %v", c, err)
	}
	if err := f.Receive(sink, &c); err != nil {
		t.Fatal(err)
	}
	var remote *transport.RemoteError
	if c.ID != 5 || !errors.As(c.Refused, &remote) || remote.Code != transport.CodeIO || remote.Text != "disk on fire" {
		t.Fatalf("%+v", c)
	}
	sink.Check(t, im, span(1, 1, 1))
	if n, _ := sink.Counts(); n != 1 {
		t.Errorf("%d pages resident, want 1", n)
	}
}

func testOrderlyClose(t *testing.T, h Harness) {
	im := mixed(t, 8)
	e := channel(t, h, Options{Features: transport.AllFeatures}, im, true)
	e.get(span(1, 0, 8))
	if err := e.f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := bounded(t, "Next", func() error { defer close(e.serve); return <-e.serve }); err != nil {
		t.Errorf("the source saw %v, want io.EOF", err)
	}

	f, r := h.Pair(t, Options{Kind: kinds(h)[0], Regions: im.Regions})
	defer f.Close()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	var c transport.Completion
	if err := bounded(t, "Receive", func() error { return f.Receive(e.sink, &c) }); !errors.Is(err, io.EOF) {
		t.Errorf("the destination saw %v, want io.EOF", err)
	}
}
