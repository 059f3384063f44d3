package relocate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/pageserver"
	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// Back-off between attempts to dial (PROTOCOL section 7).
const (
	redialMin = 50 * time.Millisecond
	redialMax = time.Second
)

// serving is the source's set of page channels. Each is dialled, served until
// it breaks, and dialled again, until stop.
type serving struct {
	o      *outgoing
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	stats  pageserver.Stats
	share  *pagecache.Share // of the host's cap
	up     atomic.Int32
	epoch  atomic.Uint64
}

func newServing(o *outgoing) *serving {
	s := &serving{o: o, share: o.host.out.Join()}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(o.ctx))
	s.epoch.Store(uint64(time.Now().UnixNano())) // grows over a restart of this daemon too
	return s
}

// stop ends every channel and waits for it. It may be called twice.
func (s *serving) stop() {
	s.cancel()
	s.wg.Wait()
	s.share.Leave()
}

// connect dials every page channel for the first time, side by side; a failure
// of one fails all, since this is before the switch-over.
func (s *serving) connect(ctx context.Context) error {
	type dialled struct {
		conn *tcp.Conn
		kind transport.Kind
		i    int
		err  error
	}
	n := s.o.rec.Options.DemandChannels + s.o.rec.Options.PrecacheChannels
	got := make(chan dialled, n)
	s.each(func(kind transport.Kind, i int) {
		go func() {
			conn, err := s.o.dial(ctx, kind, i, s.epoch.Add(1))
			got <- dialled{conn, kind, i, err}
		}()
	})
	var errs []error
	for range n {
		d := <-got
		if d.err != nil {
			errs = append(errs, fmt.Errorf("open %v channel %d: %w", d.kind, d.i, d.err))
			continue
		}
		s.wg.Go(func() { s.keep(d.kind, d.i, d.conn) })
	}
	return errors.Join(errs...)
}

// reconnect dials every page channel in the background (after a restart).
func (s *serving) reconnect() {
	s.each(func(kind transport.Kind, i int) {
		s.wg.Go(func() { s.keep(kind, i, nil) })
	})
}

func (s *serving) each(f func(transport.Kind, int)) {
	for i := range s.o.rec.Options.DemandChannels {
		f(transport.Demand, i)
	}
	for i := range s.o.rec.Options.PrecacheChannels {
		f(transport.Precache, i)
	}
}

// longLived is how long a connection must have lived for its successor to be
// dialled without a growing pause.
const longLived = 5 * time.Second

// keep serves one channel over as many connections as it takes. There is always
// a pause between two: whatever ends one at once would end the next.
func (s *serving) keep(kind transport.Kind, index int, conn *tcp.Conn) {
	wait := redialMin
	for s.ctx.Err() == nil {
		if conn == nil {
			var err error
			conn, err = s.o.dial(s.ctx, kind, index, s.epoch.Add(1))
			if err != nil {
				var no *transport.RemoteError
				if errors.As(err, &no) && no.Code == transport.CodeDone {
					return
				}
				s.o.log.Debug("page channel not reconnected", "kind", kind, "index", index, "err", err)
				sleep(s.ctx, wait)
				wait = min(2*wait, redialMax)
				continue
			}
		}
		began := time.Now()
		err := s.serve(conn)
		conn.Close()
		conn = nil
		if s.ctx.Err() != nil {
			return
		}
		if err != nil && !errors.Is(err, io.EOF) {
			s.o.warn("page channel lost, dialling again", "kind", kind, "index", index, "err", err)
		}
		if time.Since(began) > longLived {
			wait = redialMin
		}
		sleep(s.ctx, wait)
		wait = min(2*wait, redialMax)
	}
}

// servedLive says whether a channel may be served while the guest runs. Not one with RDMA:
// its keys are those of a frozen image, and what is a hole would not stay one. A destination
// that copies before the switch-over has none.
func servedLive(kind transport.Kind, f transport.Features) bool {
	return kind == transport.Precache && f&transport.FeatureRDMA == 0
}

// serve answers fetches once the image is frozen, on a precache channel once it may
// be read at all.
func (s *serving) serve(conn *tcp.Conn) error {
	stop := context.AfterFunc(s.ctx, func() { conn.Close() })
	defer stop()
	var early <-chan struct{} // never
	if servedLive(conn.Kind(), conn.Features()) {
		early = s.o.live
	}
	select {
	case <-early:
	case <-s.o.frozen:
	case <-s.ctx.Done():
		return nil
	}
	s.up.Add(1)
	defer s.up.Add(-1)
	responder, err := conn.Responder()
	if err != nil {
		return err
	}
	if s.o.export != nil && conn.Features()&transport.FeatureRDMA != 0 {
		defer s.o.export.Attach(conn).Close()
	}
	// In a thread of its own, which ends with the goroutine: its priority is
	// for the answers alone.
	served := make(chan error, 1)
	go func() {
		o := pageserver.Options{Stats: &s.stats, Demand: conn.Kind() == transport.Demand, Refused: func(err error) {
			s.o.log.Info("a channel keeps a lower priority", "kind", conn.Kind(), "err", err)
		}}
		if !o.Demand {
			o.Nice = faultd.BulkNice
			o.Moved = conn.Features()&transport.FeatureMoved != 0
			o.Repeats = conn.Features()&transport.FeatureRepeat != 0
		}
		if conn.Features()&transport.FeatureWarm != 0 {
			o.Warm = s.o.warm // nil after a restart: the index went with the daemon
		}
		served <- pageserver.Serve(s.ctx, &metered{Responder: responder, ctx: s.ctx, conn: conn, share: s.share}, s.o.image, o)
	}()
	return <-served
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
