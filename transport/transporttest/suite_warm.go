package transporttest

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/pagewarp/pagewarp/transport"
)

// warmed is a destination that has candidates for every third page, one in
// five of them damaged since it offered them.
func warmed(t *testing.T, im *Image) (sink *Sink, has, damaged func(region uint32, page uint64) bool) {
	has = func(_ uint32, p uint64) bool { return p%3 == 0 }
	damaged = func(r uint32, p uint64) bool { return has(r, p) && p%5 == 0 }
	sink = NewSink(t, im.Regions...)
	for _, r := range im.Regions {
		for p := range r.Pages {
			if !has(r.ID, p) {
				continue
			}
			if mem := sink.Prime(im, r.ID, p); damaged(r.ID, p) {
				mem[17]++
			}
		}
	}
	sink.Candidate = func(r uint32, p uint64, mem []byte) bool {
		return has(r, p) && bytes.Equal(mem, im.Memory(span(r, p, 1)))
	}
	return sink, has, damaged
}

// testWarm has candidates taken in place of data, damaged ones refused, and the
// pages of those fetched again plainly.
func testWarm(t *testing.T, h Harness) {
	im := mixed(t, 21)
	for _, kind := range kinds(h) {
		for _, mode := range []transport.CodecMode{transport.ModeNone, transport.ModeS2} {
			t.Run(fmt.Sprintf("%v-%v", kind, mode), func(t *testing.T) {
				sink, has, damaged := warmed(t, im)
				im.Same = has // before the source's goroutine is there
				e := answeredChannel(t, h, Options{Kind: kind, Features: transport.AllFeatures, Codec: mode}, im, true)
				e.sink = sink
				total, same := 0, 0
				for _, reg := range im.Regions {
					for _, c := range e.get(whole(reg, 64)...) {
						total += int(c.Count)
						same += int(c.Same)
						if c.Data+c.Fill+c.Zero+c.Same != c.Count {
							t.Errorf("answer of %+v pages: %d data, %d fill, %d zero, %d same", c.Range, c.Data, c.Fill, c.Zero, c.Same)
						}
					}
				}
				taken, refused := sink.Candidates()
				if same == 0 || refused == 0 || taken+refused != same {
					t.Errorf("%d pages said to be the same; %d taken, %d refused", same, taken, refused)
				}
				if got, left := sink.Counts(); got != total-refused || left != 0 {
					t.Errorf("%d of %d pages are resident and %d reserved, %d were refused", got, total, left, refused)
				}
				// What was refused comes as bytes, if that is asked for.
				var plain []transport.Fetch
				for _, reg := range im.Regions {
					for p := range reg.Pages {
						if damaged(reg.ID, p) {
							plain = append(plain, transport.Fetch{ID: uint64(len(plain)) + 1, Range: span(reg.ID, p, 1), Plain: true})
						}
					}
				}
				for _, f := range plain {
					if err := e.f.Fetch([]transport.Fetch{f}); err != nil {
						t.Fatal(err)
					}
					var c transport.Completion
					if err := e.f.Receive(sink, &c); err != nil || c.Same != 0 {
						t.Fatalf("plain fetch: %+v, %v", c, err)
					}
				}
				for _, reg := range im.Regions {
					sink.Check(t, im, whole(reg, 64)...)
				}
			})
		}
	}
}

