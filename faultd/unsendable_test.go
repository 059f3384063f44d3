package faultd_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// What a channel cannot carry it can carry on no connection: the session says so, and does
// not dial for ever.
func TestFetchesThatNoChannelCarries(t *testing.T) {
	const pages = 256
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	for name, c := range map[string]struct {
		maxCount uint32
		table    []transport.Region
		demand   bool
		want     string
	}{
		"count, precache": {8, []transport.Region{region(pages)}, false, "max_count of this channel is 8"},
		"count, demand":   {8, []transport.Region{region(pages)}, true, "max_count of this channel is 8"},
		"regions":         {0, nil, true, "SetRegions"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := withDeadline(t, 20*time.Second)
			srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
			m := newMachine(t, ctx, pages, false)
			cfg := m.config(func(ctx context.Context, kind transport.Kind, index int) (transport.Fetcher, error) {
				conn, err := tcp.Dial(ctx, srv.addr, tcp.Options{Hello: transport.Hello{Kind: kind, Role: transport.Destination,
					Index: uint16(index), Token: srv.token, Features: transport.AllFeatures, MaxCount: c.maxCount}})
				if err != nil {
					return nil, err
				}
				conn.SetRegions(c.table)
				return conn.Fetcher()
			})
			if cfg.PrecacheOff = c.demand; c.demand {
				cfg.ReadAround = 16
			}
			e := start(t, cfg)
			if c.demand {
				go m.reg.TouchAll(32, 64, false, 4) // it ends with the process
			}
			err := e.Wait(ctx)
			if !errors.Is(err, transport.ErrNotSent) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the session ends with %v; want %q", err, c.want)
			}
		})
	}
}

// A connection that was made before its table was known is nothing but lost.
func TestOneConnectionWithoutRegions(t *testing.T) {
	const pages = 256
	img := makeImage(t, pages, func(i uint64, p []byte) bool { touch.Fill(p, i, 1); return true })
	ctx := withDeadline(t, 20*time.Second)
	srv := newServer(t, img, "127.0.0.1:0", tcp.Tuning{})
	m := newMachine(t, ctx, pages, false)
	var early [4]atomic.Bool
	cfg := m.config(func(ctx context.Context, kind transport.Kind, index int) (transport.Fetcher, error) {
		conn, err := tcp.Dial(ctx, srv.addr, tcp.Options{Hello: transport.Hello{Kind: kind, Role: transport.Destination,
			Index: uint16(index), Token: srv.token, Features: transport.AllFeatures}})
		if err != nil {
			return nil, err
		}
		if early[kind].Swap(true) {
			conn.SetRegions([]transport.Region{region(pages)})
		}
		return conn.Fetcher()
	})
	e := start(t, cfg)
	m.verify(t, img.sums)
	drained(t, ctx, e)
}
