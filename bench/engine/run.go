package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/pagewarp/pagewarp/bench/demo"
	"github.com/pagewarp/pagewarp/bench/workloads"
	"github.com/pagewarp/pagewarp/internal/guestapi"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// Options of a comparison. Zero values of what is not said to be needed mean
// the defaults.
type Options struct {
	// Tools, Engines, Load and LogDir, which gets the daemons' logs, must be
	// given.
	Tools   demo.Tools
	Engines []Engine
	Load    workloads.Load
	LogDir  string
	// RAM is the guest's memory in bytes. Default 1 GiB. VCPUs are by default 1.
	RAM   uint64
	VCPUs int
	// Repeat is how many relocations by each engine. Default 3.
	Repeat int
	// Link limits the link of each host, in bytes per second; 0 is no limit.
	Link uint64
	// Codec is pagewarp's for precache; empty is auto.
	Codec string
	// Precache are pagewarp's policies, as of [relocate.Options]; empty is all.
	Precache string
	// Span is how long a relocation on demand is watched from the guest's
	// resumption on; 0: onDemandSpan.
	Span time.Duration
	// Before and After are how long the guest is watched before the command,
	// and after it has moved. Default 5 s each.
	Before, After time.Duration
	// BootLimit and MoveLimit are how long a guest may take to boot, and a
	// relocation to be complete. Default 2 and 3 min.
	BootLimit, MoveLimit time.Duration
	// AnswerLimit bounds the questions to a guest that has moved, of which the
	// verification of its memory takes seconds under TCG: a guest that did not
	// survive answers none. Default 1 min.
	AnswerLimit time.Duration
	// Accel is auto, kvm or tcg. Default auto. CacheDir keeps what auto found.
	Accel, CacheDir string
	// Inspect, if not nil, is called after each relocation that succeeded, while
	// the hosts are still there.
	Inspect func(context.Context, *Job, Moved) error
	// Progress, if not nil, is shown the comparison so far after each relocation;
	// it may not change it.
	Progress func(*Result)
	// Step, if not nil, is told what goes on.
	Step func(string)
}

