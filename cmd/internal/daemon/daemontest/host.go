package daemontest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/relocate"
)

// Host implements daemon.Engine by script. Safe for concurrent use.
type Host struct {
	// OnRelocate, where set before use, runs in Relocate before it returns.
	OnRelocate func(name, to string, o relocate.Options) error
	// OnCancel, where set before use, takes the place of an immediate rollback.
	OnCancel func(ctx context.Context, name string) error

	mu       sync.Mutex
	machines map[string]relocate.Machine // guarded by mu
	statuses []relocate.Status           // guarded by mu; oldest first
	events   []relocate.Event            // guarded by mu
	wake     chan struct{}               // guarded by mu; closed at each event
	caps     map[string]int64            // guarded by mu; the last SetBandwidth
	shared   int64                       // guarded by mu; the last SetHostBandwidth
	dropped  bool                        // guarded by mu; what Cache shows
	closed   chan struct{}
	once     sync.Once
}

// New makes a host with one machine, "web1".
func New() *Host {
	h := &Host{machines: map[string]relocate.Machine{}, wake: make(chan struct{}), caps: map[string]int64{}, closed: make(chan struct{})}
	h.machines["web1"] = relocate.Machine{Name: "web1", QMP: "/run/web1.qmp", PID: 4242, Status: "running", RAMBytes: 2 << 30, VCPUs: 2, Version: "7.2.19", Machine: "pc-q35-7.2"}
	return h
}

// Adopt implements daemon.Adopter. A path with "dead" in it has no QEMU behind, one with
// "private" a machine that cannot be relocated.
func (h *Host) Adopt(_ context.Context, name, qmp string) (relocate.Machine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.machines[name]; ok {
		return relocate.Machine{}, fmt.Errorf("adopt %s: %w", name, relocate.ErrExists)
	}
	if strings.Contains(qmp, "dead") {
		return relocate.Machine{}, fmt.Errorf("connect to QMP socket %s: connection refused; is QEMU running?", qmp)
	}
	m := relocate.Machine{Name: name, QMP: qmp, PID: 1, Status: "running", RAMBytes: 1 << 30, VCPUs: 1, Version: "11.1.0", Machine: "pc-q35-11.1"}
	if strings.Contains(qmp, "private") {
		m.Problem = "guest memory is not a shared file: there is no memory backend"
	}
	h.machines[name] = m
	return m, nil
}

// Forget implements daemon.Adopter.
func (h *Host) Forget(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.machines[name]; !ok {
		return fmt.Errorf("forget %s: %w", name, relocate.ErrUnknownMachine)
	}
	if s := h.live(name); s != nil {
		return fmt.Errorf("forget %s: %w", name, relocate.ErrBusy)
	}
	delete(h.machines, name)
	return nil
}

// Machines implements daemon.Adopter.
func (h *Host) Machines(context.Context) (out []relocate.Machine) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.machines {
		out = append(out, m)
	}
	return out
}

// Relocate implements daemon.Mover: the relocation is connecting afterwards.
func (h *Host) Relocate(_ context.Context, name, to string, o relocate.Options) (relocate.Status, error) {
	if h.OnRelocate != nil {
		if err := h.OnRelocate(name, to, o); err != nil {
			return relocate.Status{}, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.machines[name]; !ok {
		return relocate.Status{}, fmt.Errorf("relocate %s: %w", name, relocate.ErrUnknownMachine)
	}
	if h.live(name) != nil {
		return relocate.Status{}, fmt.Errorf("relocate %s: %w", name, relocate.ErrBusy)
	}
	s := relocate.Status{VM: name, Role: relocate.RoleSource, Session: fmt.Sprintf("%08x", 0xa0+len(h.statuses)), Peer: to,
		Phase: relocate.PhaseConnecting, Options: o, Started: time.Now()}
	h.statuses = append(h.statuses, s)
	h.event(relocate.Event{VM: name, Session: s.Session, Kind: "phase", Phase: s.Phase, Text: "connecting to " + to})
	return s, nil
}

// Cancel implements daemon.Mover.
func (h *Host) Cancel(ctx context.Context, name string) error {
	if h.OnCancel != nil {
		return h.OnCancel(ctx, name)
	}
	h.mu.Lock()
	s := h.live(name)
	late := s != nil && Past(s.Phase)
	h.mu.Unlock()
	switch {
	case s == nil:
		return fmt.Errorf("cancel %s: %w: not being relocated", name, relocate.ErrUnknownMachine)
	case late:
		return fmt.Errorf("cancel %s: %w", name, relocate.ErrTooLate)
	}
	h.Phase(name, relocate.PhaseRolledBack, func(s *relocate.Status) { s.Error = "cancelled by the operator" })
	return nil
}

// Past reports whether p is past the switch-over.
func Past(p relocate.Phase) bool {
	return p == relocate.PhaseCommitted || p == relocate.PhaseDraining || p == relocate.PhaseDone
}

// SetBandwidth implements daemon.Mover.
func (h *Host) SetBandwidth(name string, n int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.live(name)
	if s == nil {
		return fmt.Errorf("bandwidth of %s: %w", name, relocate.ErrUnknownMachine)
	}
	s.Options.Bandwidth = n
	h.caps[name] = n
	return nil
}

// SetHostBandwidth implements daemon.Limiter.
func (h *Host) SetHostBandwidth(n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shared = n
}

// HostBandwidth implements daemon.Limiter.
func (h *Host) HostBandwidth() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.shared
}

// Bandwidth returns what SetBandwidth was last told.
func (h *Host) Bandwidth(name string) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.caps[name]
}

