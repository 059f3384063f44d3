package qemupeer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/bench/demo"
	"github.com/pagewarp/pagewarp/bench/engine"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/bench/workloads"
	"github.com/pagewarp/pagewarp/internal/guestapi"
)

// Names of the systems in the report.
const (
	Pagewarp = "pagewarp"
	QEMU     = "QEMU postcopy"
)

// Options of a comparison. Zero values mean the defaults.
type Options struct {
	Tools demo.Tools
	// LogDir gets the daemons' logs. It must be given.
	LogDir string
	// RAM is the guest's memory in bytes. Default 1 GiB. TouchMiB of it are
	// touched. Default 512.
	RAM      uint64
	TouchMiB int
	// Repeat is how many relocations by each system. Default 3.
	Repeat int
	// LinkBytesPerSec limits the link between the hosts; 0 is no limit.
	LinkBytesPerSec uint64
	// After is how long the guest is watched after the drain. Default 5 s.
	After time.Duration
	// Codec is pagewarp's for precache: auto, none, s2, zstd. Default auto.
	Codec string
	// Accel is auto, kvm or tcg. Default auto. CacheDir keeps what auto found.
	Accel, CacheDir string
	// Step, if not nil, is told what goes on.
	Step func(string)
}

func (o *Options) fill() {
	if o.RAM == 0 {
		o.RAM = 1 << 30
	}
	if o.TouchMiB == 0 {
		o.TouchMiB = 512
	}
	if o.Repeat == 0 {
		o.Repeat = 3
	}
	if o.After == 0 {
		o.After = 5 * time.Second
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
}

// nativeEngines are QEMU's own postcopy, the best first.
var nativeEngines = []string{"qemu-postcopy-preempt", "qemu-postcopy"}

// engines returns pagewarp and the best postcopy that this machine's QEMU has.
func engines(ctx context.Context) ([]engine.Engine, error) {
	ours, err := engine.New(engine.Pagewarp, engine.Env{})
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, name := range nativeEngines {
		e, err := engine.New(name, engine.Env{})
		if err != nil {
			return nil, err
		}
		_, err = e.Available(ctx)
		if err == nil {
			return []engine.Engine{ours, e}, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// Run alternates relocations by pagewarp and by QEMU's own postcopy and returns
// one Peer for each, in their order. It needs root, QEMU and the guest's image. A
// relocation that fails is an error, beside the others' results; so is the end of
// ctx.
func Run(ctx context.Context, o Options) ([]report.Peer, error) {
	o.fill()
	es, err := engines(ctx)
	if err != nil {
		return nil, err
	}
	load, err := workloads.Default(guestapi.LoadRandom)
	if err != nil {
		return nil, err
	}
	load.WorkingSetMiB = o.TouchMiB
	r, err := engine.Run(ctx, engine.Options{
		Tools: o.Tools, Engines: es, Load: load, LogDir: o.LogDir, RAM: o.RAM, Repeat: o.Repeat, Link: o.LinkBytesPerSec,
		Codec: o.Codec, After: o.After, Accel: o.Accel, CacheDir: o.CacheDir, Step: o.Step,
	})
	if r == nil {
		return nil, err
	}
	ps, failed := peers(r)
	return ps, errors.Join(err, failed)
}

// peers turns the rows of a comparison into ours.
func peers(r *engine.Result) (ps []report.Peer, err error) {
	for _, u := range r.Unavailable {
		err = errors.Join(err, fmt.Errorf("%s cannot run here: %s", u.Engine, u.Reason))
	}
	for _, row := range r.Rows {
		system := QEMU
		if row.Engine == engine.Pagewarp {
			system = Pagewarp
		}
		if row.Error != "" {
			err = errors.Join(err, fmt.Errorf("%s, run %d: %s", system, row.Run, row.Error))
			continue
		}
		slow := 1e3 * row.ObservedAfterS
		if row.Warmup90MS != nil {
			slow = *row.Warmup90MS
		}
		ps = append(ps, report.Peer{
			System: system, Run: row.Run, TotalMS: row.TotalMS, DowntimeMS: row.DowntimeMS, SlowMS: slow, StillSlow: row.Warmup90MS == nil, WorstGapMS: row.WorstGapMS,
			BytesWire: row.Source.SentBytes, GuestErrors: row.BadPages, SettingsNote: row.Settings,
		})
	}
	return ps, errors.Join(err, r.Damaged())
}

// Compare sums the runs of each system up: how many times faster pagewarp was. Of the
// time in which the guest was slow there is no ratio if it was so to the end of what
// was watched: how much longer it was nobody knows.
func Compare(peers []report.Peer) []report.Verdict {
	pick := func(system string, f func(report.Peer) float64) report.Spread {
		var vs []float64
		for _, p := range peers {
			if p.System == system {
				vs = append(vs, f(p))
			}
		}
		return report.SpreadOf(vs)
	}
	slow := func(p report.Peer) bool { return p.StillSlow }
	var vs []report.Verdict
	for _, m := range []struct {
		name string
		of   func(report.Peer) float64
		open func(report.Peer) bool // it is longer than that
	}{
		{"total time", func(p report.Peer) float64 { return p.TotalMS }, nil},
		{"downtime", func(p report.Peer) float64 { return p.DowntimeMS }, nil},
		{"time slow", func(p report.Peer) float64 { return p.SlowMS }, slow},
		{"worst gap", func(p report.Peer) float64 { return p.WorstGapMS }, nil},
	} {
		open := 0
		add := func(system string) report.Spread {
			name, n := m.name+", "+system, 0
			for _, p := range peers {
				if p.System == system && m.open != nil && m.open(p) {
					n++
				}
			}
			if open += n; n > 0 {
				name += fmt.Sprintf(", %d × to the end of what was watched", n)
			}
			s := pick(system, m.of)
			vs = append(vs, report.Verdict{Name: name, Value: s, Unit: "ms", Info: true})
			return s
		}
		ours, theirs := add(Pagewarp), add(QEMU)
		if open == 0 && ours.N > 0 && theirs.N > 0 && ours.Median > 0 {
			r := theirs.Median / ours.Median
			vs = append(vs, report.Verdict{Name: m.name + ", ratio of medians", Unit: "x", Info: true,
				Value: report.Spread{Median: r, Min: r, Max: r, N: 1}})
		}
	}
	return vs
}
