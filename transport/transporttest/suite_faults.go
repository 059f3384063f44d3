package transporttest

import (
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/pagewarp/pagewarp/transport"
)

// testRangeErrors has requests that the fetcher must not send, and one that the
// source must refuse.
func testRangeErrors(t *testing.T, h Harness) {
	im := mixed(t, 9)
	// The destination believes in more pages than the source has.
	lie := slices.Clone(im.Regions)
	lie[1].Pages *= 2
	f, r := h.Pair(t, Options{Kind: transport.Demand, Features: transport.AllFeatures, Regions: lie})
	served := make(chan error, 1)
	go func() { served <- im.Serve(r, true) }()
	defer func() { f.Close(); r.Close(); <-served }()
	sink := NewSink(t, lie...)
	for _, bad := range []transport.Range{span(2, 0, 1), span(1, 2048, 1), span(1, 2047, 2), span(1, 0, 0), span(1, 1<<63, 1), span(1, 0, 513)} {
		if err := f.Fetch([]transport.Fetch{{ID: 1, Range: bad}}); err == nil {
			t.Errorf("fetch of %+v was sent", bad)
		}
	}
	same := []transport.Fetch{{ID: 1, Range: span(1, 0, 1)}, {ID: 1, Range: span(1, 1, 1)}}
	if err := f.Fetch(same); err == nil {
		t.Error("two fetches with one id were sent")
	}
	if left := f.Outstanding(nil); len(left) != 0 {
		t.Errorf("requests that were not sent are outstanding: %v", left)
	}
	if err := f.Fetch([]transport.Fetch{{ID: 2, Range: span(7, 700, 4)}}); err != nil {
		t.Fatal(err)
	}
	var c transport.Completion
	if err := f.Receive(sink, &c); err != nil {
		t.Fatal(err)
	}
	var remote *transport.RemoteError
	if !errors.As(c.Refused, &remote) || remote.Code != transport.CodeRange {
		t.Errorf("fetch outside the image: %+v", c)
	}
	sink.Check(t, im)
}

// testTooLong asks for more bytes than an answer may have.
func testTooLong(t *testing.T, h Harness) {
	im := NewImage(t, transport.Region{ID: 1, Name: "ram", Pages: 64, PageSize: small})
	for p := range uint64(64) {
		im.Put(1, p, Random, 1)
	}
	e := answeredChannel(t, h, Options{Features: transport.AllFeatures, MaxBody: 32 * small}, im, false)
	c := e.get(span(1, 0, 33))[0]
	var remote *transport.RemoteError
	if !errors.As(c.Refused, &remote) || remote.Code != transport.CodeRange {
		t.Fatalf("an answer over max_body: %+v", c)
	}
	e.get(span(1, 0, 32), span(1, 32, 32))
	e.sink.Check(t, im, span(1, 0, 64))
}

