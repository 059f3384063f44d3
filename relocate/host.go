package relocate

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport/tcp"
	"golang.org/x/sys/unix"
)

// Defaults of HostConfig.
const (
	DefaultDemandChannels   = 1
	DefaultPrecacheChannels = 2
	DefaultFaultReaders     = 1
)

// deadlines of the switch-over. Past one of them the relocation rolls back.
type deadlines struct {
	dial    time.Duration // a connection, and the first message on it
	prepare time.Duration // the destination starts its VMM
	state   time.Duration // small RAM blocks go, the guest stops
	load    time.Duration // guest stopped: device state sent and loaded
	inDoubt time.Duration // destination in loaded, source gone
	// rollback is one attempt to resume the guest at the source; what is past it is said,
	// and tried again.
	rollback time.Duration
}

var defaultDeadlines = deadlines{
	dial: 10 * time.Second, prepare: 60 * time.Second, state: 120 * time.Second,
	load: 30 * time.Second, inDoubt: 15 * time.Second, rollback: rollbackTimeout,
}

// Other limits.
const (
	rollbackTimeout = 20 * time.Second
	releaseWait     = 30 * time.Second // destination done, source silent
	endedKept       = 64               // ended relocations that Statuses remembers
	maxTombstones   = 1024             // ended relocations whose end a source can still learn
)

// HostConfig configures a [Host].
type HostConfig struct {
	// StateDir holds journals, residency files and private sockets. It belongs
	// on tmpfs: it must survive the daemon and not the host.
	StateDir string
	// Listen has the addresses for peers: "host:port" or "unix:/path".
	Listen []string
	// ServerTLS is used for TCP; nil means plain text.
	ServerTLS *tls.Config
	// ClientTLS returns what connections to other hosts use; it is asked for
	// each, so that certificates and CA can change. Nil means plain text.
	ClientTLS func() *tls.Config
	// Template returns the command-line overrides for a machine that arrives
	// here; nil means none.
	Template func(vm string) qemu.Template
	Log      *slog.Logger

	DemandChannels   int // per session; 0: DefaultDemandChannels
	PrecacheChannels int // per session; 0: DefaultPrecacheChannels
	// Bandwidth caps precache of all relocations to this host together, and of all
	// from it, in bytes per second; 0 is no cap. See SetHostBandwidth.
	Bandwidth    int64
	FaultReaders int // threads per machine; 0: DefaultFaultReaders
	// FaultSource is how the faults of machines that arrive are caught, where the
	// relocation does not say: one of FaultSources; empty is FaultAuto.
	FaultSource string
	Spin        time.Duration // busy wait before a fault thread sleeps; 0: none
	// DemandPace is faultd's, see [faultd.Config]; 0: faults never wait.
	DemandPace time.Duration
	// Reserve is how long memory is reserved for a machine that is to arrive, before it
	// stops at its source; 0: not at all.
	Reserve time.Duration
	// Awake is how long, from its switch-over on, a relocation keeps the host's CPUs out of
	// deep sleep, so that faults do not wait for them to wake; 0: not at all.
	Awake time.Duration
	// FaultLogDir, if not empty, gets a log of the faults of every machine that
	// arrives, VM-SESSION.faults; see faultLog.
	FaultLogDir string
	// DeadAfter is the silence after which a peer is taken for gone; 0: the
	// transport's default.
	DeadAfter time.Duration

	// RDMA is what this host allows, and by which device.
	RDMA RDMAConfig
	// Cache says what is kept of machines that have left.
	Cache CacheConfig

	deadlines deadlines // zero: defaultDeadlines; tests have less patience
}

// Host is one host's set of machines, as source and as destination. It is safe
// for concurrent use.
type Host struct {
	cfg     HostConfig
	log     *slog.Logger
	journal *journal
	cache   *pageCache
	events  *events
	ctx     context.Context
	cancel  context.CancelCauseFunc
	wg      sync.WaitGroup // transfers and connection handlers

	listeners []*tcp.Listener // immutable after NewHost
	strangers strangers
	programs  qemu.Programs

	in, out *pagecache.Pool // what relocations to and from here share

	mu        sync.Mutex
	machines  map[string]*machine  // guarded by mu; by name
	restoring []savedMachine       // guarded by mu; of the last run, not adopted again yet
	outgoing  map[string]*outgoing // guarded by mu; live, by token
	incoming  map[string]*incoming // guarded by mu; live, by token
	ended     []Status             // guarded by mu; oldest first, at most endedKept
	tombstone map[string]*record   // guarded by mu; ended destinations, by token
}

var errShutdown = errors.New("the daemon is stopping")