// testMoved has pages copied from candidates that stand at other pages, in runs and one
// by one, and what is there no more fetched again plainly.
func testMoved(t *testing.T, h Harness) {
	im := mixed(t, 23)
	for _, r := range im.Regions {
		// Pages 24 to 39 of each 64 were at 0 to 15, page 41 at 16.
		for base := uint64(0); base+64 <= r.Pages; base += 64 {
			for p := uint64(0); p < 16; p++ {
				im.Put(r.ID, base+p, Random, 5)
				copy(im.Memory(span(r.ID, base+24+p, 1)), im.Memory(span(r.ID, base+p, 1)))
			}
			im.Put(r.ID, base+16, Text, 6)
			copy(im.Memory(span(r.ID, base+41, 1)), im.Memory(span(r.ID, base+16, 1)))
		}
	}
	for _, mode := range []transport.CodecMode{transport.ModeNone, transport.ModeZstd} {
		t.Run(mode.String(), func(t *testing.T) {
			sink := NewSink(t, im.Regions...)
			for _, r := range im.Regions {
				for base := uint64(0); base+64 <= r.Pages; base += 64 {
					for p := base; p < base+17; p++ {
						if mem := sink.Prime(im, r.ID, p); p%5 == 0 {
							mem[99]++
						}
					}
				}
			}
			sink.Candidate = func(r uint32, p uint64, mem []byte) bool {
				return p%64 < 17 && bytes.Equal(mem, im.Memory(span(r, p, 1)))
			}
			im.From = func(id uint32, p uint64) (uint64, bool) {
				switch at := p % 64; {
				case at >= 24 && at < 40:
					return p - 24, true
				case at == 41:
					return p - 25, true
				}
				return 0, false
			}
			// The places that pages have moved from come last, so that they hold
			// their candidates as yet.
			var first, last []transport.Range
			for _, r := range im.Regions {
				for base := uint64(0); base+64 <= r.Pages; base += 64 {
					first = append(first, span(r.ID, base+17, 47))
					last = append(last, span(r.ID, base, 17))
				}
			}
			e := answeredChannel(t, h, Options{Kind: transport.Precache, Features: transport.AllFeatures, Codec: mode}, im, true)
			e.sink = sink
			moved := 0
			for _, c := range e.get(first...) {
				moved += int(c.Moved)
				if c.Data+c.Fill+c.Zero+c.Moved != c.Count {
					t.Errorf("answer of %+v pages: %d data, %d fill, %d zero, %d moved", c.Range, c.Data, c.Fill, c.Zero, c.Moved)
				}
			}
			_, refused := sink.Candidates()
			if copied := sink.Copied(); copied == 0 || refused == 0 || copied+refused != moved || moved != 17*len(first) {
				t.Errorf("%d pages said to have moved in %d runs of 17; %d copied, %d refused", moved, len(first), copied, refused)
			}
			e.get(last...)
			var again []transport.Range
			for _, r := range im.Regions {
				for _, p := range sink.Absent(span(r.ID, 0, uint32(r.Pages/64*64))) {
					again = append(again, span(r.ID, p, 1))
				}
			}
			if len(again) != refused {
				t.Errorf("%d pages are absent, %d were refused", len(again), refused)
			}
			for i, r := range again {
				if err := e.f.Fetch([]transport.Fetch{{ID: uint64(i) + 1, Range: r, Plain: true}}); err != nil {
					t.Fatal(err)
				}
				var c transport.Completion
				if err := e.f.Receive(sink, &c); err != nil || c.Moved != 0 {
					t.Fatalf("plain fetch: %+v, %v", c, err)
				}
			}
			for _, r := range im.Regions {
				sink.Check(t, im, span(r.ID, 0, uint32(r.Pages/64*64)))
			}
		})
	}
}

// rudeResponder says same whatever was asked.
type rudeResponder struct{ transport.Responder }

func (r rudeResponder) Answer(a *transport.Answer) error {
	a.Plain = false
	a.Extents = []transport.Extent{{Count: a.Count, Kind: transport.Same}}
	return r.Responder.Answer(a)
}

// testWarmHostile has a source that says same of everything: to a plain fetch
// it is the channel's end, to another no page becomes resident by it.
func testWarmHostile(t *testing.T, h Harness) {
	im := mixed(t, 22)
	o := Options{Kind: transport.Demand, Features: transport.AllFeatures, Regions: im.Regions}
	open := func() (transport.Fetcher, *Sink) {
		f, r := h.Pair(t, o)
		done := make(chan struct{})
		go func() {
			defer close(done)
			im.Serve(rudeResponder{r}, false) // ends with the channel
		}()
		t.Cleanup(func() { f.Close(); r.Close(); <-done })
		return f, NewSink(t, im.Regions...)
	}
	f, sink := open()
	var c transport.Completion
	if err := f.Fetch([]transport.Fetch{{ID: 1, Range: span(1, 0, 8)}}); err != nil {
		t.Fatal(err)
	}
	if err := f.Receive(sink, &c); err != nil || c.Same != 8 {
		t.Fatalf("%+v, %v", c, err)
	}
	if n, left := sink.Counts(); n != 0 || left != 0 {
		t.Errorf("%d pages resident, %d reserved by the word of the source", n, left)
	}
	if err := f.Fetch([]transport.Fetch{{ID: 2, Range: span(1, 0, 8), Plain: true}}); err != nil {
		t.Fatal(err)
	}
	if err := f.Receive(sink, &c); !errors.Is(err, transport.ErrMalformed) {
		t.Errorf("same in answer to a plain fetch: %v", err)
	}
	sink.Check(t, im)

	o.Features = transport.AllFeatures &^ transport.FeatureWarm
	f, _ = open()
	if err := f.Fetch([]transport.Fetch{{ID: 1, Range: span(1, 0, 1), Plain: true}}); err == nil {
		t.Error("a plain fetch went out without the feature")
	}
	// A responder does not say same without the feature: the pages go as data.
	if err := f.Fetch([]transport.Fetch{{ID: 1, Range: span(1, 0, 8)}}); err != nil {
		t.Fatal(err)
	}
	sink = NewSink(t, im.Regions...)
	if err := f.Receive(sink, &c); err != nil || c.Same != 0 || c.Data != 8 {
		t.Fatalf("%+v, %v", c, err)
	}
	sink.Check(t, im, span(1, 0, 8))
}
