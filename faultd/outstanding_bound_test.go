package faultd_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// As many fetches as may be are there before the channel is. It takes them all.
func TestMostFetchesBeforeTheChannel(t *testing.T) {
	const pages, most = 16384, 4096
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	ctx := withDeadline(t, 20*time.Second)
	srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachine(t, ctx, pages, false)
	gate := make(chan struct{})
	open := srv.open(pages)
	cfg := m.config(func(ctx context.Context, kind transport.Kind, index int) (transport.Fetcher, error) {
		select {
		case <-gate:
			return open(ctx, kind, index)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	cfg.PrecacheOff, cfg.Outstanding = true, most
	e := start(t, cfg)
	for at := uint64(0); at < most; at += 256 {
		must(t, e.Expect([]pagecache.Run{{Region: 7, First: at, Count: 256}}))
	}
	close(gate)
	for e.Stats().Outstanding > 0 {
		if must(t, ctx.Err()); e.Stats().Channels[0].Opens > 1 {
			t.Fatalf("the channel was lost: %s", e.Stats().Channels[0].LastErr)
		}
		time.Sleep(time.Millisecond)
	}
	if s := e.Stats(); s.PagesDemand != most || s.Retries != 0 {
		t.Errorf("%d pages came, %d fetches were repeated", s.PagesDemand, s.Retries)
	}
}

// More than a channel takes would be lost with it, again and again.
func TestOutstandingIsBounded(t *testing.T) {
	m := newMachine(t, withDeadline(t, 20*time.Second), 64, false)
	cfg := m.config(func(context.Context, transport.Kind, int) (transport.Fetcher, error) { return nil, context.Canceled })
	cfg.Outstanding = 2 * tcp.MaxOutstanding
	if _, err := faultd.New(cfg); err == nil || !strings.Contains(err.Error(), "4096") {
		t.Errorf("%d outstanding fetches: %v", cfg.Outstanding, err)
	}
}
