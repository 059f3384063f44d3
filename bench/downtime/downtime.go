package downtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/bench/demo"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate"
)

// PromisedMS is the median downtime that pagewarp promises, in ms.
const PromisedMS = 15

// PromisedMiB is the memory that a daemon promises to stay below, in MiB.
const PromisedMiB = 64

// Options of a measurement. Zero values mean the defaults.
type Options struct {
	Tools demo.Tools
	// LogDir gets the daemons' logs. It must be given.
	LogDir string
	// Sizes are those of the guest's memory in bytes. Default 1, 4, 16 GiB.
	Sizes []uint64
	// Repeat is how many relocations of each size. Default 10.
	Repeat int
	// Accel is auto, kvm or tcg. Default auto. CacheDir keeps what auto found.
	Accel, CacheDir string
	// Step, if not nil, is told what goes on.
	Step func(string)
}

// Result is one size.
type Result struct {
	RAMBytes   uint64        `json:"ram_bytes"`
	Accel      string        `json:"accel"`
	DowntimeMS report.Spread `json:"downtime_ms"`
	TotalMS    report.Spread `json:"total_ms"`
	Each       []float64     `json:"each_ms"`
	// Parts says where the downtime went, see relocate.Status.
	Parts map[string]report.Spread `json:"parts_ms"`
	// DaemonMiB is the largest anonymous memory of a daemon seen in each
	// relocation.
	DaemonMiB report.Spread `json:"daemon_mib"`
}

// Run measures all sizes. It needs root, QEMU and the guest's image.
func Run(ctx context.Context, o Options) (_ []Result, err error) {
	if len(o.Sizes) == 0 {
		o.Sizes = []uint64{1 << 30, 4 << 30, 16 << 30}
	}
	if o.Repeat == 0 {
		o.Repeat = 10
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	pair, err := demo.NewPair(ctx, o.Tools, o.LogDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pair.Close()) }()
	// One after the other: a rig's host has one tap for a guest's network.
	var rs []Result
	for i, size := range o.Sizes {
		m, err := boot(ctx, pair, o, fmt.Sprintf("size%d", i), size)
		if err != nil {
			return rs, err
		}
		for i := range o.Repeat {
			if err := m.move(ctx, pair); err != nil {
				return rs, err
			}
			o.Step(fmt.Sprintf("%d GiB, relocation %d of %d: down for %.1f ms", size>>30, i+1, o.Repeat, m.r.Each[i]))
		}
		rs = append(rs, m.result())
		if err := m.from.Discard(ctx, m.name); err != nil {
			return rs, err
		}
	}
	return rs, nil
}

// machine is a guest of one size that goes to and fro, and what was seen of it.
type machine struct {
	name          string
	from, to      *demo.Side
	r             Result
	totals, memMB []float64
	parts         map[string][]float64
}

// boot starts a guest of one size. Its working set is small and idle: downtime
// is about the switch-over, not about load.
func boot(ctx context.Context, pair *demo.Pair, o Options, name string, size uint64) (*machine, error) {
	g := demo.GuestConfig()
	g.WorkingSetMiB, g.ChurnRate = 32, -1
	o.Step(fmt.Sprintf("boot a guest of %d GiB", size>>30))
	vm, err := pair.Boot(ctx, pair.A, rig.VMConfig{Name: name, RAM: size, Accel: o.Accel, CacheDir: o.CacheDir, VGA: true}, g)
	if err != nil {
		return nil, err
	}
	if _, err := pair.A.Daemon.Add(ctx, name, vm.QMPPath); err != nil {
		return nil, err
	}
	return &machine{name: name, from: pair.A, to: pair.B, parts: map[string][]float64{},
		r: Result{RAMBytes: size, Accel: vm.Accel, Parts: map[string]report.Spread{}}}, nil
}

// move relocates the machine once.
func (m *machine) move(ctx context.Context, pair *demo.Pair) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	most := uint64(0)
	leg, err := pair.Relocate(ctx, m.name, m.from, m.to, relocate.Options{}, func(relocate.Status) {
		for _, s := range []*demo.Side{m.from, m.to} {
			if n, err := s.DaemonBytes(); err == nil {
				most = max(most, n)
			}
		}
	})
	if err != nil {
		return err
	}
	m.r.Each, m.totals = append(m.r.Each, leg.DowntimeMS), append(m.totals, leg.TotalMS)
	m.memMB = append(m.memMB, float64(most)/(1<<20))
	for name, v := range leg.DowntimeParts {
		m.parts[name] = append(m.parts[name], v)
	}
	m.from, m.to = m.to, m.from
	return nil
}

func (m *machine) result() Result {
	m.r.DaemonMiB = report.SpreadOf(m.memMB)
	m.r.DowntimeMS, m.r.TotalMS = report.SpreadOf(m.r.Each), report.SpreadOf(m.totals)
	for name, vs := range m.parts {
		m.r.Parts[name] = report.SpreadOf(vs)
	}
	return m.r
}

// partOrder is the order in which the downtime passes its parts.
var partOrder = []string{"freeze", "save", "load", "commit", "resume"}

// Verdicts compares the results with what is promised: a median, and that the
// size of memory does not matter.
func Verdicts(rs []Result) []report.Verdict {
	var vs []report.Verdict
	var medians []float64
	for _, r := range rs {
		vs = append(vs, report.Verdict{
			Name: fmt.Sprintf("downtime, %d GiB", r.RAMBytes>>30), Value: r.DowntimeMS, Promised: PromisedMS, Unit: "ms",
		})
		for _, name := range partOrder {
			if p, ok := r.Parts[name]; ok {
				vs = append(vs, report.Verdict{Name: "  " + name, Value: p, Unit: "ms", Info: true})
			}
		}
		vs = append(vs, report.Verdict{
			Name: fmt.Sprintf("daemon's memory, %d GiB", r.RAMBytes>>30), Value: r.DaemonMiB, Promised: PromisedMiB, Unit: "MiB",
		})
		medians = append(medians, r.DowntimeMS.Median)
	}
	if s := report.SpreadOf(medians); s.N > 1 && s.Min > 0 {
		vs = append(vs, report.Verdict{
			Name: "largest median : smallest median", Unit: "x", Info: true,
			Value: report.Spread{Median: s.Max / s.Min, Min: s.Max / s.Min, Max: s.Max / s.Min, N: 1},
		})
	}
	return vs
}
