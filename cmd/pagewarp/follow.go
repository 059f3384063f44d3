package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/progress"
	"github.com/pagewarp/pagewarp/relocate"
)

// How the daemon is followed.
const (
	pollEvery = 200 * time.Millisecond
	// patience is how long a daemon may be away, for a restart, before the
	// command gives up watching. The relocation does not depend on it.
	patience = 30 * time.Second
)

// move is one run of `pagewarp relocate`.
type move struct {
	*app
	cmd   *cobra.Command
	vm    string
	flags relocateFlags

	show        progress.Display
	session     string          // immutable once started
	status      relocate.Status // the newest
	shown       relocate.Phase  // the newest phase on display
	interrupted bool            // Ctrl-C has been pressed
	lostSince   time.Time       // the daemon has not answered since; zero: it does
}

func (m *move) run(req api.RelocateRequest) error {
	signals, stop := m.interrupts()
	defer stop()
	if m.signals == nil {
		// Whoever reads may leave; what becomes of the machine is still to be told, by the
		// exit code.
		signal.Ignore(syscall.SIGPIPE)
	}
	if err := m.start(req, signals); err != nil {
		return err
	}
	if m.flags.detach {
		if err := m.report(m.status); err != nil {
			return err
		}
		if m.flags.report != "-" {
			fmt.Fprintf(m.out, "relocation of %s to %s has started; `pagewarp status %s` shows it\n", m.vm, req.To, m.vm)
		}
		return nil
	}
	m.outcome = true
	m.show = display(m.errOut)
	final, err := m.follow(signals)
	m.show.Close()
	if err != nil {
		return err
	}
	return m.finish(final)
}

// start asks the daemon to begin. Ctrl-C meanwhile withdraws the request and
// whatever has come of it.
func (m *move) start(req api.RelocateRequest, signals <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(m.cmd.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		var err error
		m.status, err = m.daemon().Relocate(ctx, m.vm, req)
		done <- err
	}()
	select {
	case err := <-done:
		m.session = m.status.Session
		return err
	case <-signals:
	}
	cancel()
	withdrawn := make(chan error, 1)
	go func() {
		err := <-done
		if err == nil || errors.Is(err, context.Canceled) {
			// The daemon may have started it all the same.
			err = m.daemon().Cancel(m.cmd.Context(), m.vm)
		}
		withdrawn <- err
	}()
	select {
	case err := <-withdrawn:
		if errors.Is(err, relocate.ErrTooLate) {
			return &exitError{exitInterrupted, fmt.Errorf("interrupted, but past the switch-over: the daemons finish on their own; `pagewarp status %s` shows it", m.vm)}
		}
		return &exitError{exitInterrupted, fmt.Errorf("interrupted before the relocation began; %s runs on here", m.vm)}
	case <-signals:
		return &exitError{exitInterrupted, fmt.Errorf("interrupted: left to the daemon; `pagewarp status %s` shows what has become of it", m.vm)}
	}
}

// follow shows the relocation until it ends or the operator leaves.
func (m *move) follow(signals <-chan os.Signal) (relocate.Status, error) {
	ctx, cancel := context.WithCancel(m.cmd.Context())
	events := make(chan relocate.Event)
	watching := make(chan struct{})
	go func() { defer close(watching); m.watch(ctx, events) }()
	defer func() { cancel(); <-watching }()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	cancelled := make(chan error, 1)
	for {
		select {
		case e := <-events:
			m.event(e)
			if !e.Phase.Final() {
				continue
			}
		case <-poll.C:
		case <-signals:
			if m.interrupted {
				m.show.Note("left to the daemon; `pagewarp status %s` shows how it ends", m.vm)
				return relocate.Status{}, &exitError{code: exitInterrupted}
			}
			m.interrupted = true
			m.show.Note("interrupted: rolling back… (Ctrl-C again leaves it to the daemon)")
			go func() { cancelled <- m.daemon().Cancel(ctx, m.vm) }()
			continue
		case err := <-cancelled:
			if errors.Is(err, relocate.ErrTooLate) {
				m.show.Note("past the switch-over: %s runs at %s and the daemons finish on their own; `pagewarp status %s` shows it", m.vm, m.status.Peer, m.vm)
				return relocate.Status{}, &exitError{code: exitInterrupted}
			}
			// Any other error is seen in the status, as is success.
			continue
		case <-ctx.Done():
			return relocate.Status{}, ctx.Err()
		}
		if err := m.poll(ctx); err != nil {
			return relocate.Status{}, err
		}
		if m.status.Phase.Final() {
			m.phase(m.status.Phase, m.status.Ended, m.status.Error)
			return m.status, nil
		}
	}
}

// watch sends the events of the relocation, over a daemon's restart, too.
func (m *move) watch(ctx context.Context, out chan<- relocate.Event) {
	for {
		// The history of a daemon is short, so it is read from its beginning:
		// nothing is missed between the start and here, and after a restart the
		// numbers begin again.
		m.daemon().Events(ctx, 0, true, func(e relocate.Event) error {
			if e.VM != m.vm || e.Session != m.session {
				return nil
			}
			select {
			case out <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}) // whatever ended it, the next try or the poll says why
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

func (m *move) event(e relocate.Event) {
	switch {
	case e.Kind != "phase":
		m.show.Note("%8.3fs  %-11s  %s", e.Time.Sub(m.status.Started).Seconds(), e.Kind, e.Text)
	case !e.Phase.Final():
		m.phase(e.Phase, e.Time, e.Text)
	}
}

// phase shows a phase once.
func (m *move) phase(p relocate.Phase, at time.Time, text string) {
	if p == m.shown || order(p) <= order(m.shown) {
		return
	}
	m.shown = p
	if at.IsZero() {
		at = time.Now()
	}
	m.show.Phase(p, max(0, at.Sub(m.status.Started)), text)
}

// order is where p stands among the phases; 0 for none.
func order(p relocate.Phase) int {
	for i, q := range []relocate.Phase{relocate.PhaseConnecting, relocate.PhasePreparing, relocate.PhasePreTransfer, relocate.PhaseReady, relocate.PhaseState, relocate.PhaseFrozen,
		relocate.PhaseLoaded, relocate.PhaseCommitted, relocate.PhaseDraining, relocate.PhaseDone, relocate.PhaseRolledBack, relocate.PhaseLost} {
		if p == q {
			return i + 1
		}
	}
	return 0
}

// poll reads the status. A daemon that is away is waited for.
func (m *move) poll(ctx context.Context) error {
	r, err := m.daemon().Status(ctx, m.vm)
	var u *api.UnreachableError
	var busy *api.Error
	switch {
	case errors.As(err, &u), errors.As(err, &busy) && (busy.Code == api.CodeTooMany || busy.Code == api.CodeTimeout):
		if m.lostSince.IsZero() {
			m.lostSince = time.Now()
			why := "does not answer"
			if busy != nil && busy.Code == api.CodeTooMany {
				why = "serves too many already"
			}
			m.show.Note("the daemon %s; waiting for it (the relocation does not depend on this command)", why)
		}
		if time.Since(m.lostSince) > patience {
			return err
		}
		return nil
	case err != nil:
		return err
	}
	if !m.lostSince.IsZero() {
		m.show.Note("the daemon is back")
		m.lostSince = time.Time{}
	}
	for _, s := range r.Relocations {
		if s.Session == m.session && s.Role == relocate.RoleSource {
			m.status = s
			m.show.Update(s)
			return nil
		}
	}
	return fmt.Errorf("the daemon no longer knows the relocation %s of %s; see its log and `pagewarp status` at %s", m.session, m.vm, m.status.Peer)
}
