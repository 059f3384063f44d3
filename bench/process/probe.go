package process

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
)

// stall is from what time on two operations are noted as a [Gap]: an operation
// takes under 1 µs, and no fault served by another process under 20.
const stall = 20 * time.Microsecond

// Probe is what the process under test and the harness share. One process
// writes at a time.
type Probe struct {
	path string
	mem  []byte
	h    *header
	bins []uint32
	gaps []Gap
	want []uint32
}

// NewProbe makes the file of a probe for a memory of so many pages.
func NewProbe(path string, pages int) (*Probe, error) {
	fd, err := sysmem.CreateFile(path, probeBytes(pages))
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	p, err := mapProbe(path, fd, pages)
	if err == nil {
		p.h.start = time.Now().UnixNano()
	}
	return p, err
}

// openProbe maps the probe of NewProbe in the process under test.
func openProbe(path string, pages int) (*Probe, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mapProbe(path, int(f.Fd()), pages)
}

func mapProbe(path string, fd, pages int) (*Probe, error) {
	b, err := sysmem.MapShared(fd, 0, probeBytes(pages), true)
	if err != nil {
		return nil, err
	}
	p := &Probe{path: path, mem: b}
	p.h, p.bins, p.gaps, p.want = views(b, pages)
	return p, nil
}

// Close unmaps the probe; its file stays.
func (p *Probe) Close() error { return sysmem.Unmap(p.mem) }

// note counts one operation that ended now, in ns. Only the process calls it.
func (p *Probe) note(now, last int64) {
	if i := (now - p.h.start) / int64(time.Millisecond); i >= 0 && i < binCount {
		atomic.AddUint32(&p.bins[i], 1)
	}
	if last > 0 && now-last >= int64(stall) {
		if n := p.h.gaps; n < gapCount {
			p.gaps[n] = Gap{last, now}
		}
		atomic.AddUint64(&p.h.gaps, 1)
	}
	atomic.StoreInt64(&p.h.last, now)
}

// Gaps returns the stalls noted so far, in order. It is an error if there were
// more than there is room for.
func (p *Probe) Gaps() ([]Gap, error) {
	n := atomic.LoadUint64(&p.h.gaps)
	if n > gapCount {
		return nil, fmt.Errorf("the process stalled %d times, the probe has room for %d: choose a smaller load", n, gapCount)
	}
	return append([]Gap(nil), p.gaps[:n]...), nil
}

// Over returns the stall in which t lies: for a t at which the process was
// frozen, the one in which it was moved.
func Over(gaps []Gap, t time.Time) (Gap, error) {
	at := t.UnixNano()
	for _, g := range gaps {
		if g.From <= at && at <= g.To {
			return g, nil
		}
	}
	return Gap{}, fmt.Errorf("the process was never seen to stand still at %s, when it was said to be frozen", t.Format("15:04:05.000000"))
}

// Count is the number of operations in the milliseconds from from to to.
func (p *Probe) Count(from, to time.Time) (n int) {
	index := func(t time.Time) int64 {
		return min(max((t.UnixNano()-p.h.start)/int64(time.Millisecond), 0), binCount)
	}
	for i := index(from); i < index(to); i++ {
		n += int(atomic.LoadUint32(&p.bins[i]))
	}
	return n
}

// Start is when the first bin begins.
func (p *Probe) Start() time.Time { return time.Unix(0, p.h.start) }

// Operations is how many there were.
func (p *Probe) Operations() uint64 { return atomic.LoadUint64(&p.h.operations) }

// Last is when the last operation ended.
func (p *Probe) Last() time.Time { return time.Unix(0, atomic.LoadInt64(&p.h.last)) }

// Run lets a Worker that was started to go on begin.
func (p *Probe) Run() { atomic.StoreUint32(&p.h.run, 1) }

// Stop stops the worker between two operations, and returns when it has.
func (p *Probe) Stop(ctx context.Context) error {
	atomic.StoreUint32(&p.h.stop, 1)
	return p.await(ctx, &p.h.stopped, "stop")
}

// Resumed waits until the process has ended an operation after t.
func (p *Probe) Resumed(ctx context.Context, t time.Time) error {
	return poll(ctx, "resume", func() bool { return p.Last().After(t) })
}

// Verify ends the work and has the process check all of its memory. It returns
// how many pages, or touches of pages, were lost or wrong.
func (p *Probe) Verify(ctx context.Context) (bad uint64, err error) {
	atomic.StoreUint32(&p.h.verify, 1)
	if err := p.await(ctx, &p.h.verified, "verify its memory"); err != nil {
		return 0, err
	}
	bad = p.h.bad
	if m := p.h.missing; m != 0 {
		bad += uint64(max(m, -m))
	}
	return bad, nil
}

func (p *Probe) await(ctx context.Context, word *uint32, what string) error {
	return poll(ctx, what, func() bool { return atomic.LoadUint32(word) != 0 })
}

// pollEvery is short beside a switch-over of a millisecond, and long beside a
// look at a word.
const pollEvery = 50 * time.Microsecond

func poll(ctx context.Context, what string, done func() bool) error {
	for !done() {
		if ctx.Err() != nil {
			return fmt.Errorf("the process did not %s: %w", what, context.Cause(ctx))
		}
		time.Sleep(pollEvery)
	}
	return nil
}
