package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"github.com/pagewarp/pagewarp/internal/accel"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// native is a migration by QEMU itself.
type native struct {
	name, binary string
	mode         mode
	old          bool // before 9.0; set by Available
}

// migratePort is where the destination's QEMU listens.
const migratePort = 7999

func probeQEMU(ctx context.Context, binary string) (Facts, error) {
	p, err := qemu.Probe(ctx, binary)
	return Facts{QEMU: p.Version.String(), Binary: p.Path}, err
}

func (n *native) Name() string { return n.name }

func (n *native) Available(ctx context.Context) (Facts, error) {
	f, err := probe(ctx, n.binary)
	if err != nil {
		return f, err
	}
	p, err := qemu.Probe(ctx, n.binary)
	n.old = err == nil && p.Version.Before(qemu.Version{Major: 9})
	if err == nil && p.Version.Before(n.mode.since) {
		err = fmt.Errorf("QEMU %s at %s is too old: %s needs %s", p.Version, p.Path, n.mode.name, n.mode.since)
	}
	return f, err
}

// Arrange gives the guest private memory, on which QEMU's own ways are at their
// best: huge pages come by themselves.
func (n *native) Arrange(c *rig.VMConfig) { c.QEMU, c.PrivateMemory = n.binary, !n.mode.sameMemory }

// oddMemory is added to a guest's memory where keepsWrites says so. QEMU rounds
// memory to it.
const oddMemory = 8 << 10

// keepsWrites keeps a QEMU before 9.0 from losing writes of a guest under TCG in a
// precopy. Such a QEMU takes the log of writes 64 pages at a time where a RAM block
// is a multiple of that, and there forgets to have the translated code note the
// next write to those pages (mended by QEMU's commit 03bfc2188f06, "physmem: Fix
// migration dirty bitmap coherency with TCG memory access"); a block of another
// length it goes through page by page, with that.
func (n *native) keepsWrites(c *rig.VMConfig) {
	if n.old && !n.mode.postcopy && !n.mode.sameMemory && c.Accel == accel.TCG {
		c.RAM += oddMemory
	}
}

func (n *native) Move(ctx context.Context, j *Job) (m Moved, err error) {
	c := j.Config
	c.Incoming, c.Accel = "defer", j.VM.Accel
	if n.mode.sameMemory {
		c.MemoryOf = j.VM
	}
	m.Started = j.Begin()
	there, err := rig.StartVM(ctx, j.Pair.B.Host, c)
	if err != nil {
		return m, err
	}
	m.There = there
	g, err := openMigration(ctx, j.VM, there, netip.AddrPortFrom(j.Pair.B.Host.Addr, migratePort))
	if err != nil {
		return m, err
	}
	defer g.close()
	if m.Settings, err = g.prepare(ctx, n.mode, j.Link); err != nil {
		return m, err
	}
	if c.RAM%(2*oddMemory) != 0 {
		m.Settings += ", 8 KiB of memory more, with which QEMU before 9.0 loses no writes of a guest under TCG"
	}
	err = g.run(ctx, &m, n.mode.postcopy)
	return m, g.account(ctx, &m, err)
}

// migration is one under way, seen from both monitors.
type migration struct {
	src, dst *qemu.VM
	to       string // URI
}

func openMigration(ctx context.Context, source, destination *rig.VM, to netip.AddrPort) (*migration, error) {
	src, err := qemu.Connect(ctx, source.QMPPath)
	if err != nil {
		return nil, err
	}
	dst, err := qemu.Connect(ctx, destination.QMPPath)
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return &migration{src: src, dst: dst, to: "tcp:" + to.String()}, nil
}

func (g *migration) close() {
	g.src.Close()
	g.dst.Close()
}

type capability struct {
	Capability string `json:"capability"`
	State      bool   `json:"state"`
}

