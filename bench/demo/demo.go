package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate"
	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// ErrIntegrity: a page differed, or the guest or the client saw a bad one. The
// report and the logs in the output folder say which.
var ErrIntegrity = errors.New("memory was damaged by the relocation")

// Config of the demonstration. Zero values of what is not in Tools mean the
// defaults.
type Config struct {
	Tools
	// Out is the folder for report.json, timeline.svg, timeline.png and logs.
	// Default build/demo.
	Out string
	// RAM is the guest's memory in bytes. Default 1 GiB.
	RAM uint64
	// WorkingSetMiB is what the web server serves from. Default 384.
	WorkingSetMiB int
	// Accel is auto, kvm or tcg. Default auto.
	Accel string
	// CacheDir keeps what auto found out. Default none.
	CacheDir string
	// Workers are the client's connections. Default 4.
	Workers int
	// Before and After are how long throughput is watched before the
	// relocation and after its drain. Default 5 s and 8 s.
	Before, After time.Duration
	// Away, if not 0, has the daemons keep the memory of machines that leave, and
	// the guest return, with its load to the last, so long after the switch-over:
	// what it brings back are the pages that have changed.
	Away time.Duration
	// Print gets the progress, one line a step. Default: nothing.
	Print io.Writer
}

const vmName = "web1"

func (c *Config) complete() error {
	if c.Pagewarpd == "" || c.Dial == nil || c.Certificates == nil {
		return errors.New("demo: the tools are not set")
	}
	if c.Out == "" {
		c.Out = filepath.Join("build", "demo")
	}
	if c.RAM == 0 {
		c.RAM = 1 << 30
	}
	if c.WorkingSetMiB == 0 {
		c.WorkingSetMiB = 384
	}
	if c.Accel == "" {
		c.Accel = "auto"
	}
	if c.Workers == 0 {
		c.Workers = 4
	}
	if c.Before == 0 {
		c.Before = 5 * time.Second
	}
	if c.After == 0 {
		c.After = 8 * time.Second
	}
	if c.Print == nil {
		c.Print = io.Discard
	}
	if c.Away > 0 {
		c.Cache = 2 * c.RAM
	}
	return nil
}

// run is one demonstration under way.
type run struct {
	Config
	start time.Time
	pair  *Pair
	guest guestapi.Config
	rep   *report.Report
	legs  [2]*Leg
	web   *webLoad
}

// Run is the demonstration. It needs root, QEMU and the test guest's image. The
// report is complete, and its files are written, where it is not nil; the error is
// then nil, ErrIntegrity, rig.ErrLeftBehind, or both. Nothing stays behind unless the
// error is a rig.ErrLeftBehind, too.
func Run(ctx context.Context, c Config) (_ *report.Report, err error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	r := &run{Config: c, start: time.Now(), rep: report.New()}
	r.step("two hosts and a client in network namespaces, a pagewarpd on each host, mutual TLS")
	if r.pair, err = NewPair(ctx, c.Tools, filepath.Join(c.Out, "logs")); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.pair.Close()) }()
	for _, f := range []func(context.Context) error{r.floors, r.boot, r.live, r.paused, r.verdict} {
		if err := f(ctx); err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, err
		}
	}
	r.rep.TookSec = time.Since(r.start).Seconds()
	if err := r.write(); err != nil {
		return nil, err
	}
	if !r.rep.Integrity.OK() {
		return r.rep, ErrIntegrity
	}
	return r.rep, nil
}

func (r *run) step(format string, args ...any) {
	// Progress is a courtesy: a closed terminal is no reason to fail.
	_, _ = fmt.Fprintf(r.Print, "[%6.1f s] %s\n", time.Since(r.start).Seconds(), fmt.Sprintf(format, args...))
}

// PathOf is the network path between two hosts, for the floors.
func PathOf(from, to *rig.Host) floor.Pair {
	return floor.Between(to.Addr, to.Listen, from.Dial)
}

func (r *run) floors(ctx context.Context) error {
	r.step("floors: what this machine does without pagewarp, over the same links")
	cpus, err := floor.PickCPUs()
	if err != nil {
		return err
	}
	f, err := floor.Run(ctx, floor.Options{CPUs: cpus, Count: 2000, StreamBytes: 128 << 20, Pair: PathOf(r.pair.A.Host, r.pair.B.Host)})
	if err != nil {
		return err
	}
	r.rep.Floors = f.Report()
	return nil
}

// boot starts the guest on host A and hands it to the daemon there.
func (r *run) boot(ctx context.Context) error {
	r.guest = GuestConfig()
	r.guest.WorkingSetMiB, r.guest.ChurnRate = r.WorkingSetMiB, 500
	r.step("a QEMU with %s on host A boots a stock Debian kernel", humanize.IBytes(r.RAM))
	vm, err := StartGuest(ctx, r.pair.A.Host, rig.VMConfig{
		Name: vmName, RAM: r.RAM, Accel: r.Accel, CacheDir: r.CacheDir, VGA: true,
	}, r.guest)
	if err != nil {
		return err
	}
	r.rep.VM, r.rep.Accel, r.rep.RAMBytes = vmName, vm.Accel, int64(r.RAM)
	if vm.AccelReason != "" {
		r.step("accelerator: %s (%s)", vm.Accel, vm.AccelReason)
	}
	if err := r.pair.Await(ctx, vm, r.guest); err != nil {
		return err
	}
	if _, err := r.pair.A.Daemon.Add(ctx, vmName, vm.QMPPath); err != nil {
		return fmt.Errorf("hand the VM to the daemon of host A: %w", err)
	}
	return nil
}

