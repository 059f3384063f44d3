package fault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/sysmem"
)

// What is promised of a demand fault, as multiples of the local fault floor plus
// the round-trip floor (their medians).
const (
	IdleP50, IdleP99         = 1.3, 3
	PrecacheP50, PrecacheP99 = 2, 6
	// PrecacheToIdle is of the p99 under precache to that with the link idle.
	PrecacheToIdle = 3
)

// RunOptions of a measurement. Zero values mean the defaults.
type RunOptions struct {
	// Count is how many faults a pass. Default 3000.
	Count int
	// Repeat is how many passes. Default 3.
	Repeat int
	// Threads touch at a time, with the link idle. Default 1.
	Threads int
	// Channels are those for demand. Default 1.
	Channels int
	// Precache is the number of channels for precache. Default 2.
	Precache int
	// PrecacheMiB is how much memory precache moves while faults are timed.
	// Default 1024, over a limited link what it carries raw in 2 s; less where that
	// took half of this machine's memory.
	PrecacheMiB int
	// Link, if not 0, puts the two ends in network namespaces between which so many
	// bytes pass in a second (rig.Shape has its queue). That needs root.
	Link uint64
	// Qdisc is the limited link's, see rig.Shape.
	Qdisc string
	// Every is the time between two faults while precache runs. Default 1 ms:
	// back to back they would hold the gate shut, and precache would not run.
	Every time.Duration
	TLS   bool
	// CPUs says where the two ends run.
	CPUs floor.CPUs
	// Step, if not nil, is told what goes on.
	Step func(string)

	limit time.Duration // of a pass, beside its bytes; passLimit, but for tests
}

func (o *RunOptions) fill() {
	if o.Count == 0 {
		o.Count = 3000
	}
	if o.Repeat == 0 {
		o.Repeat = 3
	}
	if o.Threads == 0 {
		o.Threads = 1
	}
	if o.Channels == 0 {
		o.Channels = 1
	}
	if o.Precache == 0 {
		o.Precache = 2
	}
	if o.PrecacheMiB == 0 {
		free, err := sysmem.Available()
		if err != nil {
			free = math.MaxInt64 // roomFor says so
		}
		o.PrecacheMiB = precacheMiB(o.Link, free)
	}
	if o.Every == 0 {
		o.Every = time.Millisecond
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
}

// precacheMiB is the default of RunOptions.PrecacheMiB, with so many bytes of memory
// to give: both ends have it.
func precacheMiB(link uint64, free int64) int {
	mib := uint64(1024)
	if link > 0 {
		mib = min(max(2*link>>20, 64), mib)
	}
	return int(min(mib, max(uint64(free)>>22, 64)))
}

// Pass is one fault measurement and the floors around it, in µs.
type Pass struct {
	LocalFault report.Latency            `json:"local_fault_us"`
	RoundTrip  report.Latency            `json:"rtt_us"`
	Fault      report.Latency            `json:"fault_us"`
	Stages     map[string]report.Latency `json:"stages_us"`
	// Hits are touches, while precache ran, of pages that it had brought.
	Hits int `json:"hits,omitempty"`
	// PrecacheBytesPerSec is memory made resident while it ran.
	PrecacheBytesPerSec float64 `json:"precache_bytes_per_s,omitempty"`
}

// Floor is the sum of the two floors' medians.
func (p Pass) Floor() float64 { return p.LocalFault.P50 + p.RoundTrip.P50 }

// Result is all passes.
type Result struct {
	TLS      bool `json:"tls"`
	Threads  int  `json:"threads"`
	Channels int  `json:"channels"`
	Streams  int  `json:"streams"`
	// PrecacheMiB is how much memory precache moved in each of its passes, EveryUS the
	// time between two faults meanwhile, in µs.
	PrecacheMiB int     `json:"precache_mib"`
	EveryUS     float64 `json:"every_us"`
	// Link is in bytes per second; 0 is loopback.
	Link     uint64     `json:"link_bytes_per_s,omitempty"`
	Qdisc    string     `json:"qdisc,omitempty"`
	CPUs     floor.CPUs `json:"cpus"`
	Idle     []Pass     `json:"idle"`
	Precache []Pass     `json:"precache"`
}

// Run alternates the floors, faults over an idle link, and faults while
// precache runs at full rate. With an error the result has the passes that were finished, and is nil without any.
func Run(ctx context.Context, o RunOptions) (r *Result, err error) {
	o.fill()
	r = &Result{TLS: o.TLS, Threads: o.Threads, Channels: o.Channels, Streams: o.Precache, PrecacheMiB: o.PrecacheMiB, EveryUS: float64(o.Every) / 1e3, Link: o.Link, Qdisc: o.Qdisc, CPUs: o.CPUs}
	large, few := uint64(o.PrecacheMiB)<<20, withWarmUp(o.Count)*pageSize
	if err := roomFor(large + few + max(large, few)); err != nil {
		return nil, err
	}
	way, err := newWay(o.Link, o.Qdisc)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, way.close()) }()
	big, err := NewImage(ImageOptions{Pages: uint64(o.PrecacheMiB) << 20 / pageSize})
	if err != nil {
		return nil, err
	}
	defer big.Close()
	small, err := NewImage(ImageOptions{Pages: withWarmUp(o.Count)})
	if err != nil {
		return nil, err
	}
	defer small.Close()
	for i := range o.Repeat {
		o.Step(fmt.Sprintf("pass %d of %d: link idle", i+1, o.Repeat))
		p, err := o.pass(ctx, way, small, o.idle)
		if err != nil {
			return r.finished(), err
		}
		r.Idle = append(r.Idle, p)
		o.Step(fmt.Sprintf("pass %d of %d: precache at full rate", i+1, o.Repeat))
		if p, err = o.pass(ctx, way, big, o.busy); err != nil {
			return r.finished(), err
		}
		r.Precache = append(r.Precache, p)
	}
	return r, nil
}

