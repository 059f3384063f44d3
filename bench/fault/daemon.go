package fault

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/hist"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/uffd"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

type summary = hist.Summary

// Stats is what the fault daemon has counted.
type Stats struct {
	PagesDemand, PagesPrecache, PagesZero, PagesLeft uint64
	BytesWire                                        uint64
	// Elapsed is from the start of precache to the last page, or to now.
	Elapsed time.Duration
	// Reads completed, TCPFetches were answered by TCP all the same; with RDMA only.
	Reads, TCPFetches uint64
	// InPlace are pages that were in place when their READ completed.
	InPlace uint64
	// Stages are in µs.
	Stages map[string]summary
	// Memory is the fault daemon's own, ServerMemory the page server's.
	Memory, ServerMemory sysmem.Usage
}

// faultDaemon is the fault daemon's process: its descriptor 3 is the touching
// process's userfaultfd, 4 the memory.
func (t *task) faultDaemon() error {
	faultd.Tune(1 + t.Demand + t.Precache)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	u, err := uffd.Open(3)
	if err != nil {
		return err
	}
	region := t.region()
	shared, err := faultd.NewShared(faultd.UFFDConfig{FD: u, Areas: []faultd.Area{{Region: region, Addr: t.Mapping, FD: 4}}})
	if err != nil {
		return err
	}
	residency, err := pagecache.New(t.Pages)
	if err != nil {
		return err
	}
	cfg, err := t.tls()
	if err != nil {
		return err
	}
	listener, err := tcp.Listen(t.Addr, tcp.ListenOptions{TLS: cfg, Tuning: t.tuning(), Admit: t.admit})
	if err != nil {
		return err
	}
	if err := say(reply{Addr: listener.Addr().String()}); err != nil {
		return err
	}
	fetchers := make(map[key]chan transport.Fetcher)
	for kind, n := range map[transport.Kind]int{transport.Demand: t.Demand, transport.Precache: t.Precache} {
		for i := range n {
			fetchers[key{kind, i}] = make(chan transport.Fetcher, 1)
		}
	}
	engine, err := faultd.New(faultd.Config{
		Regions: []faultd.Region{{Region: region, Residency: residency}}, Memory: shared.Memory(),
		Open: func(ctx context.Context, kind transport.Kind, index int) (transport.Fetcher, error) {
			select {
			case f := <-fetchers[key{kind, index}]:
				return f, nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		},
		DemandChannels: t.Demand, PrecacheChannels: t.Precache,
		BlockingDemand: true, Priority: true, BulkNice: faultd.BulkNice, PrecacheOff: true, Log: log,
	})
	if err != nil {
		return err
	}
	if err := engine.Start(); err != nil {
		return err
	}
	land, err := t.reserve(engine)
	if err != nil {
		return err
	}
	if err := t.accept(listener, land, fetchers); err != nil {
		return err
	}
	if err := say(reply{}); err != nil {
		return err
	}
	var began time.Time
	return listen(func(op string) (reply, error) {
		switch op {
		case "precache":
			began = time.Now()
			engine.SetPrecache(true)
		case "reset":
			engine.ResetLatencies()
		case "drain":
			if err := engine.Wait(context.Background()); err != nil {
				return reply{}, err
			}
			return t.stats(engine, time.Since(began))
		case "stats":
		default:
			return reply{}, fmt.Errorf("request %q is unknown", op)
		}
		if err := engine.Err(); err != nil {
			return reply{}, err
		}
		return t.stats(engine, time.Since(began))
	})
}

func (t *task) stats(e *faultd.Engine, elapsed time.Duration) (reply, error) {
	st := e.Stats()
	s := Stats{
		PagesDemand: st.PagesDemand, PagesPrecache: st.PagesPrecache, PagesZero: st.PagesZero, PagesLeft: st.PagesLeft,
		BytesWire: st.DemandBytes + st.PrecacheBytes, Elapsed: elapsed, Stages: map[string]summary{},
	}
	for name, h := range st.Stages {
		s.Stages[string(name)] = h.Summary()
	}
	s.Reads, s.TCPFetches, s.InPlace = reads.Completed.Load(), reads.Beneath.Load(), reads.InPlace.Load()
	var err error
	s.Memory, err = usage()
	return reply{Stats: s}, err
}

func (t *task) admit(transport.Hello, string) (transport.Offer, *transport.RemoteError) {
	o := transport.Offer{Role: transport.Destination, Features: transport.AllFeatures}
	if t.RDMA != "" {
		o.Features |= transport.FeatureRDMA
	}
	return o, nil
}

type key struct {
	kind  transport.Kind
	index int
}

// accept takes the page server's channels.
func (t *task) accept(l *tcp.Listener, land *landing, fetchers map[key]chan transport.Fetcher) error {
	regions := []transport.Region{t.region()}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for range t.Demand + t.Precache {
		conn, err := l.Accept(ctx)
		if err != nil {
			return fmt.Errorf("wait for the page server: %w", err)
		}
		base, err := conn.Fetcher()
		if err != nil {
			return err
		}
		conn.SetRegions(regions)
		f, err := land.overRDMA(conn, base, regions)
		if err != nil {
			return err
		}
		fetchers[key{conn.Kind(), conn.Index()}] <- f
	}
	return nil
}
