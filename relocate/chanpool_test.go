package relocate

import (
	"context"
	"errors"
	"testing"

	"github.com/pagewarp/pagewarp/transport"
)

type closeRecorder struct {
	transport.Fetcher
	closed bool
}

func (c *closeRecorder) Close() error { c.closed = true; return nil }

func TestChanPoolNewerConnectionReplacesAnUntakenOne(t *testing.T) {
	p := newChanPool()
	older, newer := new(closeRecorder), new(closeRecorder)
	for _, in := range []struct {
		f     *closeRecorder
		epoch uint64
	}{{newer, 2}, {older, 1}} {
		if err := p.put(transport.Demand, 0, in.epoch, in.f); err != nil {
			t.Fatal(err)
		}
	}
	got, err := p.open(t.Context(), transport.Demand, 0)
	if err != nil || got != transport.Fetcher(newer) {
		t.Fatalf("open returned %v, %v; want the connection of the higher epoch", got, err)
	}
	if !older.closed || newer.closed {
		t.Fatalf("closed: older %v, newer %v; want only the older", older.closed, newer.closed)
	}
}

func TestChanPoolOpenEndsWithThePoolOrTheContext(t *testing.T) {
	p := newChanPool()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	if _, err := p.open(ctx, transport.Precache, 1); !errors.Is(err, why) {
		t.Fatalf("open with a cancelled context: %v, want its cause", err)
	}
	untaken := new(closeRecorder)
	if err := p.put(transport.Precache, 0, 1, untaken); err != nil {
		t.Fatal(err)
	}
	p.close()
	if !untaken.closed {
		t.Fatal("close left a connection open that nobody took")
	}
	if _, err := p.open(t.Context(), transport.Precache, 1); !errors.Is(err, errPoolClosed) {
		t.Fatalf("open after close: %v", err)
	}
	if err := p.put(transport.Precache, maxPageChannels, 1, untaken); err == nil {
		t.Fatal("put took an index past the limit")
	}
}