func (o *Options) fill() error {
	if len(o.Engines) == 0 || o.LogDir == "" || o.Load.Kind == "" {
		return errors.New("compare engines: engines, a load and a folder for logs must be given")
	}
	for d, byDefault := range map[*time.Duration]time.Duration{
		&o.Before: 5 * time.Second, &o.After: 5 * time.Second, &o.BootLimit: 2 * time.Minute, &o.MoveLimit: 3 * time.Minute,
		&o.AnswerLimit: time.Minute,
	} {
		if *d == 0 {
			*d = byDefault
		}
	}
	if o.RAM == 0 {
		o.RAM = 1 << 30
	}
	if o.Repeat == 0 {
		o.Repeat = 3
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	// The guest's kernel and its programs need some 100 MiB.
	if need := uint64(o.Load.WorkingSetMiB+96) << 20; need > o.RAM {
		return fmt.Errorf("a guest of %d MiB has no room for a load of %d MiB: give --ram at least %dM, or the load a smaller ws", o.RAM>>20, o.Load.WorkingSetMiB, need>>20)
	}
	if err := roomFor(o.Load.WorkingSetMiB + 96); err != nil {
		return err
	}
	if all := o.Before + o.MoveLimit + o.After; all > guestapi.TouchSpan-touchMargin {
		return fmt.Errorf("a relocation of up to %v, watched for %v before and %v after: the guest's own count of its work goes back for %v only; give less (--limit, --watch)",
			o.MoveLimit, o.Before, o.After, guestapi.TouchSpan)
	}
	if o.Before < beforeSpan+time.Second {
		return fmt.Errorf("watch the guest before the command for %v at least, not %v", beforeSpan+time.Second, o.Before)
	}
	return nil
}

// touchMargin is for what a guest does beside: it is asked for its count of work, and
// answers under TCG, while others run.
const touchMargin = 5 * time.Minute

// errBoot marks a guest that did not come up: the engine gets no further run.
var errBoot = errors.New("the guest did not come up")

// Run relocates the guest by each engine in alternation, A B A B …, a new guest
// between new hosts every time. It needs root and the guest's image. A run that
// fails is a row with an error; Run itself fails only if ctx ends, and then
// returns what was finished as well, or if the comparison cannot be made at all.
func Run(ctx context.Context, o Options) (*Result, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	kernel, image, err := guestImage(o.Load)
	if err != nil {
		return nil, err
	}
	r := newResult(o)
	var able []Engine
	for _, e := range o.Engines {
		f, err := e.Available(ctx)
		if err != nil {
			o.Step(fmt.Sprintf("%s cannot run here: %v", e.Name(), err))
			r.Unavailable = append(r.Unavailable, Unavailable{e.Name(), err.Error()})
			continue
		}
		r.Facts[e.Name()] = f
		able = append(able, e)
	}
	if len(able) == 0 {
		return nil, fmt.Errorf("none of the engines can run here: %s: %s", r.Unavailable[0].Engine, r.Unavailable[0].Reason)
	}
	out := map[string]bool{}
	for n := range o.Repeat {
		for _, e := range able {
			if out[e.Name()] {
				continue
			}
			c := &contest{Options: o, engine: e, kernel: kernel, image: image, row: Row{Engine: e.Name(), Run: n + 1}}
			err := c.run(ctx)
			if ctx.Err() != nil {
				r.sumUp()
				return r, interrupted(ctx, err)
			}
			if err != nil {
				c.row.Error = err.Error()
				o.Step(fmt.Sprintf("%s, run %d, FAILED: %v", e.Name(), n+1, err))
			}
			out[e.Name()] = errors.Is(err, errBoot)
			c.row.Accel = c.accel
			r.Rows = append(r.Rows, c.row)
			if o.Progress != nil {
				r.sumUp()
				o.Progress(r)
			}
		}
	}
	r.sumUp()
	return r, nil
}

// interrupted is why a comparison ended early; err is the end of the relocation
// that was under way, which is no news unless it has left something behind.
func interrupted(ctx context.Context, err error) error {
	if errors.Is(err, rig.ErrLeftBehind) {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return context.Cause(ctx)
}

// guestImage returns the kernel and the initramfs that a load needs.
func guestImage(l workloads.Load) (kernel, image string, err error) {
	kernel, initrd, err := rig.GuestImage()
	if err != nil {
		return "", "", err
	}
	image = filepath.Join(filepath.Dir(initrd), l.Image())
	if !exists(image) {
		return "", "", fmt.Errorf("the load %s needs %s, which is not built; run 'make guest'", l.Kind, image)
	}
	return kernel, image, nil
}

// contest is one relocation by one engine.
type contest struct {
	Options
	engine        Engine
	kernel, image string
	accel         string
	pair          *demo.Pair
	guest         guestapi.Config
	row           Row
}

// run makes the hosts, boots the guest, moves it, watches it, and removes all.
func (c *contest) run(ctx context.Context) (err error) {
	c.pair, err = demo.NewPair(ctx, c.Tools, filepath.Join(c.LogDir, fmt.Sprintf("%s-%d", c.engine.Name(), c.row.Run)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.pair.Close()) }()
	if c.Link > 0 {
		for _, s := range []*demo.Side{c.pair.A, c.pair.B} {
			if err := s.Shape(rig.Shape{BytesPerSecond: c.Link}); err != nil {
				return err
			}
		}
	}
	c.say("boot the guest for")
	vm, config, err := c.boot(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errBoot, err)
	}
	c.accel = vm.Accel
	watch, cancel := context.WithCancel(ctx)
	defer cancel() // ends the load's client, if finish does not
	o, err := observe(watch, c.Load, c.pair.Client, c.guest)
	if err != nil {
		return fmt.Errorf("start the load: %w", err)
	}
	note, err := settle(ctx, o)
	if err != nil {
		return err
	}
	if err := sleep(ctx, c.Before); err != nil {
		return err
	}
	m, costs, moveErr := c.move(ctx, vm, config)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := sleep(ctx, c.After); err != nil {
		return err
	}
	c.row.fill(m, costs)
	if n, ok := o.(noter); ok {
		c.row.Notes = append(c.row.Notes, n.note())
	}
	if note != "" {
		c.row.Notes = append(c.row.Notes, note)
	}
	if moveErr != nil {
		// What the guest did meanwhile may still be told, if it lives.
		lctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if seen, err := o.finish(lctx, m.Started, never); err == nil && !m.Started.IsZero() {
			c.row.addSeries(seen.bins)
		}
		return moveErr
	}
	if err := c.evaluate(ctx, o, m); err != nil {
		return c.autopsy(ctx, m.There, err)
	}
	return nil
}

// autopsy adds to the reason why a guest that has moved gave no account of
// itself what its QEMU at the destination, nil for not known, says of it.
func (c *contest) autopsy(ctx context.Context, vm *rig.VM, cause error) error {
	if vm == nil {
		return cause
	}
	state := "has ended"
	if vm.Alive() {
		state = "runs, and its monitor does not answer"
		ctx, cancel := context.WithTimeout(ctx, accountLimit)
		defer cancel()
		if q, err := qemu.Connect(ctx, vm.QMPPath); err == nil {
			if s, err := q.RunState(ctx); err == nil {
				state = fmt.Sprintf("says that the guest is in the state %q", s.Status)
			}
			q.Close()
		}
	}
	guest, says := vm.LastWords()
	return fmt.Errorf("%w; its QEMU at the destination %s; the guest says %q there, QEMU says %q", cause, state, guest, says)
}

// never are the moments of a relocation that did not come to its switch-over.
var never = moments{1 << 62, 1 << 62, 1 << 62}

func (c *contest) say(what string) {
	c.Step(fmt.Sprintf("run %d of %d: %s %s", c.row.Run, c.Repeat, what, c.engine.Name()))
}

// boot starts the guest and waits until its web server answers.
func (c *contest) boot(ctx context.Context) (*rig.VM, rig.VMConfig, error) {
	c.guest = c.Load.Apply(demo.GuestConfig())
	config := rig.VMConfig{
		Name: "guest", RAM: c.RAM, VCPUs: c.VCPUs, Accel: c.Accel, CacheDir: c.CacheDir, VGA: true,
		Kernel: c.kernel, Initrd: c.image, Append: guestapi.BaseCmdline + " " + c.guest.Cmdline(), Tap: tap, ExtraArgs: debugThreads,
	}
	c.engine.Arrange(&config)
	choice, err := config.ChooseAccel(ctx)
	if err != nil {
		return nil, config, err
	}
	config.Accel = choice.Accel
	if n, ok := c.engine.(*native); ok {
		n.keepsWrites(&config)
	}
	vm, err := rig.StartVM(ctx, c.pair.A.Host, config)
	if err != nil {
		return nil, config, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.BootLimit, fmt.Errorf("the guest did not boot within %v", c.BootLimit))
	defer cancel()
	if err := vm.WaitReady(ctx, c.pair.Client, c.guest); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return nil, config, err
	}
	return vm, config, nil
}

