package paper

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pagewarp/pagewarp/bench/demo"
	"github.com/pagewarp/pagewarp/bench/downtime"
	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// The experiments, in their order. Web and Precache are told from one
// comparison.
const (
	Web      = "web"
	Precache = "precache"
	Memory   = "memory"
	Downtime = "downtime"
)

// Names lists the experiments.
func Names() []string { return []string{Web, Precache, Memory, Downtime} }

// Known reports whether there is an experiment of that name.
func Known(name string) bool { return slices.Contains(Names(), name) }

// gigabit is the link of the comparisons, in bytes/s.
const gigabit = 125_000_000

// answerLimit is for a guest that has moved: verifying its memory takes some
// seconds.
const answerLimit = 30 * time.Second

// Options of the report.
type Options struct {
	Tools demo.Tools
	// LogDir gets the daemons' logs, Out the report. Both must be given.
	LogDir, Out string
	// Quick takes fewer repeats, smaller guests and shorter limits.
	Quick bool
	// Repeat is how many relocations of each kind; 0 is 1 in a quick run, else 3.
	Repeat int
	// Only are the experiments to make; empty is all.
	Only []string
	// Keep keeps the other experiments of the report that is in Out.
	Keep bool
	// Within is how long the run may take; an experiment whose share of it is
	// over keeps the relocations that were made. Default the constant Within, or
	// WithinQuick.
	Within time.Duration
	// Accel is auto, kvm or tcg. Default auto. CacheDir keeps what auto found.
	Accel, CacheDir string
	// Command is what the report says that it was made by.
	Command string
	// Version is pagewarp's; empty for what the build says.
	Version string
	// Step, if not nil, is told what goes on.
	Step func(string)
}