// Statuses implements daemon.Observer.
func (h *Host) Statuses() []relocate.Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]relocate.Status(nil), h.statuses...)
}

// Add enters a relocation as it stands.
func (h *Host) Add(s relocate.Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.statuses = append(h.statuses, s)
}

// Phase takes the live relocation of a machine to the phase p, after set.
func (h *Host) Phase(name string, p relocate.Phase, set func(*relocate.Status)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.live(name)
	if s == nil {
		panic("daemontest: no live relocation of " + name)
	}
	if set != nil {
		set(s)
	}
	s.Phase = p
	if p.Final() {
		s.Ended = time.Now()
	}
	h.event(relocate.Event{VM: name, Session: s.Session, Kind: "phase", Phase: p, Text: string(p)})
}

// Update changes the live relocation of a machine.
func (h *Host) Update(name string, set func(*relocate.Status)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	set(h.live(name))
}

// Event adds an event.
func (h *Host) Event(e relocate.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.event(e)
}

// Subscribe implements daemon.Observer.
func (h *Host) Subscribe(after uint64) (<-chan relocate.Event, func()) {
	out, stop, done := make(chan relocate.Event, 4), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer close(out)
		for {
			h.mu.Lock()
			news, wake := h.events[min(after, uint64(len(h.events))):], h.wake
			h.mu.Unlock()
			for _, e := range news {
				select {
				case out <- e:
					after = e.Seq
				case <-stop:
					return
				}
			}
			select {
			case <-wake:
			case <-stop:
				return
			}
		}
	}()
	return out, sync.OnceFunc(func() { close(stop); <-done })
}

// Cache implements daemon.Cacher: one machine has left, and was dropped if a test
// did so.
func (h *Host) Cache() ([]relocate.CacheEntry, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dropped {
		return nil, nil
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return []relocate.CacheEntry{{Version: 1, VM: "db1", Path: "/dev/shm/pagewarp-cache/db1", Bytes: 3 << 29, Kept: at, Used: at}}, nil
}

// CacheDrop implements daemon.Cacher.
func (h *Host) CacheDrop(vm string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if vm != "db1" || h.dropped {
		return fmt.Errorf("%s: %w", vm, relocate.ErrNotCached)
	}
	h.dropped = true
	return nil
}

// FaultSource implements daemon.Engine.
func (h *Host) FaultSource() (source, reason string, err error) {
	return relocate.FaultUserfaultfd, "as configured", nil
}

// Addrs implements daemon.Engine.
func (h *Host) Addrs() []string { return []string{"127.0.0.1:7070"} }

// Serve implements daemon.Engine.
func (h *Host) Serve() error { <-h.closed; return nil }

// Close implements daemon.Engine: what is before its switch-over rolls back.
func (h *Host) Close() error {
	h.once.Do(func() {
		for _, s := range h.Statuses() {
			if !s.Phase.Final() && !Past(s.Phase) && s.Role == relocate.RoleSource {
				h.Phase(s.VM, relocate.PhaseRolledBack, func(s *relocate.Status) { s.Error = "the daemon is stopping" })
			}
		}
		close(h.closed)
	})
	return nil
}

// live returns the relocation of name that has not ended, or nil; under mu.
func (h *Host) live(name string) *relocate.Status {
	for i := range h.statuses {
		if s := &h.statuses[i]; s.VM == name && s.Role == relocate.RoleSource && !s.Phase.Final() {
			return s
		}
	}
	return nil
}

// event appends under mu.
func (h *Host) event(e relocate.Event) {
	e.Seq, e.Time = uint64(len(h.events)+1), time.Now()
	h.events = append(h.events, e)
	close(h.wake)
	h.wake = make(chan struct{})
}
