package pageserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answered is a copy of one answer, decoded into plain pages.
type answered struct {
	transport.Fetch
	pages   []byte
	extents []transport.Extent
	ahead   uint32
}

// fakeChannel is a transport.Responder fed and read by the test.
type fakeChannel struct {
	fetches chan transport.Fetch
	answers chan answered
	refused chan transport.RemoteError
	closed  chan struct{}
	once    sync.Once
}

func newFakeChannel() *fakeChannel {
	return &fakeChannel{
		fetches: make(chan transport.Fetch, 16), answers: make(chan answered, 16),
		refused: make(chan transport.RemoteError, 16), closed: make(chan struct{}),
	}
}

func (c *fakeChannel) Next(buf []transport.Fetch) (int, error) {
	select {
	case f, ok := <-c.fetches:
		if !ok {
			return 0, io.EOF
		}
		buf[0] = f
		return 1, nil
	case <-c.closed:
		return 0, os.ErrClosed
	}
}

func (c *fakeChannel) Answer(a *transport.Answer) error {
	out := answered{Fetch: a.Fetch, ahead: a.Ahead, extents: append([]transport.Extent(nil), a.Extents...)}
	size := len(a.Memory) / int(a.Count)
	exts := a.Extents
	if exts == nil {
		exts = []transport.Extent{{Count: a.Count}}
	}
	mem := a.Memory
	for _, e := range exts {
		n := int(e.Count) * size
		if e.Kind != transport.Fill {
			out.pages = append(out.pages, mem[:n]...)
		} else {
			for range n / 8 {
				out.pages = binary.LittleEndian.AppendUint64(out.pages, e.Word)
			}
		}
		mem = mem[n:]
	}
	c.answers <- out
	return nil
}

func (c *fakeChannel) Refuse(_ uint64, code transport.Code, text string) error {
	c.refused <- transport.RemoteError{Code: code, Text: text}
	return nil
}

func (c *fakeChannel) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

const page = 4096

// memfdWith makes a memfd of the given pages; nil is a hole.
func memfdWith(t testing.TB, pages [][]byte) int {
	t.Helper()
	fd, err := sysmem.CreateMemfd("image", int64(len(pages))*page, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for i, p := range pages {
		if p == nil {
			continue
		}
		if _, err := unix.Pwrite(fd, p, int64(i)*page); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

func blocks(t *testing.T, fd int) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

func randomPage(seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	p := make([]byte, page)
	for i := 0; i < page; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
	}
	return p
}

// serve serves a channel until the test ends, or until end is called: the peer
// closes, and everything is counted.
func serve(t *testing.T, im *Image, st *Stats) (c *fakeChannel, end func()) {
	t.Helper()
	c = newFakeChannel()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, c, im, Options{Stats: st}) }()
	var once sync.Once
	wait := func() {
		once.Do(func() {
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("Serve: %v", err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wait() })
	return c, func() { close(c.fetches); wait() }
}

func TestAnswersReadAsTheFile(t *testing.T) {
	const n = 600
	rng := rand.New(rand.NewPCG(3, 4))
	pages := make([][]byte, n)
	want := make([]byte, n*page)
	for i := range pages {
		switch rng.IntN(6) {
		case 0, 1:
			continue // hole
		case 2:
			pages[i] = make([]byte, page) // written zeroes
		case 3:
			pages[i] = bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7, byte(i % 2)}, page/8)
		default:
			pages[i] = randomPage(uint64(i))
		}
		copy(want[i*page:], pages[i])
	}
	for i := 300; i < 450; i++ {
		pages[i] = nil
	}
	clear(want[300*page : 450*page])

	for _, how := range []method{byMincore, bySeek, byRead} {
		fd := memfdWith(t, pages)
		before := blocks(t, fd)
		im, err := Open([]Source{{Region: transport.Region{ID: 9, Name: "ram", Pages: n, PageSize: page}, FD: fd}})
		if err != nil {
			t.Fatal(err)
		}
		im.byID[9].how = how
		var st Stats
		c, end := serve(t, im, &st)
		for id := range uint64(100) {
			first := rng.Uint64N(n)
			count := 1 + rng.Uint32N(uint32(min(n-first, 128)))
			f := transport.Fetch{ID: id, Range: transport.Range{Region: 9, First: first, Count: count}}
			c.fetches <- f
			a := <-c.answers
			if a.Fetch != f {
				t.Fatalf("answer to %+v is %+v", f, a.Fetch)
			}
			lo, hi := first*page, (first+uint64(count))*page
			if !bytes.Equal(a.pages, want[lo:hi]) {
				t.Fatalf("method %d: pages %d+%d differ from the file", how, first, count)
			}
			end := hi + uint64(a.ahead)*page
			if end > n*page || len(bytes.Trim(want[hi:end], "\x00")) != 0 {
				t.Fatalf("method %d: ahead %d after %d+%d reaches beyond the hole", how, a.ahead, first, count)
			}
			if how != byRead && hi < n*page && pages[first+uint64(count)-1] == nil && pages[first+uint64(count)] == nil && a.ahead == 0 {
				t.Fatalf("method %d: no ahead after %d+%d, though holes follow", how, first, count)
			}
		}
		end()
		if st.Fetches.Load() != 100 || st.Pages.Load() != st.Data.Load()+st.Fill.Load()+st.Zero.Load() || st.Service.Snapshot().Count() != 100 {
			t.Errorf("stats do not add up: %d fetches, %d pages = %d + %d + %d", st.Fetches.Load(), st.Pages.Load(),
				st.Data.Load(), st.Fill.Load(), st.Zero.Load())
		}
		if after := blocks(t, fd); after != before {
			t.Errorf("method %d: serving allocated pages in holes: %d blocks, before %d", how, after, before)
		}
		if err := im.Release(); err != nil {
			t.Fatal(err)
		}
	}
}