func (o *Options) fill() error {
	if o.LogDir == "" || o.Out == "" {
		return errors.New("the paper's experiments: a folder for logs and one for the report must be given")
	}
	for _, n := range o.Only {
		if !Known(n) {
			return fmt.Errorf("experiment %q: %schoose from %s", n, engine.Suggest(n, Names()), strings.Join(Names(), ", "))
		}
	}
	if len(o.Only) == 0 {
		o.Only = Names()
	}
	if o.Repeat == 0 {
		o.Repeat = 3
		if o.Quick {
			o.Repeat = 1
		}
	}
	if o.Within == 0 {
		o.Within = Within
		if o.Quick {
			o.Within = WithinQuick
		}
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	return nil
}

// lab is what measures; tests put something else in its place.
type lab struct {
	compare  func(context.Context, engine.Options) (*engine.Result, error)
	downtime func(context.Context, downtime.Options) ([]downtime.Result, error)
}

// Run makes the experiments, and writes the report anew after each relocation of
// a comparison and after each size of memory. One that fails is a part of the
// report that says so. If ctx ends, Run returns its cause together with the
// report of what was finished.
func Run(ctx context.Context, o Options) (*Report, error) {
	return run(ctx, o, lab{engine.Run, downtime.Run})
}

func run(ctx context.Context, o Options, l lab) (*Report, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	v := report.BuildVersions()
	if o.Version != "" {
		v.Pagewarp = o.Version
	}
	r := &Report{Started: time.Now().UTC(), Quick: o.Quick, Command: o.Command, Machine: report.ThisMachine(), Versions: v, Commit: v.Commit}
	if o.Keep {
		if err := r.keep(o.Out); err != nil {
			return nil, err
		}
	}
	wants := func(name string) bool { return slices.Contains(o.Only, name) }
	steps := slices.DeleteFunc([]step{
		{[]string{Web, Precache}, 30, func(ctx context.Context, soFar func([]Part)) ([]Part, error) { return o.web(ctx, l, soFar) }},
		{[]string{Memory}, 45, func(ctx context.Context, soFar func([]Part)) ([]Part, error) { return o.memory(ctx, l, soFar) }},
		{[]string{Downtime}, 25, func(ctx context.Context, soFar func([]Part)) ([]Part, error) { return o.sizes(ctx, l, soFar) }},
	}, func(s step) bool { return !slices.ContainsFunc(s.names, wants) })
	ends := shares(steps, time.Now(), o.Within)
	write := func(parts []Part) error {
		for _, p := range parts {
			if wants(p.Name) {
				p.Made, p.Command = r.Started, o.Command
				r.put(p)
			}
		}
		return r.Write(o.Out)
	}
	for i, s := range steps {
		o.Step("experiment: " + strings.Join(s.names, " and "))
		sctx, cancel := limited(ctx, ends[i])
		parts, err := s.make(sctx, func(parts []Part) {
			if err := write(parts); err != nil {
				o.Step(fmt.Sprintf("write the report so far: %v", err))
			}
		})
		cancel()
		if r.Interrupted = ctx.Err() != nil; r.Interrupted && len(parts) == 0 && !r.began() {
			return r, context.Cause(ctx)
		}
		if err != nil && !r.Interrupted {
			o.Step(fmt.Sprintf("%s FAILED: %v", s.names[0], err))
			parts = nil
			for _, name := range s.names {
				parts = append(parts, failed(name, err))
			}
		}
		if err := write(parts); err != nil {
			return r, err
		}
		if r.Interrupted {
			return r, context.Cause(ctx)
		}
	}
	return r, nil
}

// compare has the engines named relocate a guest under a load.
func (o *Options) compare(ctx context.Context, l lab, name, load string, ram uint64, limit, after time.Duration, soFar func(*engine.Result), engines ...string) (*engine.Result, error) {
	parsed, err := engine.ParseLoad(load)
	if err != nil {
		return nil, err
	}
	es, err := engine.ParseEngines(engines, engine.Env{})
	if err != nil {
		return nil, err
	}
	tools := o.Tools
	tools.Insecure = true // QEMU's own ways run without TLS as well
	c, err := l.compare(ctx, engine.Options{
		Tools: tools, Engines: es, Load: parsed, LogDir: filepath.Join(o.LogDir, "paper-"+name), RAM: ram, Repeat: o.Repeat, Link: gigabit,
		MoveLimit: limit, After: after, Accel: o.Accel, CacheDir: o.CacheDir, Step: func(s string) { o.Step(name + ": " + s) },
		Progress: soFar, AnswerLimit: answerLimit,
	})
	if err != nil && ctx.Err() != nil && c != nil && len(c.Rows) > 0 {
		if errors.Is(err, rig.ErrLeftBehind) {
			o.Step(err.Error())
		}
		return c, nil // what was finished before the interruption counts
	}
	return c, err
}

func (o *Options) web(ctx context.Context, l lab, soFar func([]Part)) ([]Part, error) {
	load, ram, after := "specweb-banking:sessions=40,scale=0.02", uint64(2<<30), 10*time.Second
	if o.Quick {
		load, ram, after = "specweb-banking:sessions=20,scale=0.02", 1<<30, 5*time.Second
	}
	tell := func(c *engine.Result) []Part { return []Part{webPart(c), precachePart(c)} }
	c, err := o.compare(ctx, l, Web, load, ram, time.Minute, after, func(c *engine.Result) { soFar(tell(c)) }, engine.Pagewarp, engine.OnDemand)
	if err != nil {
		return nil, err
	}
	return tell(c), nil
}

func (o *Options) memory(ctx context.Context, l lab, soFar func([]Part)) ([]Part, error) {
	load, ram, limit, after := "churn:ws=512,rate=40000,half=0.5", uint64(2<<30), time.Minute, 5*time.Second
	if o.Quick {
		load, ram, limit, after = "churn:ws=256,rate=40000,half=0.5", 512<<20, 25*time.Second, 2*time.Second
	}
	c, err := o.compare(ctx, l, Memory, load, ram, limit, after, func(c *engine.Result) { soFar([]Part{memoryPart(c, limit)}) }, engine.Pagewarp, "qemu-precopy", "qemu-postcopy", "qemu-postcopy-preempt", "qemu-precopy-plain", "qemu-multifd")
	if err != nil {
		return nil, err
	}
	return []Part{memoryPart(c, limit)}, nil
}

// sizes measures each size by itself, so that one that fails spoils no other.
func (o *Options) sizes(ctx context.Context, l lab, soFar func([]Part)) ([]Part, error) {
	all, repeat := []uint64{1 << 30, 4 << 30, 16 << 30, 64 << 30}, 3*o.Repeat
	var measured []Size
	for _, ram := range all {
		rs, err := l.downtime(ctx, downtime.Options{
			Tools: o.Tools, LogDir: filepath.Join(o.LogDir, fmt.Sprintf("paper-downtime-%d", ram>>30)), Sizes: []uint64{ram}, Repeat: repeat,
			Accel: o.Accel, CacheDir: o.CacheDir, Step: func(s string) { o.Step(Downtime + ": " + s) },
		})
		s := Size{RAMBytes: ram}
		over := errors.Is(context.Cause(ctx), errTimeOver)
		if ctx.Err() != nil && !over && len(rs) == 0 {
			break // what was interrupted says nothing
		}
		switch {
		case over && len(rs) == 0:
			s.Error = "not measured: " + errTimeOver.Error()
		case len(rs) == 1 && err != nil && ctx.Err() != nil:
			s.Result, s.Error = &rs[0], "cut short"
		case err != nil:
			s.Error = err.Error()
			o.Step(fmt.Sprintf("%s of %d GiB FAILED: %v", Downtime, ram>>30, err))
		case len(rs) == 1:
			s.Result = &rs[0]
		default:
			s.Error = fmt.Sprintf("%d results for one size", len(rs))
		}
		measured = append(measured, s)
		soFar([]Part{downtimePart(measured)})
	}
	if len(measured) == 0 {
		return nil, context.Cause(ctx)
	}
	return []Part{downtimePart(measured)}, nil
}
