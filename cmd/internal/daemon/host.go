package daemon

import (
	"context"
	"crypto/tls"
	"log/slog"

	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/relocate"
	"github.com/pagewarp/pagewarp/relocate/qemu"
)

// Adopter knows the machines of this host.
type Adopter interface {
	// Adopt takes the machine behind a QMP socket under a name;
	// relocate.ErrExists where the name is taken.
	Adopt(ctx context.Context, name, qmpPath string) (relocate.Machine, error)
	// Forget drops the name and leaves the machine alone.
	Forget(name string) error
	// Machines lists the adopted machines.
	Machines(ctx context.Context) []relocate.Machine
}

// Mover relocates machines.
type Mover interface {
	// Relocate starts a relocation to the daemon at the address to, and returns
	// after the first checks. The relocation does not end with ctx.
	Relocate(ctx context.Context, name, to string, o relocate.Options) (relocate.Status, error)
	// Cancel rolls back and waits for it; relocate.ErrTooLate past the switch.
	Cancel(ctx context.Context, name string) error
	// SetBandwidth caps precache of a running relocation; 0 lifts the cap.
	SetBandwidth(name string, bytesPerSecond int64) error
}

// Observer shows what goes on.
type Observer interface {
	// Statuses returns live relocations and the last ended ones.
	Statuses() []relocate.Status
	// Subscribe sends the events with numbers above after, then each new one.
	// The channel closes when cancel is called, or when the subscriber lags.
	Subscribe(after uint64) (events <-chan relocate.Event, cancel func())
}

// Cacher shows what is kept of machines that have left.
type Cacher interface {
	// Cache lists it, what was used longest ago first.
	Cache() ([]relocate.CacheEntry, error)
	// CacheDrop removes what is kept of one; relocate.ErrNotCached.
	CacheDrop(vm string) error
}

// Limiter caps what relocations take together.
type Limiter interface {
	// SetHostBandwidth caps precache of all relocations together, in bytes per
	// second; 0 lifts the cap. HostBandwidth returns the cap.
	SetHostBandwidth(bytesPerSecond int64)
	HostBandwidth() int64
}

// Host is what the API serves.
type Host interface {
	Cacher
	Limiter
	Adopter
	Mover
	Observer
}

// Engine is a Host with its life cycle.
type Engine interface {
	Host
	// FaultSource says what would catch the faults of a machine that arrived now,
	// and why it is not the device; the error says why nothing can.
	FaultSource() (source, reason string, err error)
	// Addrs returns the addresses for peers, ports resolved.
	Addrs() []string
	// Serve accepts peers until Close and then returns nil.
	Serve() error
	// Close stops accepting, rolls back what is before its switch-over, keeps
	// the journals of what is past it, and waits for all of that.
	Close() error
}

// EngineConfig is what an engine is made from.
type EngineConfig struct {
	StateDir  string
	Listen    []string
	ServerTLS *tls.Config // nil: no TLS
	// ClientTLS is asked for each connection to another host. nil: no TLS.
	ClientTLS func() *tls.Config
	// Template returns the current template of a machine that arrives.
	Template func(vm string) qemu.Template
	Relocate config.Relocate
	Engine   config.Engine
	RDMA     config.RDMA
	Cache    config.Cache
	Log      *slog.Logger
}
