package qemupeer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/pagewarp/pagewarp/bench/demo"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate"
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

const (
	migratePort = 7999
	settle      = 4 * time.Second // of throughput before the switch-over
	moveLimit   = 3 * time.Minute
)

// bench is a comparison under way.
type bench struct {
	Options
	pair  *demo.Pair
	guest guestapi.Config
}

// Run alternates relocations by pagewarp and by QEMU's own postcopy and returns
// one Peer for each, in their order. It needs root, QEMU and the guest's image.
func Run(ctx context.Context, o Options) (peers []report.Peer, err error) {
	o.fill()
	pair, err := demo.NewPair(ctx, o.Tools, o.LogDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pair.Close()) }()
	if o.LinkBytesPerSec > 0 {
		for _, s := range []*demo.Side{pair.A, pair.B} {
			if err := s.Shape(rig.Shape{BytesPerSecond: o.LinkBytesPerSec}); err != nil {
				return nil, err
			}
		}
	}
	b := &bench{Options: o, pair: pair, guest: demo.GuestConfig()}
	b.guest.WorkingSetMiB, b.guest.ChurnRate, b.guest.Touch = o.TouchMiB, -1, true
	for i := range o.Repeat {
		for _, system := range []string{Pagewarp, QEMU} {
			peer, err := b.one(ctx, system, i+1)
			if err != nil {
				return peers, fmt.Errorf("%s, run %d: %w", system, i+1, err)
			}
			peers = append(peers, peer)
		}
	}
	return peers, nil
}

// one boots a guest, moves it, watches it, and ends it.
func (b *bench) one(ctx context.Context, system string, n int) (report.Peer, error) {
	b.Step(fmt.Sprintf("run %d of %d: boot the guest for %s", n, b.Repeat, system))
	name := fmt.Sprintf("peer%d", n)
	c := rig.VMConfig{Name: name, RAM: b.RAM, Accel: b.Accel, CacheDir: b.CacheDir, VGA: true}
	// QEMU's postcopy is at its best on private memory, pagewarp needs a file.
	c.PrivateMemory = system == QEMU
	vm, err := b.pair.Boot(ctx, b.pair.A, c, b.guest)
	if err != nil {
		return report.Peer{}, err
	}
	defer vm.Kill()
	if err := sleep(ctx, settle); err != nil {
		return report.Peer{}, err
	}
	clock, err := b.clock(ctx)
	if err != nil {
		return report.Peer{}, err
	}
	move := b.byPagewarp
	if system == QEMU {
		move = b.byQEMU
	}
	b.Step(fmt.Sprintf("run %d of %d: %s", n, b.Repeat, system))
	mctx, cancel := context.WithTimeoutCause(ctx, moveLimit, fmt.Errorf("the relocation took more than %v", moveLimit))
	defer cancel()
	m, settings, end, err := move(mctx, vm, c)
	if err != nil {
		return report.Peer{}, err
	}
	defer end()
	if err := sleep(ctx, b.After); err != nil {
		return report.Peer{}, err
	}
	return b.evaluate(ctx, report.Peer{System: system, Run: n, SettingsNote: settings, BytesWire: m.bytesWire}, m, clock)
}

// clock returns when, by the host's clock, the guest's read zero.
func (b *bench) clock(ctx context.Context) (time.Time, error) {
	var s guestapi.Stats
	if err := demo.GetJSON(ctx, b.pair.Client, demo.URL(b.guest)+"/stats", &s); err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(-time.Duration(s.UptimeNS)), nil
}