// NewHost opens the state directory, binds the listeners and takes up what an
// earlier daemon left: machines, and relocations in any phase. Problems with
// single machines are logged and shown as events, not returned.
func NewHost(ctx context.Context, cfg HostConfig) (*Host, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Template == nil {
		cfg.Template = func(string) qemu.Template { return qemu.Template{} }
	}
	setDefault(&cfg.DemandChannels, DefaultDemandChannels)
	setDefault(&cfg.PrecacheChannels, DefaultPrecacheChannels)
	setDefault(&cfg.FaultReaders, DefaultFaultReaders)
	cfg.FaultSource = cmp.Or(cfg.FaultSource, FaultAuto)
	if !slices.Contains(FaultSources, cfg.FaultSource) {
		return nil, fmt.Errorf("fault source %q: choose one of %q", cfg.FaultSource, FaultSources)
	}
	if cfg.deadlines == (deadlines{}) {
		cfg.deadlines = defaultDeadlines
	}
	j, err := openJournal(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	cache, err := openCache(cfg.Cache)
	if err != nil {
		cfg.Log.Error("nothing is kept of machines that leave", "err", err)
		cache.cfg.Size = 0
	}
	h := &Host{
		cache: cache,
		cfg:   cfg, log: cfg.Log, journal: j, events: newEvents(),
		in:        pagecache.NewPool(uint64(max(0, cfg.Bandwidth))),
		out:       pagecache.NewPool(uint64(max(0, cfg.Bandwidth))),
		machines:  make(map[string]*machine),
		outgoing:  make(map[string]*outgoing),
		incoming:  make(map[string]*incoming),
		tombstone: make(map[string]*record),
	}
	h.ctx, h.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	for _, addr := range cfg.Listen {
		l, err := tcp.Listen(addr, tcp.ListenOptions{TLS: cfg.ServerTLS, Admit: h.admit, Failed: h.refused, Tuning: h.tuning()})
		if err != nil {
			h.Close()
			if errors.Is(err, unix.EADDRINUSE) {
				err = fmt.Errorf("%w; another program has that address, a pagewarpd perhaps: end it, or choose another `listen`", err)
			}
			return nil, fmt.Errorf("listen for peers: %w", err)
		}
		h.listeners = append(h.listeners, l)
	}
	h.sayFaultSource()
	h.recover(ctx)
	h.learnVMM()
	return h, nil
}

func setDefault(p *int, def int) {
	if *p <= 0 {
		*p = def
	}
}

// Addrs returns the addresses that the host listens on, ports resolved.
func (h *Host) Addrs() []string {
	var out []string
	for _, l := range h.listeners {
		out = append(out, l.Addr().String())
	}
	return out
}

// Serve accepts peers until Close. It returns nil after Close.
func (h *Host) Serve() error {
	var wg sync.WaitGroup
	errs := make([]error, len(h.listeners))
	for i, l := range h.listeners {
		wg.Go(func() {
			for {
				conn, err := l.Accept(h.ctx)
				if err != nil {
					if h.ctx.Err() == nil {
						errs[i] = fmt.Errorf("accept on %s: %w", l.Addr(), err)
					}
					return
				}
				h.dispatch(conn)
			}
		})
	}
	wg.Wait()
	if len(h.listeners) == 0 {
		<-h.ctx.Done()
	}
	return errors.Join(errs...)
}

// usualVMM is the program that machines of this host's architecture have, where the
// template names none.
var usualVMM = map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[runtime.GOARCH]

// learnVMM asks the VMM that arriving machines will most likely have for its version and
// machine types, in the background, so that the first of them need not wait for that (55
// ms on the third machine of docs/SPECIFICATION.md). One that does not answer, or is not
// there, is a matter of the machine that wants it.
func (h *Host) learnVMM() {
	if len(h.listeners) == 0 {
		return // nothing can arrive
	}
	binary := cmp.Or(h.cfg.Template("").Binary, usualVMM)
	h.wg.Go(func() { h.programs.Learn(h.ctx, binary) })
}

// Close stops the host. Relocations before their switch-over roll back; those
// past it keep their journals, so that a new daemon goes on: their VMMs and
// userfaultfds live outside this process. Close waits for all of that.
func (h *Host) Close() error {
	h.cancel(errShutdown)
	for _, l := range h.listeners {
		l.Close()
	}
	h.wg.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.machines {
		m.vm.Close()
	}
	return nil
}

// Subscribe returns the events newer than after, then each new one, until
// cancel is called.
func (h *Host) Subscribe(after uint64) (<-chan Event, func()) { return h.events.subscribe(after) }

// Statuses returns the live relocations and the last ended ones, oldest first.
func (h *Host) Statuses() []Status {
	h.mu.Lock()
	out := append([]Status(nil), h.ended...)
	var live []*transfer
	for _, o := range h.outgoing {
		live = append(live, o.transfer)
	}
	for _, in := range h.incoming {
		live = append(live, in.transfer)
	}
	h.mu.Unlock()
	for _, t := range live {
		out = append(out, t.Status())
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Started.Before(out[j].Started) })
	return out
}

