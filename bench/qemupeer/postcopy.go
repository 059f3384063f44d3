package qemupeer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// postcopy is one migration by QEMU itself.
type postcopy struct {
	src, dst *qemu.VM
	to       netip.AddrPort
	settings string
}

// moved are the times of a migration, by the host's clock.
type moved struct {
	started, stopped, resumed, completed time.Time
	bytesWire                            uint64
}

// open connects to both monitors.
func open(ctx context.Context, source, destination *rig.VM, to netip.AddrPort) (*postcopy, error) {
	src, err := qemu.Connect(ctx, source.QMPPath)
	if err != nil {
		return nil, err
	}
	dst, err := qemu.Connect(ctx, destination.QMPPath)
	if err != nil {
		src.Close()
		return nil, err
	}
	return &postcopy{src: src, dst: dst, to: to}, nil
}

func (p *postcopy) close() {
	p.src.Close()
	p.dst.Close()
}

type capability struct {
	Capability string `json:"capability"`
	State      bool   `json:"state"`
}

// prepare sets both sides to QEMU's best: postcopy, its urgent channel where
// this version has it, no bandwidth limit.
func (p *postcopy) prepare(ctx context.Context) error {
	var known []capability
	if err := p.src.Execute(ctx, "query-migrate-capabilities", nil, &known); err != nil {
		return err
	}
	on := []capability{{"postcopy-ram", true}}
	p.settings = "postcopy-ram"
	if slices.ContainsFunc(known, func(c capability) bool { return c.Capability == "postcopy-preempt" }) {
		on = append(on, capability{"postcopy-preempt", true})
		p.settings += ", postcopy-preempt"
	}
	if slices.ContainsFunc(known, func(c capability) bool { return c.Capability == "events" }) {
		on = append(on, capability{"events", true})
	}
	for _, vm := range []*qemu.VM{p.dst, p.src} {
		if err := vm.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": on}, nil); err != nil {
			return err
		}
	}
	// 0 means no limit after the switch; before it the limit is a number, and
	// 100 GB/s is beyond any link.
	limits := map[string]any{"max-bandwidth": int64(100e9), "max-postcopy-bandwidth": int64(0)}
	if err := p.src.Execute(ctx, "migrate-set-parameters", limits, nil); err != nil {
		return err
	}
	p.settings += ", bandwidth unlimited, switched to postcopy at once"
	return p.dst.Execute(ctx, "migrate-incoming", map[string]any{"uri": "tcp:" + p.to.String()}, nil)
}

// migrate moves the guest and waits until all its memory has arrived.
func (p *postcopy) migrate(ctx context.Context) (m moved, err error) {
	stop, run := p.src.Subscribe(qemu.EventStop), p.dst.Subscribe(qemu.EventResume)
	defer stop.Close()
	defer run.Close()
	state := p.src.Subscribe(qemu.EventMigration)
	defer state.Close()
	m.started = time.Now()
	if err := p.src.Execute(ctx, "migrate", map[string]any{"uri": "tcp:" + p.to.String()}, nil); err != nil {
		return m, err
	}
	if err := awaitStatus(ctx, state, "active"); err != nil {
		return m, err
	}
	if err := p.src.Execute(ctx, "migrate-start-postcopy", nil, nil); err != nil {
		return m, err
	}
	e, err := stop.Next(ctx)
	if err != nil {
		return m, fmt.Errorf("wait for the source to stop: %w", err)
	}
	m.stopped = e.Time
	if e, err = run.Next(ctx); err != nil {
		return m, fmt.Errorf("wait for the destination to run: %w", err)
	}
	m.resumed = e.Time
	if err := awaitStatus(ctx, state, "completed"); err != nil {
		return m, err
	}
	m.completed = time.Now()
	var info struct {
		RAM struct {
			Transferred uint64 `json:"transferred"`
		} `json:"ram"`
	}
	err = p.src.Execute(ctx, "query-migrate", nil, &info)
	m.bytesWire = info.RAM.Transferred
	return m, err
}

// awaitStatus waits for a migration's status; a failed one is an error.
func awaitStatus(ctx context.Context, s *qemu.Subscription, want string) error {
	for {
		e, err := s.Next(ctx)
		if err != nil {
			return fmt.Errorf("wait for QEMU's migration to be %s: %w", want, err)
		}
		switch e.Status() {
		case want:
			return nil
		case "failed", "cancelled", "postcopy-paused":
			return errors.New("QEMU's migration is " + e.Status())
		}
	}
}
