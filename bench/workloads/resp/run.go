package resp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/bench/guest/workset"
)

// Backoff is how long a connection waits after an error.
const Backoff = 20 * time.Millisecond

// Config says what load to make. Fields without a default must be given.
type Config struct {
	// Addr is the server's address, HOST:PORT.
	Addr string
	// Conns is the number of connections, by default 4. In an open loop it
	// bounds the operations under way.
	Conns int
	// Keys and ValueBytes are how many values there are and how long they are,
	// by default 10,000 of 1 KiB. They are all set before the load begins.
	Keys, ValueBytes int
	// Writes is the share of SETs, 0 to 1; the others are GETs.
	Writes float64
	// Rate is the operations a second of an open loop, whose latencies count
	// from when they were due; 0 is a closed loop.
	Rate float64
	// Deadline bounds one operation, by default 5 s; DialTimeout one attempt to
	// connect, by default 250 ms.
	Deadline, DialTimeout time.Duration
	// Dial replaces net.Dialer's DialContext.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Seed draws keys and kinds of operation.
	Seed uint64
	// MaxSamples bounds the memory: operations beyond it are counted as dropped.
	// By default 8 million, of 24 bytes each.
	MaxSamples int
}

func (c *Config) complete() error {
	c.Conns, c.Keys, c.ValueBytes = or(c.Conns, 4), or(c.Keys, 10_000), or(c.ValueBytes, 1024)
	c.Deadline, c.DialTimeout = or(c.Deadline, 5*time.Second), or(c.DialTimeout, 250*time.Millisecond)
	c.MaxSamples = or(c.MaxSamples, 8<<20)
	switch {
	case c.Addr == "":
		return errors.New("no address")
	case c.Conns < 0 || c.Keys < c.Conns:
		return fmt.Errorf("%d keys for %d connections: want one for each at least", c.Keys, c.Conns)
	case c.ValueBytes < valueHeader || c.ValueBytes > maxValue:
		return fmt.Errorf("values of %d bytes: want %d to %d", c.ValueBytes, valueHeader, maxValue)
	case !(c.Writes >= 0 && c.Writes <= 1):
		return fmt.Errorf("a share of writes of %g: want 0 to 1", c.Writes)
	case !(c.Rate >= 0 && c.Rate <= 1e7):
		return fmt.Errorf("a rate of %g: want 0 to ten million", c.Rate)
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	return nil
}

func or[T comparable](v, byDefault T) T {
	var zero T
	if v == zero {
		return byDefault
	}
	return v
}

// Run is a load in progress.
type Run struct {
	cfg    Config
	cancel context.CancelFunc
	wg     sync.WaitGroup
	next   atomic.Uint64 // number of the next operation of an open loop

	mu  sync.Mutex
	log Log // guarded by mu, but for Start
}

// Start sets all values and then starts the load, which goes on until Stop is
// called or ctx ends. The caller calls Stop in any case when the error is nil.
func Start(ctx context.Context, cfg Config) (*Run, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("start a load on Redis: %w", err)
	}
	r := &Run{cfg: cfg}
	workers := make([]*worker, cfg.Conns)
	errs := make([]error, cfg.Conns)
	for i := range workers {
		n := cfg.Keys/cfg.Conns + min(1, max(0, cfg.Keys%cfg.Conns-i))
		workers[i] = &worker{
			run: r, number: uint64(i), values: make([]version, n), value: make([]byte, cfg.ValueBytes), random: workset.NewRandom(cfg.Seed<<16 + uint64(i)),
		}
		r.wg.Go(func() { errs[i] = workers[i].fill(ctx) })
	}
	r.wg.Wait()
	if err := errors.Join(errs...); err != nil {
		for _, w := range workers {
			w.close()
		}
		return nil, fmt.Errorf("start a load on Redis: %w", err)
	}
	ctx, r.cancel = context.WithCancel(ctx)
	r.log = Log{Start: time.Now()}
	for _, w := range workers {
		r.wg.Go(func() { w.work(ctx) })
	}
	return r, nil
}