// Cancel rolls the relocation of a machine back and waits for the rollback. It
// returns [ErrTooLate] past the switch-over.
func (h *Host) Cancel(ctx context.Context, name string) error {
	h.mu.Lock()
	m := h.machines[name]
	var o *outgoing
	if m != nil {
		o = m.busy
	}
	h.mu.Unlock()
	switch {
	case m == nil:
		err := h.unknown(name)
		if errors.Is(err, ErrBusy) {
			err = fmt.Errorf("%w; only its source can cancel it, before the switch-over", err)
		}
		return fmt.Errorf("cancel %s: %w", name, err)
	case o == nil:
		return fmt.Errorf("cancel %s: %w", name, ErrIdle)
	case !o.abandon(errors.New("cancelled by the operator")):
		return fmt.Errorf("cancel %s: %w; see `pagewarp status %s`", name, ErrTooLate, name)
	}
	select {
	case <-o.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cancel %s: the rollback goes on: %w", name, ctx.Err())
	}
}

// SetHostBandwidth changes the cap of all relocations to this host together, and
// that of all from it, in bytes per second; 0 lifts it. Relocations share it max-min
// fair; their demand is counted and never waits.
func (h *Host) SetHostBandwidth(bytesPerSecond int64) {
	now := time.Now()
	h.in.SetRate(uint64(max(0, bytesPerSecond)), now)
	h.out.SetRate(uint64(max(0, bytesPerSecond)), now)
}

// HostBandwidth returns the cap of SetHostBandwidth, in bytes per second; 0 is none.
func (h *Host) HostBandwidth() int64 { return int64(h.out.Rate()) }

// SetBandwidth caps the precache of a relocation, in bytes per second; 0 lifts
// the cap. The destination does it; a source passes the wish on. In the drain of a
// relocation that is on demand only, precache begins.
func (h *Host) SetBandwidth(name string, bytesPerSecond int64) error {
	if bytesPerSecond < 0 {
		return fmt.Errorf("bandwidth %d: it must not be negative (0 lifts the cap)", bytesPerSecond)
	}
	h.mu.Lock()
	var found *transfer
	for _, in := range h.incoming {
		if in.rec.VM == name {
			found = in.transfer
		}
	}
	for _, o := range h.outgoing {
		if o.rec.VM == name {
			found = o.transfer
		}
	}
	_, known := h.machines[name]
	h.mu.Unlock()
	switch {
	case found != nil:
		return found.setBandwidth(bytesPerSecond)
	case known:
		return fmt.Errorf("bandwidth of %s: %w", name, ErrIdle)
	}
	return fmt.Errorf("bandwidth of %s: %w", name, ErrUnknownMachine)
}

// remember moves an ended relocation from the live maps to the history.
func (h *Host) remember(t *transfer) {
	s := t.Status()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.endedLocked(s)
	if t.rec.Role == RoleSource {
		delete(h.outgoing, t.rec.Token)
		return
	}
	delete(h.incoming, t.rec.Token)
	if t.rec.Phase.Final() {
		h.bury(t.rec)
	}
}

// endedLocked adds to the history. What falls out of it at its source is forgotten: the
// journal of a destination is a tombstone, that of a source is for the history alone.
func (h *Host) endedLocked(s Status) {
	if len(h.ended) == endedKept {
		if old := h.ended[0]; old.Role == RoleSource && old.Phase.Final() {
			h.journal.forget(old.Role, old.Session)
		}
		h.ended = h.ended[:copy(h.ended, h.ended[1:])]
	}
	h.ended = append(h.ended, s)
}

// bury keeps the word of how a relocation ended here, for a source that returns
// late. Past maxTombstones the oldest goes. The caller holds h.mu.
func (h *Host) bury(rec *record) {
	h.tombstone[rec.Token] = rec
	if len(h.tombstone) <= maxTombstones {
		return
	}
	oldest := rec
	for _, r := range h.tombstone {
		if r.Ended.Before(oldest.Ended) {
			oldest = r
		}
	}
	delete(h.tombstone, oldest.Token)
	h.journal.remove(oldest)
}

// newToken draws a session token.
func newToken() (string, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("draw a session token: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

func tokenBytes(s string) (b [32]byte) {
	// Tokens come from newToken or from a record whose length was checked.
	hex.Decode(b[:], []byte(s))
	return b
}
