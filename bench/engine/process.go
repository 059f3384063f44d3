package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/bench/process"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/bench/workloads"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// ProcessOptions of a comparison of engines that move the work of a process.
// Zero values of what is not said to be needed mean the defaults.
type ProcessOptions struct {
	// Engines, Load and LogDir, which gets the logs, must be given.
	Engines []process.Engine
	Load    workloads.Load
	LogDir  string
	// Repeat is how many moves by each engine. Default 3.
	Repeat int
	// Link limits the link of each host, in bytes per second; 0 is no limit.
	Link uint64
	// Codec is pagewarp's for precache; empty is auto.
	Codec string
	// Before and After are how long the process is watched before the command,
	// and after it has moved. Default 4 s each.
	Before, After time.Duration
	// Span is how long an engine on demand is watched for. Default 1 min.
	Span time.Duration
	// MoveLimit is how long a move may take to be complete. Default 3 min.
	MoveLimit time.Duration
	// Step, if not nil, is told what goes on.
	Step func(string)
}

// verifyLimit bounds the check of the memory, some of which may still have to
// come page by page.
const verifyLimit = 2 * time.Minute

func (o *ProcessOptions) fill() error {
	if len(o.Engines) == 0 || o.LogDir == "" {
		return errors.New("compare engines: engines, a load and a folder for logs must be given")
	}
	if !slices.Contains(process.Kinds(), o.Load.Kind) {
		return fmt.Errorf("a process has no load %s: choose from %s", o.Load.Kind, strings.Join(process.Kinds(), ", "))
	}
	if o.Load.Kind == guestapi.LoadChurn && o.Load.Rate > 0 {
		return errors.New("the churn of a process goes as fast as it can: leave the rate out")
	}
	for d, byDefault := range map[*time.Duration]time.Duration{
		&o.Before: 4 * time.Second, &o.After: 4 * time.Second, &o.Span: time.Minute, &o.MoveLimit: 3 * time.Minute,
	} {
		if *d == 0 {
			*d = byDefault
		}
	}
	if o.Repeat == 0 {
		o.Repeat = 3
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	if err := roomFor(o.Load.WorkingSetMiB); err != nil {
		return err
	}
	if o.Before < beforeSpan+time.Second/2 {
		return fmt.Errorf("watch the process before the command for %v at least, not %v", beforeSpan+time.Second/2, o.Before)
	}
	return nil
}

// RunProcess has each engine move the work of a process in alternation, A B A B
// …, a new process between new hosts every time. See Run, whose Result it gives.
func RunProcess(ctx context.Context, o ProcessOptions) (*Result, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	r := &Result{
		Load: o.Load, LoadText: o.Load.String(), Unit: unit(o.Load), Subject: "process", RAMBytes: uint64(o.Load.WorkingSetMiB) << 20,
		LinkBytesPerSec: o.Link, Repeat: o.Repeat, Facts: map[string]Facts{}, Unavailable: []Unavailable{},
	}
	var able []process.Engine
	for _, e := range o.Engines {
		version, program, err := e.Available(ctx)
		if err != nil {
			o.Step(fmt.Sprintf("%s cannot run here: %v", e.Name(), err))
			r.Unavailable = append(r.Unavailable, Unavailable{e.Name(), err.Error()})
			continue
		}
		r.Facts[e.Name()] = Facts{Version: version, Binary: program}
		able = append(able, e)
	}
	if len(able) == 0 {
		return nil, fmt.Errorf("none of the engines can run here: %s: %s", r.Unavailable[0].Engine, r.Unavailable[0].Reason)
	}
	for n := range o.Repeat {
		for _, e := range able {
			c := &processContest{ProcessOptions: o, engine: e, row: Row{Engine: e.Name(), Run: n + 1}}
			err := c.run(ctx)
			if ctx.Err() != nil {
				r.sumUp()
				return r, interrupted(ctx, err)
			}
			if err != nil {
				c.row.Error = err.Error()
				o.Step(fmt.Sprintf("%s, run %d, FAILED: %v", e.Name(), n+1, err))
			}
			r.Rows = append(r.Rows, c.row)
		}
	}
	r.sumUp()
	return r, nil
}

// processContest is one move by one engine.
type processContest struct {
	ProcessOptions
	engine process.Engine
	row    Row
}

// run makes the hosts, starts the process, has it moved, watches it, and removes
// all.
func (c *processContest) run(ctx context.Context) (err error) {
	dir, err := filepath.Abs(filepath.Join(c.LogDir, fmt.Sprintf("%s-%d", c.engine.Name(), c.row.Run)))
	if err != nil {
		return err
	}
	// Old logs would be taken for what went wrong now.
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return fmt.Errorf("make the folder of logs: %w", err)
	}
	r, err := rig.New("a", "b")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() { err = errors.Join(err, r.Close()) }()
	a, b := r.Host("a"), r.Host("b")
	if c.Link > 0 {
		for _, h := range []*rig.Host{a, b} {
			if err := h.Shape(rig.Shape{BytesPerSecond: c.Link}); err != nil {
				return err
			}
		}
	}
	// Beside the hosts' folders: it is neither's memory.
	p, err := process.NewProbe(filepath.Join(filepath.Dir(a.Dir), "probe"), c.Load.WorkingSetMiB<<20/4096)
	if err != nil {
		return err
	}
	defer p.Close()
	c.Step(fmt.Sprintf("run %d of %d: start the process for %s", c.row.Run, c.Repeat, c.engine.Name()))
	w, err := process.StartWorker(ctx, a, p, c.Load, c.engine.Private(), filepath.Join(dir, "worker-a.log"))
	if err != nil {
		return fmt.Errorf("start the process: %w", err)
	}
	if err := sleep(ctx, c.Before); err != nil {
		return err
	}
	m, costs, err := c.move(ctx, &process.Job{A: a, B: b, Worker: w, Probe: p, Dir: dir, Codec: c.Codec, Span: c.Span})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		c.row.fill(Moved{Started: m.Started, Settings: m.Settings, Notes: m.Notes}, costs)
		return err
	}
	if err := sleep(ctx, c.After); err != nil {
		return err
	}
	return c.evaluate(ctx, p, m, costs)
}