// Stop ends the load and returns what was noted. A later call returns the same.
func (r *Run) Stop() *Log {
	r.cancel()
	r.wg.Wait()
	r.mu.Lock()
	if r.log.End.IsZero() {
		r.log.End = time.Now()
	}
	r.mu.Unlock()
	return r.Log()
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

// worker is one connection, with the keys number, number+Conns, ...
type worker struct {
	run    *Run
	number uint64
	values []version // by key
	value  []byte
	reply  []byte
	random *workset.Random
	conn   *conn
}

func (w *worker) key(i int) uint64 { return w.number + uint64(i)*uint64(w.run.cfg.Conns) }

func (w *worker) close() {
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
}

func (w *worker) fill(ctx context.Context) error {
	for i := range w.values {
		if err := w.set(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) work(ctx context.Context) {
	defer w.close()
	for ctx.Err() == nil {
		begin := time.Now()
		if w.run.cfg.Rate > 0 {
			n := w.run.next.Add(1) - 1
			begin = w.run.log.Start.Add(time.Duration(float64(n) / w.run.cfg.Rate * float64(time.Second)))
			if !pause(ctx, time.Until(begin)) {
				return
			}
		}
		i := w.random.Below(len(w.values))
		op := w.get
		if float64(w.random.Next()>>11)/(1<<53) < w.run.cfg.Writes {
			op = w.set
		}
		err := op(ctx, i)
		if ctx.Err() != nil {
			return // broken off by Stop: not the server's doing
		}
		w.run.note(begin, err)
		if err != nil && !pause(ctx, Backoff) {
			return
		}
	}
}

// version is the last version of a value that was sent, and whether the server
// has said that it has it: else nobody knows which of the last two it has.
type version struct {
	sent uint32
	sure bool
}

// set writes the next version of a value.
func (w *worker) set(ctx context.Context, i int) error {
	v := &w.values[i]
	v.sent++
	v.sure = false
	value(w.value, w.key(i), v.sent)
	got, err := w.do(ctx, []byte("SET"), w.name(i), w.value)
	if err == nil && string(got) != "OK" {
		err = fmt.Errorf("SET answered %.40q", got)
	}
	v.sure = err == nil
	return err
}

func (w *worker) get(ctx context.Context, i int) error {
	if !w.values[i].sure {
		return w.set(ctx, i)
	}
	got, err := w.do(ctx, []byte("GET"), w.name(i))
	if err != nil {
		return err
	}
	if got == nil {
		w.values[i].sure = false
		return &wrongError{fmt.Errorf("key %d is gone: give the server more memory than the values need", w.key(i))}
	}
	if err := check(got, w.key(i), w.values[i].sent); err != nil {
		return &wrongError{err}
	}
	return nil
}

// wrongError is an answer that came, and was not what it must be.
type wrongError struct{ error }

func (w *worker) name(i int) []byte {
	return strconv.AppendUint([]byte("pagewarp:"), w.key(i), 10)
}

// do makes one operation, on a new connection if there is none.
func (w *worker) do(ctx context.Context, args ...[]byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, w.run.cfg.Deadline)
	defer cancel()
	for w.conn == nil {
		once, cancelOnce := context.WithTimeout(ctx, w.run.cfg.DialTimeout)
		raw, err := w.run.cfg.Dial(once, "tcp", w.run.cfg.Addr)
		timedOut := once.Err() != nil
		cancelOnce()
		switch {
		case err == nil:
			w.conn = &conn{Conn: raw, in: bufio.NewReaderSize(raw, 16<<10)}
		case !timedOut || ctx.Err() != nil:
			return nil, err
		}
	}
	// The deadline of ctx, or its end before that, ends what waits.
	c := w.conn
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err := c.command(args...)
	if err == nil {
		w.reply, err = c.reply(w.reply)
	}
	if !stop() {
		err = errors.Join(err, ctx.Err())
	}
	var said serverError
	if err != nil && !errors.As(err, &said) {
		w.close()
	}
	return w.reply, err
}

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
