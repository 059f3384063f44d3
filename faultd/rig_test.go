package faultd_test

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/kvmtest"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/pageserver"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const pageSize = 4096

func TestMain(m *testing.M) {
	touch.Main()
	kvmtest.Main()
	engineMain()
	goleak.VerifyTestMain(m)
}

// image is a source: a memfd, and what each page of it must read as.
type image struct {
	fd    int
	pages uint64
	sums  []uint32
}

// newImage makes pages of all kinds: random, zero as a hole, zero as data,
// filled with a word, and half random.
func newImage(t testing.TB, pages uint64, seed uint64) *image {
	t.Helper()
	return makeImage(t, pages, func(i uint64, p []byte) bool {
		touch.Fill(p, i, seed)
		switch rand.New(rand.NewPCG(i, seed)).IntN(8) {
		case 0:
			return false
		case 1:
			clear(p)
		case 2:
			for j := 0; j < len(p); j += 8 {
				binary.LittleEndian.PutUint64(p[j:], i%3+1)
			}
		case 3, 4:
			clear(p[len(p)/2:])
		}
		return true
	})
}

// makeImage asks make for each page; false is a hole.
func makeImage(t testing.TB, pages uint64, make_ func(i uint64, p []byte) bool) *image {
	t.Helper()
	fd, err := sysmem.CreateMemfd("source", int64(pages)*pageSize, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	im := &image{fd: fd, pages: pages, sums: make([]uint32, pages)}
	mem, err := sysmem.MapShared(fd, 0, int64(pages)*pageSize, true)
	must(t, err)
	defer sysmem.Unmap(mem)
	p := make([]byte, pageSize)
	for i := range pages {
		if make_(i, p) {
			copy(mem[i*pageSize:], p)
		} else {
			clear(p)
		}
		im.sums[i] = touch.Sum(p)
	}
	return im
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// server is a page server behind a listener, and the way to it.
type server struct {
	pageSize uint32 // of its region
	im       *pageserver.Image
	stats    pageserver.Stats
	ln       *tcp.Listener
	addr     string
	wg       sync.WaitGroup
	token    transport.Token
	tune     tcp.Tuning
	warm     atomic.Pointer[pageserver.Warm] // what the destination has

	mu    sync.Mutex
	conns map[*tcp.Conn]bool // guarded by mu
}

func newServer(t testing.TB, img *image, addr string, tune tcp.Tuning) *server {
	t.Helper()
	return newServerOf(t, region(img.pages), img.fd, addr, tune)
}

// newServerOf serves a file as a region.
func newServerOf(t testing.TB, reg transport.Region, fd int, addr string, tune tcp.Tuning) *server {
	t.Helper()
	im, err := pageserver.Open([]pageserver.Source{{Region: reg, FD: fd}})
	must(t, err)
	s := &server{im: im, pageSize: reg.PageSize, token: transport.NewToken(), conns: make(map[*tcp.Conn]bool), tune: tune}
	s.ln, err = tcp.Listen(addr, tcp.ListenOptions{Tuning: tune, Admit: func(h transport.Hello, _ string) (transport.Offer, *transport.RemoteError) {
		if h.Token != s.token {
			return transport.Offer{}, &transport.RemoteError{Code: transport.CodeToken, Text: "no such session"}
		}
		return transport.Offer{Role: transport.Source, Features: transport.AllFeatures}, nil
	}})
	must(t, err)
	s.addr = addr
	if s.ln.Addr().Network() == "tcp" {
		s.addr = s.ln.Addr().String()
	}
	s.wg.Go(s.accept)
	t.Cleanup(func() {
		s.ln.Close()
		s.cut()
		s.wg.Wait()
		if err := im.Release(); err != nil {
			t.Errorf("release image: %v", err)
		}
	})
	return s
}

func (s *server) accept() {
	for {
		c, err := s.ln.Accept(context.Background())
		if err != nil {
			return
		}
		r, err := c.Responder()
		if err != nil {
			c.Close()
			continue
		}
		s.mu.Lock()
		s.conns[c] = true
		s.mu.Unlock()
		s.wg.Go(func() {
			pageserver.Serve(context.Background(), r, s.im, pageserver.Options{Stats: &s.stats, Warm: s.warm.Load(), Moved: true,
				Demand: s.tune.BlockingIO && c.Kind() == transport.Demand})
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// cut breaks all connections.
func (s *server) cut() {
	s.mu.Lock()
	var cs []*tcp.Conn
	for c := range s.conns {
		cs = append(cs, c)
	}
	s.mu.Unlock()
	for _, c := range cs {
		c.CloseWith(0, "")
	}
}

// open is a [faultd.Opener] that dials until it succeeds.
func (s *server) open(pages uint64) faultd.Opener {
	return func(ctx context.Context, kind transport.Kind, index int) (transport.Fetcher, error) {
		for {
			c, err := tcp.Dial(ctx, s.addr, tcp.Options{Tuning: s.tune, Hello: transport.Hello{
				Kind: kind, Role: transport.Destination, Index: uint16(index), Token: s.token, Features: transport.AllFeatures}})
			if err == nil {
				reg := region(pages)
				reg.PageSize = s.pageSize
				c.SetRegions([]transport.Region{reg})
				return c.Fetcher()
			}
			quiet().Debug("dial", "err", err)
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
}

func region(pages uint64) transport.Region {
	return transport.Region{ID: 7, Name: "ram", Pages: pages, PageSize: pageSize}
}

// machine is a touch process with registered memory.
type machine struct {
	pageSize uint32 // of the region; 0 is 4096
	proc     *touch.Proc
	reg      *touch.Region
	mem      faultd.Memory
	file     int // -1 for private memory
	uffd     int
	res      *pagecache.Residency
}

func newMachine(t testing.TB, ctx context.Context, pages uint64, private bool) *machine {
	t.Helper()
	return newMachineEvents(t, ctx, pages, private, false)
}

// newMachineIn makes a machine whose memory is a file, which it closes.
func newMachineIn(t testing.TB, ctx context.Context, pages uint64, file int) *machine {
	t.Helper()
	return newMachineOf(t, ctx, pages, false, file, faultd.UFFDConfig{})
}

// newMachineEvents makes a machine whose removals, unmaps and moves are told.
func newMachineEvents(t testing.TB, ctx context.Context, pages uint64, private, events bool) *machine {
	t.Helper()
	return newMachineOf(t, ctx, pages, private, -1, faultd.UFFDConfig{Events: events})
}

// newMachineOf makes a machine whose userfaultfd and areas it puts into cfg.
func newMachineOf(t testing.TB, ctx context.Context, pages uint64, private bool, file int, cfg faultd.UFFDConfig) *machine {
	t.Helper()
	m := &machine{file: -1}
	var err error
	m.proc, err = touch.Start(ctx)
	must(t, err)
	t.Cleanup(m.proc.Kill)
	fd, err := m.proc.Userfaultfd()
	must(t, err)
	u, err := uffd.Open(fd)
	must(t, err)
	m.uffd = fd
	cfg.FD = u
	var closer io.Closer
	if private {
		m.reg, err = m.proc.MapPrivate(int64(pages) * pageSize)
		must(t, err)
		cfg.Areas = []faultd.Area{{Region: region(pages), Addr: m.reg.Addr}}
		p, err := faultd.NewPrivate(cfg)
		must(t, err)
		m.mem, closer = p.Memory(), p
	} else {
		if m.file = file; m.file < 0 {
			m.file, err = sysmem.CreateMemfd("destination", int64(pages)*pageSize, 0)
			must(t, err)
		}
		t.Cleanup(func() { unix.Close(m.file) })
		m.reg, err = m.proc.MapShared(m.file, int64(pages)*pageSize)
		must(t, err)
		cfg.Areas = []faultd.Area{{Region: region(pages), Addr: m.reg.Addr, FD: m.file}}
		s, err := faultd.NewShared(cfg)
		must(t, err)
		m.mem, closer = s.Memory(), s
	}
	m.res, err = pagecache.New(pages)
	must(t, err)
	t.Cleanup(func() {
		if err := closer.Close(); err != nil {
			t.Errorf("close memory: %v", err)
		}
		m.res.Close()
	})
	return m
}

func (m *machine) config(open faultd.Opener) faultd.Config {
	reg := region(m.res.Pages())
	reg.PageSize = cmp.Or(m.pageSize, reg.PageSize)
	return faultd.Config{
		Regions: []faultd.Region{{Region: reg, Residency: m.res}},
		Memory:  m.mem, Open: open, Log: quiet(),
	}
}

func quiet() *slog.Logger {
	if os.Getenv("PAGEWARP_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func start(t testing.TB, cfg faultd.Config) *faultd.Engine {
	t.Helper()
	e, err := faultd.New(cfg)
	must(t, err)
	t.Cleanup(func() { e.Close() })
	must(t, e.Start())
	return e
}

// drained waits for the drain with a deadline and checks the books.
func drained(t testing.TB, ctx context.Context, e *faultd.Engine) faultd.Stats {
	t.Helper()
	if err := e.Wait(ctx); err != nil {
		t.Fatalf("drain: %v; %+v", err, e.Stats())
	}
	s := e.Stats()
	if s.PagesLeft != 0 || !s.Drained || s.PagesDemand+s.PagesPrecache+s.PagesZero != s.PagesTotal {
		t.Errorf("pages installed: %d by demand, %d by precache, %d zero; %d left of %d: each page must count once",
			s.PagesDemand, s.PagesPrecache, s.PagesZero, s.PagesLeft, s.PagesTotal)
	}
	return s
}

// verify reads every page in the machine.
func (m *machine) verify(t testing.TB, want []uint32) {
	t.Helper()
	got, err := m.reg.Sums(0, uint64(len(want)))
	must(t, err)
	bad := 0
	for i := range want {
		if got[i] != want[i] {
			if bad++; bad <= 5 {
				t.Errorf("page %d has checksum %#x, want %#x", i, got[i], want[i])
			}
		}
	}
	if bad > 0 {
		t.Errorf("%d of %d pages differ", bad, len(want))
	}
}

func withDeadline(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeoutCause(context.Background(), d, errors.New("the test's deadline"))
	t.Cleanup(cancel)
	return ctx
}

func shuffled(n uint64, seed uint64) []uint64 {
	p := make([]uint64, n)
	for i := range p {
		p[i] = uint64(i)
	}
	rand.New(rand.NewPCG(seed, 1)).Shuffle(len(p), func(i, j int) { p[i], p[j] = p[j], p[i] })
	return p
}
