package relocate

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
)

// transfer is what both sides of a relocation have in common: its record, its
// status, its way of saying what happens.
type transfer struct {
	host   *Host
	log    *slog.Logger
	rec    *record // written only by the transfer's own goroutine; its Phase under mu, name and regions of a destination under Host.mu
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the transfer's goroutine has ended

	session string // printable name; immutable

	mu        sync.Mutex
	status    Status                      // guarded by mu
	fill      func(*Status)               // guarded by mu; adds the engine's live counters
	limit     func(int64) error           // guarded by mu; sets the precache bandwidth; nil while there is no way
	prefer    func([]pagecache.Run) error // guarded by mu; takes a hot list; nil while there is no use for one
	awake     io.Closer                   // guarded by mu; nil while the CPUs may sleep
	tired     *time.Timer                 // guarded by mu; ends that
	rates     [rateSlots]rateSlot         // guarded by mu
	ratePo    int                         // guarded by mu
	rateEarly bool                        // the samples are of a pre-transfer; guarded by mu
}

const rateSlots = 8

// collect has the garbage collector do its work now, some ms of it, before the guest stops: a
// cycle that began in the switch-over took a sixth of the daemons' CPU time there (perf,
// 25 relocations), from a guest that stands still.
func collect() { runtime.GC() }

// rateSlot is one sample for the rate shown to the operator.
type rateSlot struct {
	at    time.Time
	bytes uint64
}

func newTransfer(h *Host, rec *record) *transfer {
	ctx, cancel := context.WithCancelCause(h.ctx)
	name := sessionName(rec.Token)
	return &transfer{
		host:   h,
		log:    h.log.With("vm", rec.VM, "session", name, "role", string(rec.Role)),
		rec:    rec,
		ctx:    ctx,
		cancel: cancel,
		done:   make(chan struct{}),

		session: name,
		status: Status{
			VM: rec.VM, Role: rec.Role, Session: name, Peer: rec.Peer, Phase: rec.Phase,
			Options: rec.Options, Started: rec.Started, Stopped: rec.Stopped, Resumed: rec.ResumedAt,
		},
	}
}

// enter writes the phase down, then shows it. A journal that cannot be written
// is an error for the caller to act on: before committed it must roll back.
func (t *transfer) enter(p Phase, text string) error {
	t.setPhase(p)
	if p.Final() {
		t.rec.Ended = time.Now()
	}
	if err := t.host.journal.write(t.rec); err != nil {
		return err
	}
	t.show(p, text)
	return nil
}

// conclude enters a final phase, or another that has come whether the journal has room for it
// or not: whoever follows the relocation must see it.
func (t *transfer) conclude(p Phase, text string) {
	if err := t.enter(p, text); err != nil {
		t.warn("journal not written", "err", err)
		t.show(p, text)
	}
}

// setPhase and phase are for goroutines that look at the phase of another's record.
func (t *transfer) setPhase(p Phase) {
	t.mu.Lock()
	t.rec.Phase = p
	t.mu.Unlock()
}

func (t *transfer) phase() Phase {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rec.Phase
}

// show makes the phase visible to operators without writing it down.
func (t *transfer) show(p Phase, text string) {
	t.mu.Lock()
	t.status.Phase = p
	if p.Final() {
		t.status.Ended = time.Now()
	}
	t.mu.Unlock()
	t.log.Info(text, "phase", string(p))
	t.host.events.add(Event{VM: t.rec.VM, Session: t.session, Kind: "phase", Phase: p, Text: text})
	crashPoint(t.rec.Role, p)
}

// warn tells operators of something that they may want to act on.
func (t *transfer) warn(text string, args ...any) {
	t.log.Warn(text, args...)
	for i := 0; i+1 < len(args); i += 2 {
		if err, ok := args[i+1].(error); ok {
			text += ": " + err.Error()
		}
	}
	t.host.events.add(Event{VM: t.rec.VM, Session: t.session, Kind: "warning", Text: text})
}

// note records something that is no cause for action.
func (t *transfer) note(kind, text string) {
	t.log.Info(text)
	t.host.events.add(Event{VM: t.rec.VM, Session: t.session, Kind: kind, Text: text})
}

// update changes the status under its lock.
func (t *transfer) update(f func(*Status)) {
	t.mu.Lock()
	f(&t.status)
	t.mu.Unlock()
}

// setError shows why the transfer ended or what it waits for.
func (t *transfer) setError(err error) {
	t.update(func(s *Status) {
		s.Error = ""
		if err != nil {
			s.Error = err.Error()
		}
	})
}

// Status returns the current state with live counters.
func (t *transfer) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.status
	if t.fill != nil && !s.Phase.Final() {
		t.fill(&s)
		t.rate(&s)
		t.status = s
	}
	return s
}

func (t *transfer) setBandwidth(bytesPerSecond int64) error {
	t.mu.Lock()
	limit := t.limit
	t.mu.Unlock()
	if limit == nil {
		return fmt.Errorf("bandwidth of %s: its memory does not flow at the moment; try again", t.rec.VM)
	}
	if err := limit(bytesPerSecond); err != nil { // without the lock: the peer may stall
		return fmt.Errorf("bandwidth of %s: %w", t.rec.VM, err)
	}
	t.update(func(s *Status) { s.Options.Bandwidth = bytesPerSecond })
	return nil
}

// rate derives the guest bytes per second over the last samples, and the ETA; of a
// pre-transfer, the bytes on the wire.
func (t *transfer) rate(s *Status) {
	now, moved, early := time.Now(), s.BytesGuest, s.Phase == PhasePreTransfer
	if early {
		moved = s.BytesPreTransfer
	}
	if early != t.rateEarly {
		t.rateEarly, t.rates = early, [rateSlots]rateSlot{}
	}
	last := t.rates[(t.ratePo+rateSlots-1)%rateSlots]
	if now.Sub(last.at) >= 150*time.Millisecond {
		t.rates[t.ratePo] = rateSlot{now, moved}
		t.ratePo = (t.ratePo + 1) % rateSlots
	}
	oldest := t.rates[t.ratePo]
	for i := 0; oldest.at.IsZero() && i < rateSlots; i++ {
		oldest = t.rates[(t.ratePo+i)%rateSlots]
	}
	if dt := now.Sub(oldest.at).Seconds(); dt > 0.05 && !oldest.at.IsZero() {
		s.RateBytes = float64(moved-oldest.bytes) / dt
	}
	s.ETASec = 0
	if !early && s.RateBytes > 0 && s.PagesTotal > 0 && s.PagesRemaining > 0 {
		done := s.PagesTotal - s.PagesRemaining
		if done > 0 {
			perPage := float64(s.BytesGuest) / float64(done)
			s.ETASec = float64(s.PagesRemaining) * perPage / s.RateBytes
		}
	}
}