func testOutstanding(t *testing.T, h Harness) {
	im := mixed(t, 10)
	f, r := h.Pair(t, Options{Features: transport.AllFeatures, Regions: im.Regions, Kind: transport.Precache})
	defer f.Close()
	defer r.Close()
	sink := NewSink(t, im.Regions...)
	var fs []transport.Fetch
	for i := range uint64(100) {
		fs = append(fs, transport.Fetch{ID: i * 3, Range: span(1, i*10, 10)})
	}
	if err := f.Fetch(fs); err != nil {
		t.Fatal(err)
	}
	buf := make([]transport.Fetch, 100)
	for n := 0; n < 100; {
		k, err := r.Next(buf[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += k
	}
	if !slices.Equal(buf, fs) {
		t.Fatalf("the source saw %v", buf)
	}
	var c transport.Completion
	for i := 0; i < 100; i += 2 {
		if err := im.Answer(r, buf[i], true); err != nil {
			t.Fatal(err)
		}
		if err := f.Receive(sink, &c); err != nil || c.Fetch != buf[i] {
			t.Fatalf("%+v, %v", c, err)
		}
	}
	r.Close()
	if err := bounded(t, "Receive", func() error { return f.Receive(sink, &c) }); err == nil {
		t.Fatal("Receive after the end gave no error")
	}
	var want []transport.Fetch
	for i := 1; i < 100; i += 2 {
		want = append(want, fs[i])
	}
	got := f.Outstanding(nil)
	slices.SortFunc(got, func(a, b transport.Fetch) int { return int(a.ID) - int(b.ID) })
	if !slices.Equal(got, want) {
		t.Errorf("outstanding %v, want %v", got, want)
	}
	sink.Check(t, im)
}

// testCloseUnblocks closes the side that waits, from another goroutine.
func testCloseUnblocks(t *testing.T, h Harness) {
	im := mixed(t, 11)
	for _, kind := range kinds(h) {
		f, r := h.Pair(t, Options{Kind: kind, Regions: im.Regions})
		sink := NewSink(t, im.Regions...)
		in := make(chan error, 2)
		go func() { var c transport.Completion; in <- f.Receive(sink, &c) }()
		go func() { _, err := r.Next(make([]transport.Fetch, 1)); in <- err }()
		f.Close()
		r.Close()
		for range 2 {
			if err := bounded(t, "a waiting call", func() error { return <-in }); err == nil {
				t.Error("a call on a closed channel gave no error")
			}
		}
		if err := f.Fetch([]transport.Fetch{{ID: 1, Range: span(1, 0, 1)}}); err == nil {
			t.Error("Fetch on a closed channel gave no error")
		}
		if err := im.Answer(r, transport.Fetch{ID: 1, Range: span(1, 0, 1)}, false); err == nil {
			t.Error("Answer on a closed channel gave no error")
		}
	}
}

func testCommitError(t *testing.T, h Harness) {
	im := mixed(t, 12)
	e := channel(t, h, Options{Features: transport.AllFeatures}, im, false)
	e.sink.CommitErr = errors.New("no room")
	if err := e.f.Fetch([]transport.Fetch{{ID: 1, Range: span(1, 0, 4)}}); err != nil {
		t.Fatal(err)
	}
	var c transport.Completion
	if err := e.f.Receive(e.sink, &c); !errors.Is(err, e.sink.CommitErr) {
		t.Fatalf("Receive gave %v", err)
	}
	if left := e.f.Outstanding(nil); len(left) != 1 {
		t.Errorf("outstanding %v, want the fetch that failed", left)
	}
}

// broken opens a channel, breaks the answer to one fetch by fault, and checks
// that nothing of it was committed.
func broken(t *testing.T, h Harness, o Options, fault Fault) error {
	t.Helper()
	im := NewImage(t, transport.Region{ID: 1, Name: "ram", Pages: 192, PageSize: small})
	for p := range uint64(192) {
		im.Put(1, p, Text, 13)
	}
	o.Features, o.Faults = transport.AllFeatures, NewFaults()
	e := answeredChannel(t, h, o, im, false)
	e.get(span(1, 128, 64))
	before, _ := e.sink.Counts()
	o.Faults.Writing(fault)
	if err := e.f.Fetch([]transport.Fetch{{ID: 1, Range: span(1, 0, 64)}}); err != nil {
		t.Fatal(err)
	}
	var c transport.Completion
	err := bounded(t, "Receive", func() error { return e.f.Receive(e.sink, &c) })
	if err == nil {
		t.Fatalf("a broken answer was taken: %+v", c)
	}
	if after, held := e.sink.Counts(); after != before || held != 0 {
		t.Errorf("%d pages were committed, %d left reserved", after-before, held)
	}
	if left := e.f.Outstanding(nil); len(left) != 1 || left[0].First != 0 || left[0].Count != 64 {
		t.Errorf("outstanding %v, want the broken fetch", left)
	}
	e.sink.Check(t, im, span(1, 128, 64))
	return err
}

// testCorrupt damages one byte of the header, of the data, and of the last page.
func testCorrupt(t *testing.T, h Harness) {
	for _, mode := range []transport.CodecMode{transport.ModeNone, transport.ModeS2, transport.ModeZstd} {
		for _, at := range []int64{0, 2, 9, 17, 21, 33, 37, 41, 400, 5000, 30000} {
			broken(t, h, Options{Kind: transport.Precache, Codec: mode}, CorruptAt(at))
		}
	}
}

func testCut(t *testing.T, h Harness) {
	for _, at := range []int64{0, 1, 39, 40, 41, 4136, 100_000, 64*small + 39} {
		broken(t, h, Options{Kind: transport.Precache}, CutAfter(at))
	}
}

// testStall has a source that falls silent: before an answer and within one.
func testStall(t *testing.T, h Harness) {
	for _, at := range []int64{0, 20, 70_000} {
		start := time.Now()
		err := broken(t, h, Options{Kind: transport.Demand, DeadAfter: 300 * time.Millisecond}, StallAfter(at))
		if d := time.Since(start); d < 250*time.Millisecond {
			t.Errorf("gave up after %v: %v", d, err)
		}
	}
}

// testProperty fetches random ranges of random content in random batches.
func testProperty(t *testing.T, h Harness) {
	rapid.Check(t, func(rt *rapid.T) {
		pages := rapid.Uint64Range(1, 200).Draw(rt, "pages")
		im := NewImage(t, transport.Region{ID: 1, Name: "ram", Pages: pages, PageSize: small})
		for p := uint64(0); p < pages; {
			c := Content(rapid.IntRange(0, int(contents)-1).Draw(rt, "content"))
			for n := rapid.IntRange(1, 30).Draw(rt, "run"); n > 0 && p < pages; n-- {
				im.Put(1, p, c, p)
				p++
			}
		}
		o := Options{
			Kind:     rapid.SampledFrom(kinds(h)).Draw(rt, "kind"),
			Features: transport.Features(rapid.Uint32Range(0, uint32(transport.AllFeatures)).Draw(rt, "features")),
			Codec:    transport.CodecMode(rapid.IntRange(0, int(transport.ModeAuto)).Draw(rt, "codec")),
			Regions:  im.Regions,
			Image:    im,
		}
		sink := NewSink(t, im.Regions...)
		o.Sink = sink
		elide := rapid.Bool().Draw(rt, "elide")
		f, r := h.Pair(t, o)
		served := make(chan error, 1)
		go func() { served <- im.Serve(r, elide) }()
		defer func() { f.Close(); r.Close() }()
		var fs []transport.Fetch
		for p, id := uint64(0), uint64(0); p < pages; id++ {
			n := min(rapid.Uint64Range(1, 64).Draw(rt, "count"), pages-p)
			fs = append(fs, transport.Fetch{ID: id, Range: span(1, p, uint32(n))})
			p += n
		}
		if err := f.Fetch(fs); err != nil {
			rt.Fatal(err)
		}
		for range fs {
			var c transport.Completion
			if err := f.Receive(sink, &c); err != nil {
				rt.Fatal(err)
			}
		}
		sink.Check(t, im, span(1, 0, uint32(pages)))
		f.Close()
		if err := <-served; err != nil {
			rt.Fatal(err)
		}
	})
}
