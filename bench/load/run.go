package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/guestapi"
)

// Backoff is how long a connection waits after an error.
const Backoff = 20 * time.Millisecond

// maxBody bounds the body of an answer, in bytes.
const maxBody = 64 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Config says what load to make. Fields without a default must be given.
type Config struct {
	// Base is the server's URL, without a path: http://10.77.0.100:80.
	Base string
	// Path returns the path of request i; by default the guest's /page with i
	// as its number.
	Path func(i uint64) string
	// Conns is the number of connections, by default 4. In an open loop it
	// bounds the requests under way.
	Conns int
	// Rate is the requests a second of an open loop; 0 is a closed loop.
	Rate float64
	// Deadline bounds one request, by default 5 s.
	Deadline time.Duration
	// DialTimeout bounds one connection attempt, by default 250 ms: the kernel
	// repeats a lost SYN only after a second, which would pass for blackout.
	DialTimeout time.Duration
	// Dial replaces net.Dialer's DialContext.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// MaxSamples bounds the memory: answers beyond it are counted as dropped
	// and not noted. By default 4 million, of 24 bytes each.
	MaxSamples int
}

// Run is a load in progress.
type Run struct {
	cfg    Config
	cancel context.CancelFunc
	wg     sync.WaitGroup
	next   atomic.Uint64 // number of the next request

	mu  sync.Mutex
	log Log // guarded by mu
}

// Start starts the load; it goes on until Stop is called or ctx ends. The
// caller calls Stop in any case.
func Start(ctx context.Context, cfg Config) (*Run, error) {
	if cfg.Base == "" {
		return nil, errors.New("start a load: no Base URL")
	}
	if cfg.Rate < 0 || cfg.Conns < 0 {
		return nil, fmt.Errorf("start a load: rate %g, connections %d: want no negative number", cfg.Rate, cfg.Conns)
	}
	if cfg.Path == nil {
		cfg.Path = func(i uint64) string { return "/page?n=" + strconv.FormatUint(i, 10) }
	}
	cfg.Conns = or(cfg.Conns, 4)
	cfg.Deadline = or(cfg.Deadline, 5*time.Second)
	cfg.DialTimeout = or(cfg.DialTimeout, 250*time.Millisecond)
	cfg.MaxSamples = or(cfg.MaxSamples, 4<<20)
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &Run{cfg: cfg, cancel: cancel, log: Log{Start: time.Now()}}
	for range cfg.Conns {
		r.wg.Go(func() { r.work(ctx) })
	}
	return r, nil
}

func or[T comparable](v, byDefault T) T {
	var zero T
	if v == zero {
		return byDefault
	}
	return v
}

// Stop ends the load and returns what was noted. A later call returns the same.
func (r *Run) Stop() *Log {
	r.cancel()
	r.wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.log.End.IsZero() {
		r.log.End = time.Now()
	}
	return r.log.clone()
}

// Log returns a copy of what was noted up to now.
func (r *Run) Log() *Log {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.log.clone()
	if l.End.IsZero() {
		l.End = time.Now()
	}
	return l
}

// work is one connection.
func (r *Run) work(ctx context.Context) {
	t := &http.Transport{
		MaxConnsPerHost: 1, DisableCompression: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, r.cfg.DialTimeout)
			defer cancel()
			return r.cfg.Dial(ctx, network, addr)
		},
	}
	defer t.CloseIdleConnections()
	var body bytes.Buffer
	for ctx.Err() == nil {
		i := r.next.Add(1) - 1
		begin := time.Now()
		if r.cfg.Rate > 0 {
			begin = r.log.Start.Add(time.Duration(float64(i) / r.cfg.Rate * float64(time.Second)))
			if !pause(ctx, time.Until(begin)) {
				return
			}
		}
		outcome, err := r.request(ctx, t, i, &body)
		if ctx.Err() != nil {
			return // broken off by Stop: not the server's doing
		}
		r.note(begin, outcome, body.Len(), err)
		if err != nil {
			t.CloseIdleConnections()
			if !pause(ctx, Backoff) {
				return
			}
		}
	}
}

// pause waits for d and reports false if ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// request makes one request and verifies the answer, which it leaves in body.
func (r *Run) request(ctx context.Context, t *http.Transport, i uint64, body *bytes.Buffer) (Outcome, error) {
	body.Reset()
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Deadline)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.cfg.Base+r.cfg.Path(i), nil)
	if err != nil {
		return Failed, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return Failed, err
	}
	defer resp.Body.Close()
	if _, err := body.ReadFrom(io.LimitReader(resp.Body, maxBody)); err != nil {
		return Failed, err
	}
	if resp.StatusCode != http.StatusOK {
		return Refused, fmt.Errorf("GET %s: %s: %.200s", req.URL.Path, resp.Status, body.String())
	}
	want := resp.Header.Get(guestapi.ChecksumHeader)
	if got := fmt.Sprintf("%08x", crc32.Checksum(body.Bytes(), castagnoli)); got != want {
		return Corrupt, fmt.Errorf("GET %s: checksum %s of %d bytes, but the header says %q", req.URL, got, body.Len(), want)
	}
	return Good, nil
}

func (r *Run) note(begin time.Time, outcome Outcome, n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now() // under mu, so that the log is in order
	l := &r.log
	if err != nil && l.firstError[outcome] == "" {
		l.firstError[outcome] = err.Error()
	}
	if len(l.samples) == r.cfg.MaxSamples {
		l.Dropped++
		return
	}
	l.samples = append(l.samples, sample{
		at: now.Sub(l.Start), latency: now.Sub(begin), bytes: int32(n), outcome: outcome,
	})
}
