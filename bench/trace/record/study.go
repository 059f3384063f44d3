package record

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/bench/trace"
)

// Workload is what the guest of one trace does.
type Workload struct {
	Name, Load string
	RAM        uint64 // bytes
	VCPUs      int
}

// Workloads are those of a study: every load of bench/workloads, a web server,
// and two processors.
func Workloads() []Workload {
	const half, whole = 512 << 20, 1 << 30
	return []Workload{
		{"random", "touch:ws=256", half, 1},
		{"sweep", "sweep:ws=256", half, 1},
		{"zipf", "zipf:ws=256", half, 1},
		{"churn", "churn:ws=256,rate=20000", half, 1},
		{"redis", "redis:ws=128", half, 1},
		{"specweb", "specweb-banking:sessions=20,scale=0.02", whole, 1},
		{"idle", "idle:ws=64", half, 1},
		{"random-smp", "touch:ws=256", half, 2},
	}
}

// StudyOptions are those of a study. Zero values of what is not said to be needed
// mean the defaults.
type StudyOptions struct {
	// Engine are those of the relocations; Load, RAM, VCPUs and Engines are
	// replaced. Env is as of [Options].
	Engine engine.Options
	Env    engine.Env
	// Dir gets the traces, NAME.json.gz. It must be given.
	Dir string
	// Only are the workloads, by their names; empty is all.
	Only []string
	// Reuse takes traces that are in Dir and records the others.
	Reuse bool
	// RTTs and Links, in bit/s, are what is simulated: 0.1 to 100 ms and 1 to 100
	// Gbit/s by default.
	RTTs  []time.Duration
	Links []float64
}

// Plain is the baseline of a study: a sweep alone. Default is what pagewarp does
// by default, Listed the same with the hot list, ReadAround the same with
// demand fetches of 4 pages.
const (
	Plain      = "sweep"
	Default    = "around+bubbles+follow"
	Listed     = "hot+around+bubbles+follow"
	ReadAround = Listed + ", read-around 4"
)

// plans are what is simulated under each condition.
var plans = []struct {
	name, short, policies string
	around                uint32 // pages of a demand fetch
}{{Plain, "sweep", Plain, 1}, {Default, "default", Default, 1}, {Listed, "hot list", Listed, 1}, {ReadAround, "list, read-around", Listed, 4}}

// Study is traces of several workloads, and simulations of each under several
// conditions.
type Study struct {
	Started  time.Time         `json:"started"`
	Traces   []StudyTrace      `json:"traces"`
	Failures map[string]string `json:"failures,omitempty"` // by workload
}

// StudyTrace is one workload of a study.
type StudyTrace struct {
	Name string `json:"name"`
	File string `json:"file"`
	*Recording
	Touches  int `json:"touches"`
	HotPages int `json:"hot_pages"`
	// Results are in the order of the links, the round trips and the plans; the
	// curves over time are left out.
	Results []*trace.Result `json:"results"`
}

func (o *StudyOptions) fill() error {
	if o.Dir == "" {
		return errors.New("study traces: a folder for them must be given")
	}
	if o.Engine.Step == nil {
		o.Engine.Step = func(string) {}
	}
	if len(o.RTTs) == 0 {
		o.RTTs = []time.Duration{100 * time.Microsecond, time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond}
	}
	if len(o.Links) == 0 {
		o.Links = []float64{1e9, 10e9, 100e9}
	}
	_, err := o.chosen()
	return err
}

func (o *StudyOptions) chosen() (ws []Workload, err error) {
	if len(o.Only) == 0 {
		return Workloads(), nil
	}
	names := WorkloadNames()
	for _, name := range o.Only {
		found := false
		for _, w := range Workloads() {
			if w.Name == name {
				ws, found = append(ws, w), true
			}
		}
		if !found {
			return nil, fmt.Errorf("workload %q: %schoose from %v", name, engine.Suggest(name, names), names)
		}
	}
	return ws, nil
}

// WorkloadNames lists the workloads of a study.
func WorkloadNames() (names []string) {
	for _, w := range Workloads() {
		names = append(names, w.Name)
	}
	return names
}

// RunStudy records a trace of each workload, checks the simulation on it, and
// simulates it under every condition. A workload that fails is told in Failures;
// an error is returned if ctx ends, together with what was finished.
func RunStudy(ctx context.Context, o StudyOptions) (*Study, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	ws, err := o.chosen()
	if err != nil {
		return nil, err
	}
	s := &Study{Started: time.Now().UTC(), Failures: map[string]string{}}
	for _, w := range ws {
		t, err := o.study(ctx, w)
		if ctx.Err() != nil {
			return s, context.Cause(ctx)
		}
		if err != nil {
			o.Engine.Step(fmt.Sprintf("%s FAILED: %v", w.Name, err))
			s.Failures[w.Name] = err.Error()
			continue
		}
		s.Traces = append(s.Traces, t)
	}
	if len(s.Traces) == 0 {
		return s, fmt.Errorf("not one workload could be studied: %s: %s", ws[0].Name, s.Failures[ws[0].Name])
	}
	return s, nil
}

// study makes one workload's part.
func (o *StudyOptions) study(ctx context.Context, w Workload) (StudyTrace, error) {
	st := StudyTrace{Name: w.Name, File: filepath.Join(o.Dir, w.Name+".json.gz")}
	r, err := o.trace(ctx, w, st.File)
	if err != nil {
		return st, err
	}
	t := r.Trace
	st.Recording, st.Touches = r, len(t.Touches)
	for _, h := range t.Hot {
		st.HotPages += int(h.Count)
	}
	o.Engine.Step(fmt.Sprintf("%s: simulate %d conditions", w.Name, len(o.Links)*len(o.RTTs)*len(plans)))
	for _, link := range o.Links {
		for _, rtt := range o.RTTs {
			for _, p := range plans {
				res, err := trace.Simulate(ctx, t, trace.Options{Policies: p.policies, ReadAround: p.around, RTT: rtt, Bandwidth: link, RunPages: runPages})
				if err != nil {
					return st, err
				}
				res.Policies, res.Speed, res.Resident = p.name, nil, nil
				st.Results = append(st.Results, res)
			}
		}
	}
	return st, nil
}

// trace reads the trace of a workload, or records it.
func (o *StudyOptions) trace(ctx context.Context, w Workload, file string) (*Recording, error) {
	if o.Reuse {
		t, err := trace.Read(file)
		switch {
		case err == nil:
			o.Engine.Step(fmt.Sprintf("%s: of %s", w.Name, file))
			return check(ctx, t)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	l, err := engine.ParseLoad(w.Load)
	if err != nil {
		return nil, err
	}
	eo := o.Engine
	eo.Load, eo.RAM, eo.VCPUs = l, w.RAM, w.VCPUs
	eo.LogDir = filepath.Join(o.Engine.LogDir, w.Name)
	eo.Step = func(s string) { o.Engine.Step(w.Name + ": " + s) }
	r, err := Run(ctx, Options{Engine: eo, Env: o.Env})
	if err != nil {
		return nil, err
	}
	return r, r.Trace.Write(file)
}
