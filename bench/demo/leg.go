package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/pagewarp/pagewarp/bench/report"
	"github.com/pagewarp/pagewarp/relocate"
)

// Leg is one finished relocation.
type Leg struct {
	report.Leg
	// Status is the destination's last word. DowntimeParts are the source's.
	Status        relocate.Status
	DowntimeParts map[string]float64
	// Samples are the destination's counters over time; their T is seconds from
	// the switch-over.
	Samples []report.Sample
}

// Relocate moves the machine vm from one side to the other by the daemons and
// waits until the source was released. seen, if not nil, is called with every
// new status of the destination.
func (p *Pair) Relocate(ctx context.Context, vm string, from, to *Side, o relocate.Options, seen func(relocate.Status)) (*Leg, error) {
	started := time.Now()
	first, err := from.Daemon.Relocate(ctx, vm, to.Addr, o)
	if err != nil {
		return nil, fmt.Errorf("relocate %s from %s to %s: %w", vm, from.Name, to.Name, err)
	}
	leg := &Leg{Leg: report.Leg{From: from.Name, To: to.Name}}
	f := follower{pair: p, leg: leg, session: first.Session, seen: seen}
	if err := f.follow(ctx, vm, from, to); err != nil {
		return nil, fmt.Errorf("relocate %s from %s to %s: %w", vm, from.Name, to.Name, err)
	}
	leg.Phases, err = phases(ctx, from, first.Session, started)
	if err != nil {
		return nil, err
	}
	s := leg.Status
	leg.Figures = figures(s)
	leg.TotalMS = ms(f.ended.Sub(started))
	for i := range leg.Samples {
		leg.Samples[i].T -= float64(s.Stopped.UnixNano()) / 1e9
	}
	return leg, nil
}

// figures copies what the destination counted.
func figures(s relocate.Status) report.Figures {
	f := report.Figures{
		DowntimeMS: s.DowntimeMS, PagesTotal: s.PagesTotal, PagesDemand: s.PagesDemand, PagesPrecache: s.PagesPrecache,
		PagesZero: s.PagesZero, BytesGuest: s.BytesGuest, BytesWire: s.BytesWire, Reconnects: s.Reconnects,
		FaultLatency: report.Latency(s.FaultLatency), Stages: map[string]report.Latency{},
	}
	for name, l := range s.Stages {
		f.Stages[name] = report.Latency(l)
	}
	return f
}

type follower struct {
	pair    *Pair
	leg     *Leg
	session string
	seen    func(relocate.Status)
	ended   time.Time
}

// follow polls both daemons until the source is done.
func (f *follower) follow(ctx context.Context, vm string, from, to *Side) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		dst, there, err := find(ctx, to, vm, f.session)
		if err != nil {
			return err
		}
		if there {
			f.sample(dst)
		}
		src, there, err := find(ctx, from, vm, f.session)
		switch {
		case err != nil:
			return err
		case !there:
			return fmt.Errorf("the source's daemon does not know session %s", f.session)
		case src.Phase == relocate.PhaseDone && f.leg.Status.Phase == relocate.PhaseDone:
			f.leg.DowntimeParts = src.DowntimeParts
			if f.ended = src.Ended; f.ended.IsZero() {
				f.ended = time.Now()
			}
			return nil
		case src.Phase == relocate.PhaseRolledBack || src.Phase == relocate.PhaseLost:
			return fmt.Errorf("%s: %s\n%s\n%s", src.Phase, src.Error, from.tail(), to.tail())
		}
		select {
		case <-tick.C:
		case <-from.done:
			return fmt.Errorf("the daemon of host %s has ended: %w\n%s", from.Name, from.err, from.tail())
		case <-to.done:
			return fmt.Errorf("the daemon of host %s has ended: %w\n%s", to.Name, to.err, to.tail())
		case <-ctx.Done():
			return fmt.Errorf("in phase %s: %w", src.Phase, context.Cause(ctx))
		}
	}
}

func (f *follower) sample(s relocate.Status) {
	f.leg.Status = s
	if s.PagesTotal > 0 && !s.Stopped.IsZero() {
		f.leg.Samples = append(f.leg.Samples, report.Sample{
			T: float64(time.Now().UnixNano()) / 1e9, Demand: s.PagesDemand,
			Resident: s.PagesTotal - min(s.PagesRemaining, s.PagesTotal), Total: s.PagesTotal,
		})
	}
	if f.seen != nil {
		f.seen(s)
	}
}

// find returns the daemon's view of a session.
func find(ctx context.Context, s *Side, vm, session string) (relocate.Status, bool, error) {
	all, err := s.Daemon.Statuses(ctx, vm)
	if err != nil {
		return relocate.Status{}, false, fmt.Errorf("ask the daemon of host %s: %w", s.Name, err)
	}
	for _, st := range all {
		if st.Session == session {
			return st, true, nil
		}
	}
	return relocate.Status{}, false, nil
}

// phases returns when the source entered each phase.
func phases(ctx context.Context, s *Side, session string, started time.Time) ([]report.Phase, error) {
	events, err := s.Daemon.Events(ctx)
	if err != nil {
		return nil, fmt.Errorf("events of host %s: %w", s.Name, err)
	}
	var ps []report.Phase
	for _, e := range events {
		if e.Session == session && e.Kind == "phase" {
			ps = append(ps, report.Phase{Name: string(e.Phase), AtMS: ms(e.Time.Sub(started))})
		}
	}
	return ps, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