// move has the engine move the process, and measures what that costs.
func (c *processContest) move(ctx context.Context, j *process.Job) (process.Moved, [2]Cost, error) {
	c.Step(fmt.Sprintf("run %d of %d: touch the host's free memory for %s", c.row.Run, c.Repeat, c.engine.Name()))
	if err := warmHost(4 * uint64(c.Load.WorkingSetMiB) << 20); err != nil {
		return process.Moved{}, [2]Cost{}, fmt.Errorf("touch the host's free memory: %w", err)
	}
	c.Step(fmt.Sprintf("run %d of %d: move it by %s", c.row.Run, c.Repeat, c.engine.Name()))
	// What the engine started may be needed beyond its move: the limit ends the
	// whole contest.
	limited, giveUp := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.MoveLimit, func() { giveUp(fmt.Errorf("given up after %v", c.MoveLimit)) })
	var mt *meter
	var meterErr error
	j.Begin = func() time.Time {
		mt, meterErr = startMeter(true, [2]*rig.Host{j.A, j.B})
		return time.Now()
	}
	m, err := c.engine.Move(limited, j)
	timer.Stop()
	costs, err := mt.account(meterErr, err)
	return m, costs, err
}

// evaluate reads the probe, and has the process verify its memory.
func (c *processContest) evaluate(ctx context.Context, p *process.Probe, m process.Moved, costs [2]Cost) error {
	gaps, err := p.Gaps()
	if err != nil {
		return err
	}
	down, err := process.Over(gaps, m.Frozen)
	if err != nil {
		return err
	}
	moved := Moved{
		Started: m.Started, Stopped: time.Unix(0, down.From), Resumed: time.Unix(0, down.To), Completed: m.Completed,
		Settings: m.Settings, Notes: m.Notes, BytesReported: m.BytesReported, Fault: stalls(gaps, down, m),
	}
	c.row.fill(moved, costs)
	end := p.Last()
	at := moments{moved.Stopped.Sub(m.Started), moved.Resumed.Sub(m.Started), moved.Completed.Sub(m.Started)}
	from, n := span(p.Start(), end, m.Started, at)
	bins := clientBins(from, m.Started, n, func(i int) int {
		begin := from.Add(time.Duration(i) * binLength)
		return p.Count(begin, begin.Add(binLength))
	})
	c.row.addSeries(bins)
	im, err := assess(bins, at, at.stopped)
	if err != nil {
		return err
	}
	c.row.addImpact(im, observation{blackout: longest(gaps, m.Started)})
	ctx, cancel := context.WithTimeoutCause(ctx, verifyLimit, fmt.Errorf("not done within %v", verifyLimit))
	defer cancel()
	c.row.BadPages, err = p.Verify(ctx)
	return err
}

// longest is the longest stall from the command on.
func longest(gaps []process.Gap, command time.Time) *time.Duration {
	var d time.Duration
	for _, g := range gaps {
		if g.To > command.UnixNano() {
			d = max(d, time.Duration(g.To-g.From))
		}
	}
	return &d
}

// stalls are those of the process after it had resumed, until all was there: what
// its demand faults cost it, and what else the machine did.
func stalls(gaps []process.Gap, down process.Gap, m process.Moved) *Fault {
	var ds []time.Duration
	for _, g := range gaps {
		if g.From >= down.To && (m.Completed.IsZero() || g.To <= m.Completed.UnixNano()) {
			ds = append(ds, time.Duration(g.To-g.From))
		}
	}
	if len(ds) == 0 {
		return nil
	}
	return &Fault{Latency: report.Summarize(ds), Source: "stalls of 20 µs and more of the process, from its resumption until all was there, by its own clock: demand faults, and waits for a CPU"}
}