// A terabyte of nothing is one answer.
func TestSparseAhead(t *testing.T) {
	const n = 1 << 28
	fd, err := sysmem.CreateMemfd("sparse", n*page, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	im, err := Open([]Source{{Region: transport.Region{ID: 1, Pages: n, PageSize: page}, FD: fd}})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Release()
	c, _ := serve(t, im, nil)
	c.fetches <- transport.Fetch{ID: 1, Range: transport.Range{Region: 1, Count: 1}}
	a := <-c.answers
	if a.ahead != n-1 {
		t.Fatalf("ahead %d, want %d", a.ahead, n-1)
	}
	if b := blocks(t, fd); b != 0 {
		t.Fatalf("%d blocks were allocated", b)
	}
}

func TestRefusals(t *testing.T) {
	fd := memfdWith(t, [][]byte{randomPage(1), randomPage(2)})
	im, err := Open([]Source{{Region: transport.Region{ID: 1, Pages: 2, PageSize: page}, FD: fd}})
	if err != nil {
		t.Fatal(err)
	}
	var st Stats
	c, end := serve(t, im, &st)
	refuse := func(r transport.Range, want transport.Code) {
		t.Helper()
		c.fetches <- transport.Fetch{Range: r}
		if got := <-c.refused; got.Code != want || got.Text == "" {
			t.Errorf("fetch of %+v refused with %v, want %v", r, &got, want)
		}
	}
	refuse(transport.Range{Region: 2, Count: 1}, transport.CodeRange)
	refuse(transport.Range{Region: 1}, transport.CodeRange)
	refuse(transport.Range{Region: 1, First: 2, Count: 1}, transport.CodeRange)
	refuse(transport.Range{Region: 1, First: 1, Count: 2}, transport.CodeRange)
	refuse(transport.Range{Region: 1, First: 1<<64 - 1, Count: 2}, transport.CodeRange)

	// The file is cut off under a mapping that has never been touched: whatever
	// the kernel says, the daemon lives and nothing wrong is sent as data.
	if err := unix.Ftruncate(fd, page); err != nil {
		t.Fatal(err)
	}
	im.byID[1].how = byRead
	refuse(transport.Range{Region: 1, First: 1, Count: 1}, transport.CodeIO)
	im.byID[1].how = byMincore

	if err := im.Release(); err != nil {
		t.Fatal(err)
	}
	refuse(transport.Range{Region: 1, Count: 1}, transport.CodeDone)
	end()
	if st.Refused.Load() != 7 || st.Fetches.Load() != 0 {
		t.Errorf("stats: %d refused, %d answered", st.Refused.Load(), st.Fetches.Load())
	}
}

// A touch beyond the end of the file is a SIGBUS, which must cost a fetch only.
func TestTruncationIsAnErrorNotASignal(t *testing.T) {
	fd := memfdWith(t, [][]byte{randomPage(1), randomPage(2)})
	r, err := openRegion(&Source{Region: transport.Region{ID: 1, Pages: 2, PageSize: page}, FD: fd})
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if err := unix.Ftruncate(fd, page); err != nil {
		t.Fatal(err)
	}
	c := &channel{ch: touching{r.mem[page:]}, stats: new(Stats)}
	c.ans.Count = 1
	c.im = &Image{byID: map[uint32]*region{1: r}}
	got := make(chan error)
	go func() {
		c.buf[0] = transport.Fetch{}
		got <- c.loop()
	}()
	if err := <-got; err == nil || !strings.Contains(err.Error(), "truncated") {
		t.Fatalf("touching a truncated mapping: %v", err)
	}
}

// touching reads its memory in Answer, as the send path does.
type touching struct{ mem []byte }

func (c touching) Next(buf []transport.Fetch) (int, error) {
	buf[0] = transport.Fetch{Range: transport.Range{Region: 1, Count: 1}}
	return 1, nil
}

func (c touching) Answer(*transport.Answer) error {
	if c.mem[0] == 1 {
		return errors.New("read something")
	}
	return nil
}
func (touching) Refuse(uint64, transport.Code, string) error { return io.EOF }
func (touching) Close() error                                { return nil }

func TestOpenRefusesWhatDoesNotFit(t *testing.T) {
	fd := memfdWith(t, [][]byte{nil, nil})
	small := filepath.Join(t.TempDir(), "small")
	if err := os.WriteFile(small, make([]byte, page), 0o600); err != nil {
		t.Fatal(err)
	}
	region := func(pages uint64, size uint32) transport.Region {
		return transport.Region{ID: 1, Name: "ram", Pages: pages, PageSize: size}
	}
	for name, src := range map[string][]Source{
		"too long":      {{Region: region(3, page), FD: fd}},
		"page size":     {{Region: region(1, 5000), FD: fd}},
		"no pages":      {{Region: region(0, page), FD: fd}},
		"overflow":      {{Region: region(1<<60, page), FD: fd}},
		"odd offset":    {{Region: region(1, page), FD: fd, Offset: 100}},
		"beyond end":    {{Region: region(1, page), FD: fd, Offset: 2 * page}},
		"no such file":  {{Region: region(1, page), Path: "/nonexistent"}},
		"short file":    {{Region: region(2, page), Path: small}},
		"id used twice": {{Region: region(1, page), FD: fd}, {Region: region(1, page), FD: fd, Offset: page}},
	} {
		im, err := Open(src)
		if err == nil {
			t.Errorf("%s: opened %+v", name, im.Regions())
			im.Release()
		} else if !strings.Contains(err.Error(), `region 1 ("ram")`) {
			t.Errorf("%s: the error does not name the region: %v", name, err)
		}
	}
}

func TestAnswersDoNotAllocate(t *testing.T) {
	pages := make([][]byte, 256)
	for i := range pages {
		if i%3 != 0 {
			pages[i] = randomPage(uint64(i))
		}
	}
	r, err := openRegion(&Source{Region: transport.Region{Pages: 256, PageSize: page}, FD: memfdWith(t, pages)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	var s scratch
	var a transport.Answer
	f := transport.Fetch{Range: transport.Range{Count: 256}}
	if n := testing.AllocsPerRun(100, func() {
		if err := r.answer(f, &s, &a); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Fatalf("%v allocations per answer of 256 pages", n)
	}
}
