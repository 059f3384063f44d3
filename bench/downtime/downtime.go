package downtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/bench/demo"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate"
)

// PromisedMS is the median downtime that pagewarp promises, in ms.
const PromisedMS = 15

// answerLimit bounds the questions to a guest that has moved, which takes milliseconds
// to answer.
const answerLimit = 30 * time.Second

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
	// PreTransfer makes as many more of each size, with a pre-transfer, in
	// alternation.
	PreTransfer bool
	// Accel is auto, kvm or tcg. Default auto. CacheDir keeps what auto found.
	Accel, CacheDir string
	// Step, if not nil, is told what goes on.
	Step func(string)
}

// Result is one size, with a pre-transfer or without.
type Result struct {
	RAMBytes    uint64        `json:"ram_bytes"`
	Accel       string        `json:"accel"`
	PreTransfer bool          `json:"pre_transfer,omitempty"`
	DowntimeMS  report.Spread `json:"downtime_ms"`
	TotalMS     report.Spread `json:"total_ms"`
	Each        []float64     `json:"each_ms"`
	// Parts says where the downtime went, see relocate.Status.
	Parts map[string]report.Spread `json:"parts_ms"`
	// DaemonMiB is the largest anonymous memory of a daemon seen in each
	// relocation.
	DaemonMiB report.Spread `json:"daemon_mib"`
}

// Run measures all sizes. It needs root, QEMU and the guest's image. After each
// relocation the guest must answer, and after the last one of its size verify its
// memory: how long a guest stood still that did not survive tells nothing. With an
// error it returns what was measured, the last size perhaps with fewer
// relocations, or not at all if its memory was damaged.
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
			for _, s := range m.samples {
				if err := m.move(ctx, pair, s); err != nil {
					return append(rs, m.results()...), err
				}
				o.Step(fmt.Sprintf("%s, relocation %d of %d: down for %.1f ms", s.r.name(), i+1, o.Repeat, s.r.Each[i]))
			}
		}
		if err := m.verify(ctx, pair); err != nil {
			return rs, err
		}
		rs = append(rs, m.results()...)
		if err := m.from.Discard(ctx, m.name); err != nil {
			return rs, err
		}
	}
	return rs, nil
}

// machine is a guest of one size that goes to and fro.
type machine struct {
	name     string
	guest    guestapi.Config
	answer   time.Duration // it must answer within
	from, to *demo.Side
	samples  []*sample // taken in turn
}

// results are those of the kinds of which a relocation was made.
func (m *machine) results() (rs []Result) {
	for _, s := range m.samples {
		if len(s.r.Each) > 0 {
			rs = append(rs, s.result())
		}
	}
	return rs
}

// sample is what was seen of relocations of one kind.
type sample struct {
	r             Result
	totals, memMB []float64
	parts         map[string][]float64
}

// name says what was measured.
func (r *Result) name() string {
	name := fmt.Sprintf("%d GiB", r.RAMBytes>>30)
	if r.PreTransfer {
		name += " with a pre-transfer"
	}
	return name
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
	m := &machine{name: name, guest: g, answer: answerLimit, from: pair.A, to: pair.B}
	for _, pre := range []bool{false, true} {
		if o.PreTransfer || !pre {
			m.samples = append(m.samples, &sample{parts: map[string][]float64{},
				r: Result{RAMBytes: size, Accel: vm.Accel, PreTransfer: pre, Parts: map[string]report.Spread{}}})
		}
	}
	return m, nil
}

// move relocates the machine once, for a sample.
func (m *machine) move(ctx context.Context, pair *demo.Pair, s *sample) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	most := uint64(0)
	leg, err := pair.Relocate(ctx, m.name, m.from, m.to, relocate.Options{PreTransfer: s.r.PreTransfer}, func(relocate.Status) {
		for _, side := range []*demo.Side{m.from, m.to} {
			if n, err := side.DaemonBytes(); err == nil {
				most = max(most, n)
			}
		}
	})
	if err != nil {
		return err
	}
	if err := m.lives(ctx, pair); err != nil {
		return err
	}
	s.r.Each, s.totals = append(s.r.Each, leg.DowntimeMS), append(s.totals, leg.TotalMS)
	s.memMB = append(s.memMB, float64(most)/(1<<20))
	for name, v := range leg.DowntimeParts {
		s.parts[name] = append(s.parts[name], v)
	}
	m.from, m.to = m.to, m.from
	return nil
}

// lives asks the guest that has moved for anything at all.
func (m *machine) lives(ctx context.Context, pair *demo.Pair) error {
	ctx, cancel := context.WithTimeout(ctx, m.answer)
	defer cancel()
	var s guestapi.Stats
	if err := demo.GetJSON(ctx, pair.Client, demo.URL(m.guest)+"/stats", &s); err != nil {
		return fmt.Errorf("%s did not answer within %v after it had moved to host %s, and its downtime does not count: %w", m.name, m.answer, m.to.Name, err)
	}
	return nil
}

// verify has the guest check its memory.
func (m *machine) verify(ctx context.Context, pair *demo.Pair) error {
	v, s, err := demo.CheckGuest(ctx, pair.Client, m.guest)
	if err != nil {
		return fmt.Errorf("have %s verify its memory after its relocations: %w", m.name, err)
	}
	if bad := demo.BadPages(v, s); bad > 0 {
		return fmt.Errorf("%s was damaged by its relocations, and its downtimes do not count: %d checks of its pages failed: %s", m.name, bad, s.FirstBad)
	}
	return nil
}

func (s *sample) result() Result {
	s.r.DaemonMiB = report.SpreadOf(s.memMB)
	s.r.DowntimeMS, s.r.TotalMS = report.SpreadOf(s.r.Each), report.SpreadOf(s.totals)
	for name, vs := range s.parts {
		s.r.Parts[name] = report.SpreadOf(vs)
	}
	return s.r
}

// partOrder is the order in which the downtime passes its parts.
var partOrder = []string{"freeze", "save", "load", "commit", "resume"}

// Verdicts compares the results with what is promised: a median, and that the
// size of memory does not matter.
func Verdicts(rs []Result) []report.Verdict {
	var vs []report.Verdict
	medians := map[bool][]float64{} // with a pre-transfer, and without
	for _, r := range rs {
		vs = append(vs, report.Verdict{
			Name: "downtime, " + r.name(), Value: r.DowntimeMS, Promised: PromisedMS, Unit: "ms",
		})
		for _, name := range partOrder {
			if p, ok := r.Parts[name]; ok {
				vs = append(vs, report.Verdict{Name: "  " + name, Value: p, Unit: "ms", Info: true})
			}
		}
		vs = append(vs, report.Verdict{
			Name: "daemon's memory, " + r.name(), Value: r.DaemonMiB, Promised: PromisedMiB, Unit: "MiB",
		})
		medians[r.PreTransfer] = append(medians[r.PreTransfer], r.DowntimeMS.Median)
	}
	for _, pre := range []bool{false, true} {
		name := "largest median : smallest median"
		if pre {
			name += ", with a pre-transfer"
		}
		if s := report.SpreadOf(medians[pre]); s.N > 1 && s.Min > 0 {
			vs = append(vs, report.Verdict{
				Name: name, Unit: "x", Info: true,
				Value: report.Spread{Median: s.Max / s.Min, Min: s.Max / s.Min, Max: s.Max / s.Min, N: 1},
			})
		}
	}
	return vs
}
