package faultd

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

// heldFetcher answers a fetch when the test lets it.
type heldFetcher struct {
	fetches chan transport.Fetch
	let     chan struct{} // one answer each
	end     chan struct{}
	once    sync.Once
}

func (f *heldFetcher) Fetch(fs []transport.Fetch) error {
	for _, x := range fs {
		f.fetches <- x
	}
	return nil
}

func (f *heldFetcher) Receive(sink transport.Sink, c *transport.Completion) error {
	select {
	case <-f.let:
	case <-f.end:
		return io.EOF
	}
	x := <-f.fetches
	*c = transport.Completion{Fetch: x, Sent: time.Now()}
	dst := make([][]byte, x.Count)
	sink.Reserve(x.Range, dst)
	return sink.Commit(x.Range, dst)
}

func (f *heldFetcher) Outstanding(buf []transport.Fetch) []transport.Fetch { return buf }
func (f *heldFetcher) Close() error                                        { f.once.Do(func() { close(f.end) }); return nil }

// As many faults as may be are being fetched, one more has been read, and the layout of
// private memory changes: an answer can be installed only once that event has been read,
// and the fault has room only once an answer was installed.
func TestLayoutChangeAtTheBound(t *testing.T) {
	const bound = 64
	m := newScriptedMemory(2 * bound)
	var busy atomic.Bool
	m.install = func(transport.Range) error {
		if busy.Load() {
			return ErrBusy
		}
		return nil
	}
	res, err := pagecache.New(2 * bound)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	ch := &heldFetcher{fetches: make(chan transport.Fetch, 4*bound), let: make(chan struct{}), end: make(chan struct{})}
	e, err := New(Config{Memory: Memory{Faults: m, Install: m}, Log: slog.New(slog.DiscardHandler), Outstanding: bound, PrecacheOff: true, Policies: []pagecache.Policy{},
		Regions: []Region{{Region: transport.Region{ID: 7, Pages: 2 * bound, PageSize: testPage}, Residency: res}},
		Open: func(ctx context.Context, kind transport.Kind, _ int) (transport.Fetcher, error) {
			if kind == transport.Demand {
				return ch, nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	send := func(ev Event) {
		t.Helper()
		select {
		case m.events <- []Event{ev}:
		case <-time.After(5 * time.Second):
			t.Fatalf("the reader does not come to read the %v of page %d", ev.Kind, ev.Page)
		}
	}
	for page := range uint64(bound + 3) {
		send(Event{Kind: Fault, Region: 7, Page: page, Count: 1})
	}
	eventually(t, "the bound is reached, and faults wait for room", func() bool { return e.Stats().Overflows > 0 })
	busy.Store(true)
	ch.let <- struct{}{} // it cannot be installed yet
	eventually(t, "an answer waits for the change", func() bool { return e.Stats().Busy > 0 })
	send(Event{Kind: Remove, Region: 7, Page: 2*bound - 1, Count: 1})
	busy.Store(false) // as it is once the event has been read
	for range bound + 2 {
		select {
		case ch.let <- struct{}{}:
		case <-time.After(5 * time.Second):
			t.Fatal("answers are not taken any more")
		}
	}
	eventually(t, "all faults are served", func() bool { return e.Stats().PagesDemand == bound+3 && e.Stats().Outstanding == 0 })
}
