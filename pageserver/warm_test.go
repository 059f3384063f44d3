package pageserver

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/pagewarp/pagewarp/internal/pagehash"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

var warmToken = [32]byte{4, 5, 6}

// offered makes the destination's word: it has the given pages of region 1.
func offered(t testing.TB, pages [][]byte, key [32]byte) *Warm {
	t.Helper()
	w, err := NewWarm(warmToken, []transport.Region{{ID: 1, Name: "ram", Pages: uint64(len(pages)), PageSize: page}})
	if err != nil {
		t.Fatal(err)
	}
	x, err := pagehash.NewIndex(uint64(len(pages)))
	if err != nil {
		t.Fatal(err)
	}
	h := pagehash.NewHasher(pagehash.SessionKey(key))
	for i, p := range pages {
		if p != nil {
			x.Set(uint64(i), h.Sum(p))
		}
	}
	if err := w.Take(transport.Range{Region: 1, Count: uint32(len(pages))}, x.Append(nil, 0, uint64(len(pages)))); err != nil {
		t.Fatal(err)
	}
	return w
}

// warmRig serves an image of 64 pages: a hole at 10, a fill at 11, random else.
func warmRig(t *testing.T) (im *Image, fd int, pages [][]byte) {
	pages = make([][]byte, 64)
	for i := range pages {
		pages[i] = randomPage(uint64(i))
	}
	pages[10] = nil
	pages[11] = bytes.Repeat([]byte{9}, page)
	fd = memfdWith(t, pages)
	im, err := Open([]Source{{Region: transport.Region{ID: 1, Name: "ram", Pages: 64, PageSize: page}, FD: fd}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Release() })
	return im, fd, pages
}

func serveWarm(t *testing.T, im *Image, o Options) (_ *fakeChannel, stop func()) {
	c := newFakeChannel()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- Serve(ctx, c, im, o) }()
	stop = sync.OnceFunc(func() { close(c.fetches); <-done; cancel() })
	t.Cleanup(stop)
	return c, stop
}

func kinds(a answered) (same, data, fill int) {
	for _, e := range a.extents {
		switch e.Kind {
		case transport.Same:
			same += int(e.Count)
		case transport.Fill:
			fill += int(e.Count)
		default:
			data += int(e.Count)
		}
	}
	if a.extents == nil {
		data = int(a.Count)
	}
	return same, data, fill
}

func TestWarmAnswers(t *testing.T) {
	im, _, pages := warmRig(t)
	for _, how := range []method{byMincore, bySeek, byRead} {
		im.byID[1].how = how
		theirs := append([][]byte(nil), pages...)
		theirs[3] = randomPage(1003) // has changed since
		theirs[4] = nil              // they never had it
		theirs[10] = randomPage(10)  // is a hole by now
		var st Stats
		c, stop := serveWarm(t, im, Options{Stats: &st, Warm: offered(t, theirs, warmToken)})
		whole := transport.Fetch{ID: 1, Range: transport.Range{Region: 1, Count: 64}}
		c.fetches <- whole
		if same, data, fill := kinds(<-c.answers); same != 60 || data != 2 || fill != 2 {
			t.Errorf("method %d: %d same, %d data, %d fill; want 60, 2, 2", how, same, data, fill)
		}
		whole.Plain = true
		c.fetches <- whole
		if same, data, _ := kinds(<-c.answers); same != 0 || data != 62 {
			t.Errorf("method %d: plain: %d same, %d data", how, same, data)
		}
		stop() // the last answer is counted
		if st.Same.Load() != 60 || st.Data.Load() != 64 || st.Pages.Load() != 128 || st.Hashed.Load() != 61 || st.Bytes.Load() != 64*page {
			t.Errorf("method %d: %d same, %d data, %d pages, %d hashed, %d bytes", how, st.Same.Load(), st.Data.Load(), st.Pages.Load(), st.Hashed.Load(), st.Bytes.Load())
		}
	}
}

// TestWarmOfAnotherMachine has an index that matches nothing, for two reasons:
// all is sent, and on demand hashing soon ends.
func TestWarmOfAnotherMachine(t *testing.T) {
	im, _, pages := warmRig(t)
	other := make([][]byte, len(pages))
	for i := range other {
		other[i] = randomPage(uint64(5000 + i))
	}
	for name, w := range map[string]*Warm{"other pages": offered(t, other, warmToken), "other key": offered(t, pages, [32]byte{9})} {
		var st Stats
		c, stop := serveWarm(t, im, Options{Stats: &st, Warm: w, Demand: true})
		const fetches = 3200
		for i := range uint64(fetches) {
			c.fetches <- transport.Fetch{ID: i, Range: transport.Range{Region: 1, First: 12 + i%50, Count: 1}}
			if same, data, _ := kinds(<-c.answers); same != 0 || data != 1 {
				t.Fatalf("%s: %d same, %d data", name, same, data)
			}
		}
		stop()
		if n := st.Hashed.Load(); n < trial || n > trial+2*fetches/retryEvery {
			t.Errorf("%s: %d of %d demand fetches hashed a page, though none ever matches", name, n, fetches)
		}
	}
}