// prepare sets both sides, and has the destination listen.
func (g *migration) prepare(ctx context.Context, m mode, link uint64) (settings string, err error) {
	var list []capability
	if err := g.src.Execute(ctx, "query-migrate-capabilities", nil, &list); err != nil {
		return "", err
	}
	known := make([]string, len(list))
	for i, c := range list {
		known[i] = c.Capability
	}
	p, err := m.plan(known, link, runtime.NumCPU())
	if err != nil {
		return "", err
	}
	set := func(vm *qemu.VM, caps []string, params map[string]any) error {
		on := make([]capability, len(caps))
		for i, c := range caps {
			on[i] = capability{c, true}
		}
		if len(on) > 0 {
			if err := vm.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": on}, nil); err != nil {
				return err
			}
		}
		if len(params) == 0 {
			return nil
		}
		return vm.Execute(ctx, "migrate-set-parameters", params, nil)
	}
	if err := set(g.dst, p.dst, p.dstParams); err != nil {
		return p.settings, fmt.Errorf("set the destination's QEMU: %w", err)
	}
	if err := set(g.src, p.src, p.srcParams); err != nil {
		return p.settings, fmt.Errorf("set the source's QEMU: %w", err)
	}
	return p.settings, g.dst.Execute(ctx, "migrate-incoming", map[string]any{"uri": g.to}, nil)
}

// run migrates and waits until all memory has arrived.
func (g *migration) run(ctx context.Context, m *Moved, postcopy bool) error {
	stop, resume, state := g.src.Subscribe(qemu.EventStop), g.dst.Subscribe(qemu.EventResume), g.src.Subscribe(qemu.EventMigration)
	defer stop.Close()
	defer resume.Close()
	defer state.Close()
	if err := g.src.Execute(ctx, "migrate", map[string]any{"uri": g.to}, nil); err != nil {
		return err
	}
	if postcopy {
		if err := g.await(ctx, state, "active"); err != nil {
			return err
		}
		if err := g.src.Execute(ctx, "migrate-start-postcopy", nil, nil); err != nil {
			return err
		}
	} else if err := g.await(ctx, state, "completed"); err != nil {
		return err
	}
	// Of a precopy, which is complete by now, both are in the queues.
	e, err := stop.Next(ctx)
	if err != nil {
		return fmt.Errorf("wait for the source to stop: %w", err)
	}
	m.Stopped = e.Time
	if e, err = resume.Next(ctx); err != nil {
		return fmt.Errorf("wait for the destination to run: %w", err)
	}
	m.Resumed = e.Time
	if postcopy {
		if err := g.await(ctx, state, "completed"); err != nil {
			return err
		}
	}
	m.Completed = time.Now()
	if m.Completed.Before(m.Resumed) {
		m.Completed = m.Resumed
	}
	return nil
}

// await waits for a migration's status; a failed one is an error.
func (g *migration) await(ctx context.Context, s *qemu.Subscription, want string) error {
	for {
		e, err := s.Next(ctx)
		if err != nil {
			return fmt.Errorf("wait for QEMU's migration to be %s: %w", want, err)
		}
		switch e.Status() {
		case want:
			return nil
		case "failed", "cancelled", "postcopy-paused":
			return fmt.Errorf("QEMU's migration is %s%s", e.Status(), g.reason(ctx))
		}
	}
}

// reason is what either side says about a failure, after a colon.
func (g *migration) reason(ctx context.Context) string {
	var text string
	for _, vm := range []*qemu.VM{g.src, g.dst} {
		if i, err := vm.Migration(ctx); err == nil && i.ErrorDesc != "" {
			text += ": " + i.ErrorDesc
		}
	}
	return text
}

// accountLimit bounds the questions after a migration that failed or was given
// up.
const accountLimit = 5 * time.Second

// account asks both sides what they count, after a migration that ended with
// cause, and returns cause with what explains it.
func (g *migration) account(ctx context.Context, m *Moved, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), accountLimit)
	defer cancel()
	var src, dst migrateInfo
	if err := g.src.Execute(ctx, "query-migrate", nil, &src); err != nil {
		return errors.Join(cause, err)
	}
	m.BytesReported = src.RAM.Transferred
	if src.RAM.Passes > 0 {
		note := fmt.Sprintf("%d passes over memory", src.RAM.Passes)
		if src.Throttle > 0 {
			note += fmt.Sprintf(", vCPUs throttled to %d %%", 100-src.Throttle)
		}
		m.Notes = append(m.Notes, note)
	}
	if cause != nil {
		return fmt.Errorf("%w; QEMU's migration is in the state %q: it has sent %d MB in %d passes, %d MB are left and the guest writes %d pages/s",
			cause, src.Status, src.RAM.Transferred/1e6, src.RAM.Passes, src.RAM.Remaining/1e6, src.RAM.DirtyRate)
	}
	// Without its figures a migration that succeeded is still one.
	if err := g.dst.Execute(ctx, "query-migrate", nil, &dst); err != nil {
		m.Notes = append(m.Notes, "the destination told no latencies: "+err.Error())
	}
	m.Fault = faults(src, dst)
	return nil
}