// move has the engine move the guest, and measures what that costs.
func (c *contest) move(ctx context.Context, vm *rig.VM, config rig.VMConfig) (Moved, [2]Cost, error) {
	c.say("touch the host's free memory for")
	if err := warmHost(2 * c.RAM); err != nil {
		return Moved{}, [2]Cost{}, fmt.Errorf("touch the host's free memory: %w", err)
	}
	c.say("move it by")
	ctx, cancel := context.WithTimeoutCause(ctx, c.MoveLimit, fmt.Errorf("given up after %v", c.MoveLimit))
	defer cancel()
	var mt *meter
	var meterErr error
	_, ours := c.engine.(*pagewarp)
	job := &Job{
		Pair: c.pair, VM: vm, Config: config, Guest: c.guest, Link: c.Link, Codec: c.Codec, Precache: c.Precache, Span: c.Span, TLS: !c.Tools.Insecure,
		Begin: func() time.Time {
			mt, meterErr = startMeter(ours, [2]*rig.Host{c.pair.A.Host, c.pair.B.Host})
			return time.Now()
		},
	}
	m, err := c.engine.Move(ctx, job)
	if err == nil && c.Inspect != nil {
		err = c.Inspect(ctx, job, m)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	costs, err := mt.account(meterErr, err)
	return m, costs, err
}

// evaluate asks the load and the guest what they have noticed, and for bad
// pages.
func (c *contest) evaluate(ctx context.Context, o observer, m Moved) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.AnswerLimit, fmt.Errorf("the guest did not answer within %v after it had moved", c.AnswerLimit))
	defer cancel()
	defer func() {
		if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
	}()
	at := moments{m.Stopped.Sub(m.Started), m.Resumed.Sub(m.Started), m.Completed.Sub(m.Started)}
	seen, err := o.finish(ctx, m.Started, at)
	if err != nil {
		return fmt.Errorf("ask the load: %w", err)
	}
	c.row.addSeries(seen.bins)
	warmFrom := at.resumed
	if seen.blackout != nil { // bins by the host's clock: one begins at the stop
		warmFrom = at.stopped
	}
	im, err := assess(seen.bins, at, warmFrom)
	if err != nil {
		return err
	}
	c.row.addImpact(im, seen)
	v, s, err := demo.CheckGuest(ctx, c.pair.Client, c.guest)
	if err != nil {
		return fmt.Errorf("have the guest verify its memory: %w", err)
	}
	c.row.BadPages = demo.BadPages(v, s) + seen.wrong
	return nil
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
