package faultd_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// Connections are cut at random while the machine reads and writes its pages:
// all of it arrives, each page is installed once, and what the machine wrote
// stays written.
func TestChannelsDieDuringDrain(t *testing.T) {
	const pages = 16 << 10
	img := newImage(t, pages, 5)
	for _, private := range []bool{false, true} {
		ctx := withDeadline(t, 60*time.Second)
		srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{Codec: transport.ModeS2})
		m := newMachine(t, ctx, pages, private)
		cfg := m.config(srv.open(pages))
		cfg.DemandChannels, cfg.PrecacheChannels, cfg.Readers = 2, 2, 2
		cfg.Bandwidth = 40 << 20 // so that the drain outlives some cuts
		cfg.ReadAround = 4
		e := start(t, cfg)

		stop, cutting := make(chan struct{}), sync.WaitGroup{}
		cutting.Go(func() {
			tick := time.NewTicker(30 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					srv.cut()
				case <-stop:
					return
				}
			}
		})
		want := append([]uint32(nil), img.sums...)
		var writing sync.WaitGroup
		buf := make([]byte, pageSize)
		for _, p := range shuffled(pages, 9)[:400] {
			touch.Fill(buf, p, 77)
			want[p] = touch.Sum(buf)
		}
		writing.Go(func() {
			for _, p := range shuffled(pages, 9)[:400] {
				if err := m.reg.Write(p, 77); err != nil {
					t.Errorf("write page %d: %v", p, err)
					return
				}
			}
		})
		_, err := m.reg.Touch(shuffled(pages, 6)[:pages/4], false, 8)
		must(t, err)
		writing.Wait()
		s := drained(t, ctx, e)
		close(stop)
		cutting.Wait()
		m.verify(t, want)
		opens := uint64(0)
		for _, c := range s.Channels {
			opens += c.Opens
		}
		if opens < 6 || s.Retries == 0 {
			t.Errorf("%d connections and %d retries: the cuts met nothing", opens, s.Retries)
		}
		t.Logf("private %v: %d connections, %d retries, %d duplicates dropped, %d aborts", private, opens, s.Retries, s.Duplicates, s.Aborts)
	}
}