// finished is r if a pass of it was finished, else nil.
func (r *Result) finished() *Result {
	if len(r.Idle) == 0 {
		return nil
	}
	return r
}

// pass takes the floors, then times faults by f.
func (o *RunOptions) pass(ctx context.Context, way *way, im *Image, f func(context.Context, *Engine, *Pass) ([]time.Duration, error)) (p Pass, err error) {
	ctx, cancel := bounded(ctx, cmp.Or(o.limit, passLimit), uint64(im.size()), o.Link)
	defer cancel()
	defer func() { err = Because(ctx, err) }()
	if p, err = floors(ctx, o.CPUs, way.pair(), o.Count); err != nil {
		return p, err
	}
	e, err := NewEngine(ctx, im, way.options(Options{CPUs: o.CPUs, TLS: o.TLS, Demand: o.Channels, Precache: o.Precache, Codec: "none"}))
	if err != nil {
		return p, err
	}
	defer e.Close()
	ds, err := f(ctx, e, &p)
	if err != nil {
		return p, err
	}
	p.Fault = report.Summarize(ds)
	s, err := e.Stats()
	if err != nil {
		return p, err
	}
	p.Stages = map[string]report.Latency{}
	for name, l := range s.Stages {
		if l.Count > 0 {
			p.Stages[name] = report.Latency(l)
		}
	}
	return p, nil
}

// floors takes the two of count faults and round trips.
func floors(ctx context.Context, cpus floor.CPUs, pair floor.Pair, count int) (p Pass, err error) {
	ds, err := floor.LocalFault(ctx, cpus, count)
	if err != nil {
		return p, err
	}
	p.LocalFault = report.Summarize(ds)
	if ds, err = floor.RoundTrip(ctx, cpus, pair, count, false); err != nil {
		return p, err
	}
	p.RoundTrip = report.Summarize(ds)
	return p, nil
}

// idle touches every page once, in random order, back to back.
func (o *RunOptions) idle(_ context.Context, e *Engine, _ *Pass) ([]time.Duration, error) {
	ds, _, err := e.touchAll(o.Threads, o.Count)
	return ds, err
}

// withWarmUp is how many pages count timed faults need, with those before.
func withWarmUp(count int) uint64 { return uint64(count) + uint64(max(count/10, 1)) }

// touchAll touches every page that is no hole once, in random order, back to
// back by a number of threads, and compares all memory. It returns the times of
// the last count touches, and how long those took together.
func (e *Engine) touchAll(threads, count int) ([]time.Duration, time.Duration, error) {
	order := e.image.shuffled()
	warm := len(order) - count
	if _, err := e.Region.Touch(order[:warm], false, threads); err != nil {
		return nil, 0, err
	}
	if err := e.ResetLatencies(); err != nil {
		return nil, 0, err
	}
	began := time.Now()
	ns, err := e.Region.Touch(order[warm:], false, threads)
	took := time.Since(began)
	if err != nil {
		return nil, 0, err
	}
	return durations(ns), took, e.Verify()
}

// hitLimit tells a touch of a page that is there, which takes well under a
// microsecond, from a fault, which takes two thread wake-ups.
const hitLimit = 8 * time.Microsecond

// busy touches random pages at intervals while precache runs, and stops when it
// is done.
func (o *RunOptions) busy(ctx context.Context, e *Engine, p *Pass) ([]time.Duration, error) {
	order := e.image.shuffled()
	if err := e.Precache(); err != nil {
		return nil, err
	}
	drained := make(chan error, 1)
	go func() {
		s, err := e.Drain()
		if err == nil {
			p.PrecacheBytesPerSec = float64(s.PagesPrecache*pageSize) / s.Elapsed.Seconds()
		}
		drained <- err
	}()
	tick := time.NewTicker(o.Every)
	defer tick.Stop()
	var ds []time.Duration
	for _, page := range order {
		select {
		case err := <-drained:
			if err == nil && len(ds) < 100 {
				err = fmt.Errorf("precache was done after %d faults: too few to tell; raise the amount of memory", len(ds))
			}
			return ds, errors.Join(err, e.Verify())
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
		ns, err := e.Region.Touch([]uint64{page}, false, 1)
		if err != nil {
			return nil, err
		}
		if d := time.Duration(ns[0]); d > hitLimit {
			ds = append(ds, d)
		} else {
			p.Hits++
		}
	}
	return nil, errors.New("precache did not end though every page was touched")
}

func durations(ns []uint32) []time.Duration {
	ds := make([]time.Duration, len(ns))
	for i, n := range ns {
		ds[i] = time.Duration(n)
	}
	return ds
}
