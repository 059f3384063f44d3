package faultd_test

import (
	"context"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/transport"
)

// poller is a channel whose answers the thread that asks takes.
type poller struct {
	*placer
	known chan struct{} // closed once there is a sink

	mu   sync.Mutex
	sink transport.Sink    // guarded by mu
	mine []transport.Fetch // guarded by mu
}

// Receive implements [transport.Fetcher]: there is nothing for it.
func (p *poller) Receive(sink transport.Sink, _ *transport.Completion) error {
	p.mu.Lock()
	p.sink = sink
	p.mu.Unlock()
	close(p.known)
	<-p.end
	return io.EOF
}

// FetchAndPoll implements [transport.Poller].
func (p *poller) FetchAndPoll(fs []transport.Fetch) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mine = append(p.mine, fs...)
	return nil
}

// Poll implements [transport.Poller].
func (p *poller) Poll(c *transport.Completion) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.mine) == 0 {
		return false
	}
	*c = transport.Completion{Fetch: p.mine[0], Sent: time.Now(), WireBytes: pageSize}
	p.mine = p.mine[1:]
	return p.copy(p.sink, c.Range) == nil
}

// eagerSource counts what its reader is told, and knows whether that is reading.
type eagerSource struct {
	faultd.FaultSource
	soon    atomic.Int64
	reading atomic.Bool
	starve  atomic.Pointer[faultd.Engine] // whose precache is to seem to wait for CPUs
}

type eagerReader struct {
	faultd.EagerReader
	s *eagerSource
}

func (s *eagerSource) NewReader() (faultd.FaultReader, error) {
	r, err := s.FaultSource.NewReader()
	if err != nil {
		return nil, err
	}
	return &eagerReader{r.(faultd.EagerReader), s}, nil
}

func (r *eagerReader) Soon(longest time.Duration) {
	r.s.soon.Add(1)
	r.EagerReader.Soon(longest)
}

func (r *eagerReader) Read(buf []faultd.Event) (int, error) {
	r.s.reading.Store(true)
	n, err := r.EagerReader.Read(buf)
	r.s.reading.Store(false)
	if e := r.s.starve.Load(); e != nil {
		e.Starve()
	}
	return n, err
}

// TestSoon: a reader that ends its faults by itself looks for the next one, unless precache
// waits for CPUs; one that leaves them to a receiver sleeps.
func TestSoon(t *testing.T) {
	const pages = 64
	all := transport.Range{Region: 7, Count: pages}
	for _, c := range []struct {
		name  string
		polls bool
		short bool
		want  int64
	}{{"polled for", true, false, pages}, {"polled for, CPUs are short", true, true, 0}, {"received", false, false, 0}} {
		t.Run(c.name, func(t *testing.T) {
			ctx := withDeadline(t, 30*time.Second)
			img := newImage(t, pages, 52)
			var src *eagerSource
			p := &poller{known: make(chan struct{})}
			l := newLending(t, ctx, img, false, func(cfg *faultd.Config) {
				cfg.PrecacheOff = true
				src = &eagerSource{FaultSource: cfg.Memory.Faults}
				cfg.Memory.Faults = src
				open := cfg.Open
				cfg.Open = func(ctx context.Context, k transport.Kind, i int) (transport.Fetcher, error) {
					f, err := open(ctx, k, i)
					if err != nil || !c.polls || k != transport.Demand {
						return f, err
					}
					p.placer = f.(*placer)
					return p, nil
				}
			}, all)
			if c.short {
				src.starve.Store(l.e)
			}
			l.read = func(transport.Range) bool { // when the reader, which has handed the fault over, reads again
				for !src.reading.Load() && ctx.Err() == nil {
					runtime.Gosched()
				}
				return true
			}
			close(l.begun)
			if c.polls {
				select {
				case <-p.known:
				case <-ctx.Done():
					t.Fatal("no channel")
				}
			}
			if _, err := l.reg.Touch(shuffled(pages, 4), false, 1); err != nil {
				t.Fatal(err)
			}
			if got := src.soon.Load(); got < c.want-1 || c.want == 0 && got > 0 { // the last one's is under way
				t.Errorf("the reader was told %d times that a fault will come soon, want %d or one less", got, c.want)
			}
			drained(t, ctx, l.e)
			l.verify(t, img.sums)
		})
	}
}
