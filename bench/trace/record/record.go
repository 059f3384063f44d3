package record

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pagewarp/pagewarp/bench/demo"
	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/bench/trace"
	"github.com/pagewarp/pagewarp/relocate"
)

// What the recorded relocation is set to, the real ones with precache, and the
// simulation of these, which are without the hot list, as by default.
const (
	recordPolicies    = "hot,sweep" // on demand only: the list is recorded, and not used
	realPolicies      = "around,bubbles,sweep"
	simulatedPolicies = "around+bubbles+follow"
	recordSpan        = 10 * time.Second
	channels          = 2  // the daemon's default
	runPages          = 32 // faultd's default of BatchPages
)

// Options of a recording.
type Options struct {
	// Engine are those of the relocations; its Engines are replaced. Repeat is
	// the number of relocations with precache.
	Engine engine.Options
	Env    engine.Env
}

// Recording is a trace and what a simulation of it is worth.
type Recording struct {
	Trace *trace.Trace `json:"-"`
	File  string       `json:"file,omitempty"`
	Load  string       `json:"load"`
	// Real are the relocations with precache that succeeded, Failures says what became
	// of the others; the former are counted by Runs.
	Real     []trace.Real `json:"real"`
	Runs     []int        `json:"runs,omitempty"`
	Failures []string     `json:"failures,omitempty"`
	// Simulated is the simulation under the conditions of the real runs.
	Simulated *trace.Result `json:"simulated"`
	// Errors are simulated to real, less 1: of the medians of the real runs; null where
	// the real figure is 0, or the simulation's memory was never complete.
	DrainError *float64 `json:"drain_error"`
	FaultError *float64 `json:"fault_error"` // of the pages fetched on demand
	StallError *float64 `json:"stall_error"`
}

// Run records a trace and checks the simulation. It needs root.
func Run(ctx context.Context, o Options) (*Recording, error) {
	if o.Engine.Step == nil {
		o.Engine.Step = func(string) {}
	}
	dir, err := os.MkdirTemp("", "pagewarp-trace-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	t := &trace.Trace{Schema: trace.Schema, Origin: "recorded", Created: time.Now().UTC().Truncate(time.Second),
		VCPUs: max(o.Engine.VCPUs, 1), Load: o.Engine.Load.String()}
	t.Link.LinkBitsPerSec = float64(o.Engine.Link) * 8
	if err := floors(ctx, o.Engine, t); err != nil {
		return nil, fmt.Errorf("floors: %w", err)
	}
	if err := onDemand(ctx, o, t, filepath.Join(dir, "faults")); err != nil {
		return nil, fmt.Errorf("record on demand only: %w", err)
	}
	rs, err := withPrecache(ctx, o, t)
	if err != nil {
		return nil, fmt.Errorf("relocate with precache: %w", err)
	}
	r, err := check(ctx, t)
	if err != nil {
		return nil, err
	}
	r.Real, r.Runs, r.Failures = rs.real, rs.runs, rs.failures
	return r, nil
}

// check simulates a trace as its real relocations were made, and says how far the
// simulation is off.
func check(ctx context.Context, t *trace.Trace) (*Recording, error) {
	if t.Real == nil {
		return nil, errors.New("the trace has no real relocation to compare with: record it again")
	}
	r := &Recording{Trace: t, Load: t.Load, Real: []trace.Real{*t.Real}}
	var err error
	r.Simulated, err = trace.Simulate(ctx, t, AsRecorded(t))
	if err != nil {
		return nil, err
	}
	over := func(a, b float64) *float64 {
		if b == 0 || !r.Simulated.Drained {
			return nil
		}
		e := a/b - 1
		return &e
	}
	r.DrainError = over(r.Simulated.DrainS, t.Real.DrainS)
	r.FaultError = over(float64(r.Simulated.DemandPages), float64(t.Real.PagesDemand))
	r.StallError = over(r.Simulated.StallS, t.Real.StallS)
	return r, nil
}