// live is the first leg, under load.
func (r *run) live(ctx context.Context) (err error) {
	r.step("the guest is up, %d clients request pages of its %d MiB working set", r.Workers, r.WorkingSetMiB)
	if r.web, err = startLoad(ctx, r); err != nil {
		return err
	}
	defer r.web.stop()
	if err := sleep(ctx, r.Before); err != nil {
		return err
	}
	r.step("relocate %s from host A to host B, live", vmName)
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("the relocation took more than 2 minutes"))
	defer cancel()
	if r.legs[0], err = r.pair.Relocate(ctx, vmName, r.pair.A, r.pair.B, relocate.Options{}, nil); err != nil {
		return err
	}
	r.step("drained after %.2f s, the guest was down for %.1f ms", r.drained(), r.legs[0].DowntimeMS)
	after := r.After
	if r.Away > 0 {
		after = max(0, r.Away-time.Since(r.legs[0].Status.Stopped))
		r.step("the guest works on at host B, until it returns %v after it left", r.Away)
	}
	if err := sleep(ctx, after); err != nil {
		return err
	}
	return r.web.finish(r.legs[0].Status.Stopped, r.rep)
}

// drained is the time from the switch-over to the last page, in seconds.
func (r *run) drained() float64 {
	s := r.legs[0].Status
	return s.Drained.Sub(s.Stopped).Seconds()
}

// paused is the second leg: back, with the guest stopped, so that nobody
// changes the memory while it is compared.
func (r *run) paused(ctx context.Context) (err error) {
	r.step("relocate %s back from host B to host A, paused, and keep the source's memory", vmName)
	lctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("the relocation took more than 2 minutes"))
	defer cancel()
	o := relocate.Options{Paused: true, KeepSource: true}
	if r.legs[1], err = r.pair.Relocate(lctx, vmName, r.pair.B, r.pair.A, o, nil); err != nil {
		return err
	}
	if r.Away > 0 {
		there, back := r.legs[0].Status, r.legs[1].Status
		r.step("away for %.0f s: %d bytes on the wire there, %d back (%.2f), %d of %d pages that were here are the same, %d have moved", back.Stopped.Sub(there.Stopped).Seconds(),
			there.BytesWire, back.BytesWire, float64(back.BytesWire)/float64(max(there.BytesWire, 1)), back.PagesSame, back.PagesCandidate, back.PagesMoved)
	}
	d, err := Compare(ctx, r.pair.B.MemoryFile(vmName), r.pair.A.MemoryFile(vmName))
	if err != nil {
		return err
	}
	r.rep.Integrity.PagesChecked, r.rep.Integrity.Mismatches = d.Pages, d.Mismatches
	r.step("compared the memory files of both hosts: %s pages, %d differ%s", humanize.Comma(int64(d.Pages)), d.Mismatches, d.firstText())
	return r.resume(ctx)
}

func (d *Difference) firstText() string {
	if len(d.First) == 0 {
		return ""
	}
	return fmt.Sprintf(", the first at %d", d.First)
}

// resume lets the guest on host A run on, as an operator would.
func (r *run) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	vm, err := qemu.Connect(ctx, r.pair.A.monitor(vmName))
	if err != nil {
		return fmt.Errorf("resume the guest: %w", err)
	}
	defer vm.Close()
	if err := vm.Execute(ctx, "cont", nil, nil); err != nil {
		return fmt.Errorf("resume the guest: %w", err)
	}
	return vm.AnnounceSelf(ctx, qemu.DefaultAnnounce)
}

// verdict asks the guest what it has seen.
func (r *run) verdict(ctx context.Context) error {
	r.step("the guest runs on host A again and checks its memory")
	v, s, err := CheckGuest(ctx, r.pair.Client, r.guest)
	if err != nil {
		return err
	}
	i := &r.rep.Integrity
	i.GuestChecks = s.Checks
	i.GuestErrors = BadPages(v, s)
	if s.FirstBad != "" {
		r.step("the guest found a bad page: %s", s.FirstBad)
	}
	return nil
}

// write fills in the legs and writes the report and the plots.
func (r *run) write() error {
	live := r.legs[0]
	r.rep.Figures = live.Figures
	r.rep.Legs = []report.Leg{live.Leg, r.legs[1].Leg}
	t := r.rep.Timeline
	t.Title = fmt.Sprintf("%s, %s of memory, moves from host A to host B under web load (%s)", vmName, humanize.IBytes(r.RAM), r.rep.Accel)
	t.DowntimeMS, t.DrainedS, t.Samples = live.DowntimeMS, r.drained(), live.Samples
	if n := len(t.Requests); n > 0 && len(t.Samples) > 0 {
		// The counters stay as they are from the drain on.
		last := t.Samples[len(t.Samples)-1]
		last.T = t.Requests[n-1].T
		t.Samples = append(t.Samples, last)
	}
	if err := report.WriteTimeline(t, filepath.Join(r.Out, "timeline.svg"), filepath.Join(r.Out, "timeline.png")); err != nil {
		return err
	}
	return report.Write(filepath.Join(r.Out, "report.json"), r.rep)
}

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