// The source is away: faults wait, Stats says so, and when it is back all goes on.
func TestSourceGoneAndBack(t *testing.T) {
	const pages = 256
	ctx := withDeadline(t, 30*time.Second)
	img := newImage(t, pages, 8)
	srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachine(t, ctx, pages, false)
	var away atomic.Bool
	back := make(chan struct{})
	dial := srv.open(pages)
	cfg := m.config(func(ctx context.Context, k transport.Kind, i int) (transport.Fetcher, error) {
		if away.Load() {
			select {
			case <-back:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return dial(ctx, k, i)
	})
	cfg.PrecacheOff = true
	e := start(t, cfg)
	_, err := m.reg.Touch([]uint64{0, 1, 2}, false, 1)
	must(t, err)
	away.Store(true)
	srv.cut()
	for up := true; up; { // ends when the engine has seen the cut
		up = false
		for _, c := range e.Stats().Channels {
			up = up || c.Up && c.Kind == transport.Demand.String()
		}
		if err := ctx.Err(); err != nil {
			t.Fatal(context.Cause(ctx))
		}
		time.Sleep(time.Millisecond)
	}
	done := make(chan error, 1)
	go func() {
		_, err := m.reg.TouchAll(100, 20, false, 4)
		done <- err
	}()
	// The faults are read and wait; with no channel nothing can serve them.
	for e.Stats().Outstanding == 0 && m.res.Counts().Zero+m.res.Counts().Resident < 20 {
		must(t, ctx.Err())
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-done:
		t.Fatalf("pages were touched without a source: %v", err)
	default:
	}
	if s := e.Stats(); s.Channels[0].LastErr == "" || s.Drained {
		t.Errorf("stats without a source: %+v", s.Channels)
	}
	close(back)
	must(t, <-done)
	e.SetPrecache(true)
	drained(t, ctx, e)
	m.verify(t, img.sums)
}

// A sparse region is drained by a handful of answers, and nothing is allocated.
func TestSparseRegion(t *testing.T) {
	const pages = 64 << 30 / pageSize
	ctx := withDeadline(t, 60*time.Second)
	data := map[uint64]bool{0: true, 12345: true, pages / 2: true, pages - 1: true}
	img := &image{pages: pages}
	var err error
	img.fd, err = unix.MemfdCreate("sparse", unix.MFD_CLOEXEC)
	must(t, err)
	t.Cleanup(func() { unix.Close(img.fd) })
	must(t, unix.Ftruncate(img.fd, pages*pageSize))
	buf := make([]byte, pageSize)
	for p := range data {
		touch.Fill(buf, p, 3)
		_, err := unix.Pwrite(img.fd, buf, int64(p)*pageSize)
		must(t, err)
	}
	srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachine(t, ctx, pages, false)
	e := start(t, m.config(srv.open(pages)))
	s := drained(t, ctx, e)
	for p := range data {
		bad, err := m.reg.Verify(p, 1, 3)
		must(t, err)
		if bad != 0 {
			t.Errorf("page %d differs", p)
		}
	}
	var st unix.Stat_t
	must(t, unix.Fstat(m.file, &st))
	if st.Blocks*512 > 1<<20 {
		t.Errorf("the destination's file has %d bytes for %d pages of data", st.Blocks*512, len(data))
	}
	if s.PrecacheFetches > 200 {
		t.Errorf("%d fetches for %d pages of data", s.PrecacheFetches, len(data))
	}
	t.Logf("64 GiB drained in %v by %d fetches; peak memory of this process %d KiB", s.Drain, s.PrecacheFetches, peakKiB(t))
}

func peakKiB(t *testing.T) (kib int) {
	f, err := os.Open("/proc/self/status")
	must(t, err)
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if rest, ok := strings.CutPrefix(sc.Text(), "VmHWM:"); ok {
			for _, c := range rest {
				if c >= '0' && c <= '9' {
					kib = kib*10 + int(c-'0')
				}
			}
		}
	}
	return kib
}

// evilFetcher answers every fetch with an error that only a peer that breaks
// the protocol causes, after it has had memory reserved and has scribbled on it.
type evilFetcher struct {
	ids  chan transport.Fetch
	done chan struct{}
	once sync.Once
}

func (f *evilFetcher) Fetch(fs []transport.Fetch) error {
	for _, x := range fs {
		select {
		case f.ids <- x:
		case <-f.done:
			return os.ErrClosed
		}
	}
	return nil
}

func (f *evilFetcher) Receive(sink transport.Sink, c *transport.Completion) error {
	select {
	case x := <-f.ids:
		dst := make([][]byte, x.Count)
		sink.Reserve(x.Range, dst)
		for _, p := range dst {
			for i := range p {
				p[i] = 0xee
			}
		}
		// Ranges of no region are dropped, whoever lets them through.
		sink.Reserve(transport.Range{Region: 99, Count: 1}, make([][]byte, 1))
		sink.Zero(transport.Range{Region: 7, First: 1 << 40, Count: 5})
		sink.Abort(x.Range, dst)
		return transport.ErrMalformed
	case <-f.done:
		return os.ErrClosed
	}
}
func (f *evilFetcher) Outstanding(b []transport.Fetch) []transport.Fetch { return b }
func (f *evilFetcher) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

// A peer that sends garbage and nothing else ends the session, and no byte of
// it is left in the memory.
func TestHostilePageServer(t *testing.T) {
	const pages = 4096
	ctx := withDeadline(t, 30*time.Second)
	m := newMachine(t, ctx, pages, false)
	e := start(t, m.config(func(context.Context, transport.Kind, int) (transport.Fetcher, error) {
		return &evilFetcher{ids: make(chan transport.Fetch, 64), done: make(chan struct{})}, nil
	}))
	err := e.Wait(ctx)
	if !errors.Is(err, transport.ErrMalformed) || !strings.Contains(err.Error(), "in a row") {
		t.Fatalf("a session with a hostile page server ended with %v", err)
	}
	e.Detach()
	if c := m.res.Counts(); c.Absent != pages {
		t.Errorf("pages after the session: %+v, want all absent", c)
	}
	var st unix.Stat_t
	must(t, unix.Fstat(m.file, &st))
	if st.Blocks != 0 {
		t.Errorf("garbage was left in %d blocks of the file", st.Blocks)
	}
}

// Many threads hammer few pages while they come in by both ways: whatever the
// interleaving, nobody is left asleep. The pages are few and the rounds many, so
// that faults meet every state.
func TestNobodySleepsForEver(t *testing.T) {
	const pages = 512
	img := makeImage(t, pages, func(i uint64, p []byte) bool {
		touch.Fill(p, i, 1)
		if i%5 == 0 {
			binary.LittleEndian.PutUint64(p, 0)
			clear(p)
		}
		return i%7 != 0
	})
	srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	rounds := 30
	for round := range rounds {
		ctx := withDeadline(t, 20*time.Second)
		t.Run("", func(t *testing.T) {
			m := newMachine(t, ctx, pages, round%2 == 1)
			cfg := m.config(srv.open(pages))
			cfg.BatchPages = uint32(1 + rand.IntN(64))
			cfg.Readers = 1 + round%3
			cfg.ReadAround = 1 << (round % 4)
			cfg.GateHold = time.Microsecond
			if round%5 == 0 { // these threads are starved by themselves
				cfg.DemandPace, cfg.BulkNice = 100*time.Microsecond, 1
			}
			e := start(t, cfg)
			var wg sync.WaitGroup
			for k := range uint64(3) {
				wg.Go(func() {
					if _, err := m.reg.Touch(shuffled(pages, k+uint64(round)), k == 0, 8); err != nil {
						t.Errorf("%v\n%+v\n%+v", err, e.Stats(), m.res.Counts())
					}
				})
			}
			wg.Wait()
			drained(t, ctx, e)
			m.verify(t, img.sums)
		})
	}
}