// floors measures what the hosts' link and the machine do without pagewarp.
func floors(ctx context.Context, o engine.Options, t *trace.Trace) (err error) {
	o.Step("floors of this machine, over the same links")
	p, err := demo.NewPair(ctx, o.Tools, filepath.Join(o.LogDir, "floors"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	cpus, err := floor.PickCPUs()
	if err != nil {
		return err
	}
	f, err := floor.Run(ctx, floor.Options{CPUs: cpus, Count: 2000, StreamBytes: 128 << 20, Pair: demo.PathOf(p.A.Host, p.B.Host)})
	if err != nil {
		return err
	}
	r := f.Report()
	t.Link.LocalFaultUS, t.Link.RTTUS, t.Link.BytesPerSec = r.LocalFaultUS, r.RTTUS, r.StreamBytesPerSec
	return nil
}

// onDemand moves a guest without precache and makes the trace of its faults.
func onDemand(ctx context.Context, o Options, t *trace.Trace, dir string) error {
	e, err := engine.New(engine.OnDemand, o.Env)
	if err != nil {
		return err
	}
	eo := o.Engine
	// Read-ahead would hide touches from the log.
	eo.Engines, eo.Repeat, eo.Tools.FaultLog, eo.Precache, eo.Span = []engine.Engine{e}, 1, dir, recordPolicies, recordSpan
	var resumed time.Time
	eo.Inspect = func(_ context.Context, j *engine.Job, m engine.Moved) error {
		resumed = m.Resumed
		t.Seconds = recordSpan.Seconds()
		zero, pages, err := zeroRuns(j.VM.MemPath)
		t.Regions = []trace.Region{{ID: 0, Name: "mem", Pages: pages, PageSize: pageSize, Zero: zero}}
		t.Link.DemandTotalUS = m.Fault.P50
		return err
	}
	res, err := engine.Run(ctx, eo)
	if err != nil {
		return err
	}
	if why := failure(res.Rows[0]); why != "" {
		return errors.New(why)
	}
	fs, err := readLog(dir)
	if err != nil {
		return err
	}
	end := resumed.Add(time.Duration(t.Seconds * 1e9)).UnixNano()
	fs = slices.DeleteFunc(fs, func(f relocate.FaultRecord) bool { return f.At > end })
	if t.Touches, err = touches(fs, resumed); err != nil {
		return err
	}
	t.Hot = hotList(fs)
	id := t.Touches[0].Region
	t.Regions[0].ID = id
	for _, x := range t.Touches {
		if x.Region != id {
			return fmt.Errorf("faults in the regions %d and %d: only machines with one are recorded", id, x.Region)
		}
	}
	return nil
}

// failure says why a relocation tells nothing, if it does not.
func failure(row engine.Row) string {
	switch {
	case row.Error != "":
		return row.Error
	case row.BadPages > 0:
		return fmt.Sprintf("the guest's memory was damaged: %d checks failed", row.BadPages)
	case row.Status == nil:
		return "the destination's daemon told nothing of it"
	}
	return ""
}

// relocations are those with precache.
type relocations struct {
	real     []trace.Real
	runs     []int     // the number of each, among all
	ratios   []float64 // of bytes on the wire to those of pages, of each that has one
	failures []string  // of the others
}

// relocationsOf sums up the rows of a comparison.
func relocationsOf(rows []engine.Row) (rs relocations) {
	for _, row := range rows {
		if why := failure(row); why != "" {
			rs.failures = append(rs.failures, fmt.Sprintf("run %d: %s", row.Run, why))
			continue
		}
		s := row.Status
		rs.runs = append(rs.runs, row.Run)
		rs.real = append(rs.real, trace.Real{
			DrainS: s.Drained.Sub(s.Resumed).Seconds(), PagesDemand: s.PagesDemand, Faults: uint64(s.FaultLatency.Count),
			FaultP50US: s.FaultLatency.P50, FaultP99US: s.FaultLatency.P99,
			StallS:    s.FaultLatency.Mean * float64(s.FaultLatency.Count) / 1e6,
			WireBytes: s.BytesWire, Precache: channels, RunPages: runPages, ReadAround: 1, PolicyNames: simulatedPolicies,
		})
		if s.PagesPrecache > 0 {
			rs.ratios = append(rs.ratios, (float64(s.BytesWire)-float64(s.PagesDemand)*pageSize)/(float64(s.PagesPrecache)*pageSize))
		}
	}
	return rs
}

// withPrecache moves guests with precache and notes their medians in the trace.
func withPrecache(ctx context.Context, o Options, t *trace.Trace) (rs relocations, err error) {
	e, err := engine.New(engine.Pagewarp, o.Env)
	if err != nil {
		return rs, err
	}
	eo := o.Engine
	eo.Engines, eo.Precache = []engine.Engine{e}, realPolicies
	res, err := engine.Run(ctx, eo)
	if err != nil {
		return rs, err
	}
	rs = relocationsOf(res.Rows)
	all := rs.real
	if len(all) == 0 {
		return rs, fmt.Errorf("not one relocation succeeded: %s", rs.failures[0])
	}
	median := func(f func(trace.Real) float64) float64 {
		vs := make([]float64, len(all))
		for i, x := range all {
			vs[i] = f(x)
		}
		return report.SpreadOf(vs).Median
	}
	m := all[0]
	m.DrainS = median(func(x trace.Real) float64 { return x.DrainS })
	m.PagesDemand = uint64(median(func(x trace.Real) float64 { return float64(x.PagesDemand) }))
	m.Faults = uint64(median(func(x trace.Real) float64 { return float64(x.Faults) }))
	m.FaultP50US = median(func(x trace.Real) float64 { return x.FaultP50US })
	m.FaultP99US = median(func(x trace.Real) float64 { return x.FaultP99US })
	m.StallS = median(func(x trace.Real) float64 { return x.StallS })
	t.Real = &m
	t.Link.WireRatio = max(0.001, report.SpreadOf(rs.ratios).Median)
	return rs, nil
}

// AsRecorded are the options that a trace's real relocations had, as far as
// floors tell them.
func AsRecorded(t *trace.Trace) trace.Options {
	us := func(v float64) time.Duration { return time.Duration(v * 1e3) }
	o := trace.Options{Policies: simulatedPolicies, RTT: us(t.Link.RTTUS), Bandwidth: t.Link.BytesPerSec * 8, LocalFault: us(t.Link.LocalFaultUS),
		Precache: channels, RunPages: runPages, ReadAround: 1}
	if l := t.Link.LinkBitsPerSec; l > 0 {
		o.Bandwidth = min(l, o.Bandwidth)
	} else {
		// What limits is the CPUs' time for each connection: no queue is shared.
		o.Fair = true
	}
	// The engine's own share of a fault, from the recorded run, on an idle link.
	o.ServeDemand = max(time.Microsecond, us(t.Link.DemandTotalUS)-o.RTT)
	return o
}