func TestWarmRefusesAHostileIndex(t *testing.T) {
	w := offered(t, make([][]byte, 64), warmToken)
	for name, tc := range map[string]struct {
		r transport.Range
		n int
	}{
		"unknown region":  {transport.Range{Region: 2, Count: 1}, 16},
		"past the end":    {transport.Range{Region: 1, First: 60, Count: 5}, 80},
		"far past it":     {transport.Range{Region: 1, First: 1 << 63, Count: 1}, 16},
		"half a hash":     {transport.Range{Region: 1, Count: 1}, 15},
		"wraps around":    {transport.Range{Region: 1, First: 1<<64 - 1, Count: 2}, 32},
		"more than pages": {transport.Range{Region: 1, Count: 65}, 65 * 16},
	} {
		if err := w.Take(tc.r, bytes.Repeat([]byte{7}, tc.n)); !errors.Is(err, transport.ErrMalformed) {
			t.Errorf("%s: %v, want a malformed frame", name, err)
		}
	}
	if n := w.Candidates(); n != 0 {
		t.Errorf("%d candidates were taken", n)
	}
}

// TestLiveAnswersAreCopies has the machine write while its page is on the way.
func TestLiveAnswersAreCopies(t *testing.T) {
	for _, how := range []method{byMincore, bySeek, byRead} {
		im, fd, pages := warmRig(t)
		im.byID[1].how = how
		im.SetState(Live)
		c := &channel{im: im, stats: new(Stats)}
		defer c.scratch.close()
		before := blocks(t, fd)
		if no, err := c.prepare(transport.Fetch{ID: 1, Range: transport.Range{Region: 1, Count: 64}}); no != nil || err != nil {
			t.Fatal(no, err)
		}
		if after := blocks(t, fd); after != before {
			t.Errorf("method %d: reading a live image allocated pages: %d blocks, before %d", how, after, before)
		}
		if _, err := unix.Pwrite(fd, randomPage(77), 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(c.ans.Memory[:page], pages[0]) {
			t.Errorf("method %d: the answer changes with the machine", how)
		}
		for _, e := range c.ans.Extents {
			if e.Kind == transport.Fill && e.Word == 0 && e.Count != 1 {
				t.Errorf("method %d: %d zero pages, of one", how, e.Count)
			}
		}
		im.SetState(Frozen)
		if no, err := c.prepare(transport.Fetch{ID: 2, Range: transport.Range{Region: 1, Count: 64}}); no != nil || err != nil {
			t.Fatal(no, err)
		}
		if how != byRead && &c.ans.Memory[0] != &im.byID[1].mem[0] {
			t.Errorf("method %d: a frozen image is still copied", how)
		}
		if !bytes.Equal(c.ans.Memory[:page], randomPage(77)) {
			t.Errorf("method %d: the frozen page is not the one that was written", how)
		}
	}
}

// TestShutImageRefuses has a peer fetch between the pre-transfer and the freeze.
func TestShutImageRefuses(t *testing.T) {
	im, _, _ := warmRig(t)
	im.SetState(Shut)
	c := &channel{im: im, stats: new(Stats)}
	defer c.scratch.close()
	no, err := c.prepare(transport.Fetch{ID: 1, Range: transport.Range{Region: 1, Count: 1}})
	if err != nil || no == nil || no.code != transport.CodeNotFrozen {
		t.Errorf("%+v, %v; want a refusal with NOT_FROZEN", no, err)
	}
}

// TestMovedAnswers has pages of the image offered as candidates of others, in runs and
// singly.
func TestMovedAnswers(t *testing.T) {
	im, _, pages := warmRig(t)
	at := map[int]int{} // page of the image, where the destination has it
	old := make([][]byte, len(pages))
	for i := range 8 {
		at[i], old[40+i] = 40+i, pages[i]
	}
	at[20], old[3] = 3, pages[20]
	data := 0
	for i := range pages {
		if i == 10 || i == 11 {
			continue // a hole and a fill
		}
		if _, ok := at[i]; !ok {
			data++
		}
	}
	if len(at) < 5 {
		t.Fatalf("%d pages have moved", len(at))
	}
	for name, o := range map[string]Options{"looked for": {Moved: true}, "not looked for": {}, "on demand": {Moved: true, Demand: true}} {
		t.Run(name, func(t *testing.T) {
			o.Stats = new(Stats)
			s := scratch{warm: offered(t, old, warmToken).comparer(&o)}
			var a transport.Answer
			if err := im.byID[1].answer(transport.Fetch{Range: transport.Range{Region: 1, Count: uint32(len(pages))}}, &s, &a); err != nil {
				t.Fatal(err)
			}
			page, moved, plain := 0, 0, 0
			for _, e := range a.Extents {
				for i := range int(e.Count) {
					switch e.Kind {
					case transport.Moved:
						moved++
						if want, ok := at[page]; !ok || int(e.Word)+i != want {
							t.Errorf("page %d is said to have been at %d, want %d, %v", page, int(e.Word)+i, want, ok)
						}
					case transport.Data:
						plain++
					}
					page++
				}
			}
			want := len(at)
			if !o.Moved || o.Demand {
				want = 0
			}
			if moved != want || plain != data+len(at)-want {
				t.Errorf("%d pages moved and %d data, want %d and %d", moved, plain, want, data+len(at)-want)
			}
		})
	}
}

func TestWarmAnswersDoNotAllocate(t *testing.T) {
	im, _, pages := warmRig(t)
	var a transport.Answer
	s := scratch{warm: offered(t, pages, warmToken).comparer(&Options{Stats: new(Stats)})}
	f := transport.Fetch{Range: transport.Range{Region: 1, Count: 64}}
	if n := testing.AllocsPerRun(100, func() {
		if err := im.byID[1].answer(f, &s, &a); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Fatalf("%v allocations per answer", n)
	}
}