func (b *bench) byPagewarp(ctx context.Context, vm *rig.VM, _ rig.VMConfig) (m moved, settings string, end func(), err error) {
	a, dst := b.pair.A, b.pair.B
	if _, err := a.Daemon.Add(ctx, vm.Name, vm.QMPPath); err != nil {
		return m, "", nil, err
	}
	m.started = time.Now()
	leg, err := b.pair.Relocate(ctx, vm.Name, a, dst, relocate.Options{Codec: b.Codec}, nil)
	if err != nil {
		return m, "", nil, err
	}
	s := leg.Status
	m.stopped, m.resumed, m.bytesWire = s.Stopped, s.Resumed, s.BytesWire
	m.completed = m.started.Add(time.Duration(leg.TotalMS * float64(time.Millisecond)))
	settings = "mutual TLS"
	if b.Tools.Insecure {
		settings = "no TLS"
	}
	if b.Codec != "" {
		settings += ", codec " + b.Codec
	}
	return m, settings, func() {
		if err := dst.Discard(context.WithoutCancel(ctx), vm.Name); err != nil {
			b.Step(fmt.Sprintf("the relocated guest was not ended: %v", err))
		}
	}, nil
}

func (b *bench) byQEMU(ctx context.Context, vm *rig.VM, c rig.VMConfig) (m moved, settings string, end func(), err error) {
	c.Incoming, c.Accel = "defer", vm.Accel
	dst, err := demo.StartGuest(ctx, b.pair.B.Host, c, b.guest)
	if err != nil {
		return m, "", nil, err
	}
	end = func() {
		if err := dst.Kill(); err != nil {
			b.Step(fmt.Sprintf("the migrated guest was not ended: %v", err))
		}
	}
	p, err := open(ctx, vm, dst, netip.AddrPortFrom(b.pair.B.Host.Addr, migratePort))
	if err == nil {
		defer p.close()
		settings = p.settings
		if err = p.prepare(ctx); err == nil {
			settings = p.settings
			m, err = p.migrate(ctx)
		}
	}
	if err != nil {
		end()
		return m, "", nil, err
	}
	return m, settings, end, nil
}

// evaluate asks the guest what it has noticed, and for bad pages.
func (b *bench) evaluate(ctx context.Context, p report.Peer, m moved, clock time.Time) (report.Peer, error) {
	var bins []guestapi.TouchBin
	if err := demo.GetJSON(ctx, b.pair.Client, demo.URL(b.guest)+"/touches", &bins); err != nil {
		return p, err
	}
	downtime := m.resumed.Sub(m.stopped)
	im, err := measure(bins, m.stopped.Sub(clock), downtime)
	if err != nil {
		return p, err
	}
	v, s, err := demo.CheckGuest(ctx, b.pair.Client, b.guest)
	if err != nil {
		return p, err
	}
	p.GuestErrors = v.Bad + s.BadPages
	if v.TouchesMissing != 0 {
		p.GuestErrors++
	}
	p.TotalMS, p.DowntimeMS = ms(m.completed.Sub(m.started)), ms(downtime)
	p.SlowMS, p.WorstGapMS = ms(im.slow), ms(im.worst)
	return p, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Compare sums the runs of each system up: how many times faster pagewarp was.
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
	var vs []report.Verdict
	for _, m := range []struct {
		name string
		of   func(report.Peer) float64
	}{
		{"total time", func(p report.Peer) float64 { return p.TotalMS }},
		{"downtime", func(p report.Peer) float64 { return p.DowntimeMS }},
		{"time slow", func(p report.Peer) float64 { return p.SlowMS }},
		{"worst gap", func(p report.Peer) float64 { return p.WorstGapMS }},
	} {
		ours, theirs := pick(Pagewarp, m.of), pick(QEMU, m.of)
		vs = append(vs, report.Verdict{Name: m.name + ", " + Pagewarp, Value: ours, Unit: "ms", Info: true},
			report.Verdict{Name: m.name + ", " + QEMU, Value: theirs, Unit: "ms", Info: true})
		if ours.N > 0 && theirs.N > 0 && ours.Median > 0 {
			r := theirs.Median / ours.Median
			vs = append(vs, report.Verdict{Name: m.name + ", ratio of medians", Unit: "x", Info: true,
				Value: report.Spread{Median: r, Min: r, Max: r, N: 1}})
		}
	}
	return vs
}
