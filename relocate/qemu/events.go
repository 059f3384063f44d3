package qemu

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// MaxQueuedEvents bounds a subscription's queue. A relocation sees some tens.
const MaxQueuedEvents = 4096

// Names of the events of interest to a relocation.
const (
	EventStop          = "STOP"
	EventResume        = "RESUME"
	EventMigration     = "MIGRATION"
	EventMigrationPass = "MIGRATION_PASS"
	EventShutdown      = "SHUTDOWN"
	EventPowerdown     = "POWERDOWN"
	EventReset         = "RESET"
	EventPanicked      = "GUEST_PANICKED"
)

// Event is one asynchronous message of QEMU.
type Event struct {
	Name string         // such as "STOP"
	Data map[string]any // may be nil
	Time time.Time      // QEMU's clock, in microseconds; zero if QEMU had none
}

// Status is the "status" member of a MIGRATION event, else "".
func (e Event) Status() string {
	s, _ := e.Data["status"].(string)
	return s
}

// Subscription is a queue of events in QEMU's order, complete from the moment of
// Subscribe. Its methods may be called from several goroutines; each event goes
// to one of them.
type Subscription struct {
	names []string // immutable; empty is all
	from  *monitor // immutable

	mu     sync.Mutex
	queue  []Event       // guarded by mu; at most MaxQueuedEvents
	err    error         // guarded by mu: why no more will come
	signal chan struct{} // 1 deep: queue or err changed
}

// push is called in QEMU's order by the monitor's one reader; it never blocks.
func (s *Subscription) push(e Event) {
	if len(s.names) > 0 && !slices.Contains(s.names, e.Name) {
		return
	}
	s.mu.Lock()
	switch {
	case s.err != nil:
	case len(s.queue) >= MaxQueuedEvents:
		s.err = detailed(ErrEventOverflow, "%d events wait, the reader stopped at %s", len(s.queue), s.queue[0].Name)
	default:
		s.queue = append(s.queue, e)
	}
	s.mu.Unlock()
	s.wake()
}

func (s *Subscription) end(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	s.wake()
}

func (s *Subscription) wake() {
	select {
	case s.signal <- struct{}{}:
	default:
	}
}

// Next returns the oldest event, waiting for one. What had arrived before the
// end is delivered before the error: ErrDisconnected, ErrEventOverflow, or
// net.ErrClosed after Close. The context's end gives ErrTimeout for a deadline,
// otherwise its cause.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		s.mu.Lock()
		if len(s.queue) > 0 {
			e := s.queue[0]
			s.queue = s.queue[1:]
			more := len(s.queue) > 0
			s.mu.Unlock()
			if more {
				s.wake() // for another reader
			}
			return e, nil
		}
		err := s.err
		s.mu.Unlock()
		if err != nil {
			s.wake()
			return Event{}, err
		}
		select {
		case <-s.signal:
		case <-ctx.Done():
			return Event{}, contextError(ctx)
		}
	}
}

// poll returns the oldest event if there is one.
func (s *Subscription) poll() (Event, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return Event{}, false
	}
	e := s.queue[0]
	s.queue = s.queue[1:]
	return e, true
}

// Close ends the subscription and frees its queue.
func (s *Subscription) Close() {
	s.from.unsubscribe(s)
}

// contextError is ErrTimeout for a deadline, else the context's cause.
func contextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return detailed(ErrTimeout, "%w", context.Cause(ctx))
	}
	return context.Cause(ctx)
}
