package faultd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pagewarp/pagewarp/pagecache"
	"github.com/pagewarp/pagewarp/transport"
)

// EventKind is the kind of an [Event].
type EventKind uint8

// Kinds of events. All but Fault are changes of the layout of the memory.
const (
	Fault  EventKind = iota // a thread waits for a page
	Remove                  // pages were given back and read as zero from now on
	Unmap                   // pages are not mapped any more
	Moved                   // the mapping of the pages is elsewhere now
	Forked                  // the process forked; its child is not served
)

// String names the kind.
func (k EventKind) String() string {
	switch k {
	case Fault:
		return "fault"
	case Remove:
		return "remove"
	case Unmap:
		return "unmap"
	case Moved:
		return "move"
	case Forked:
		return "fork"
	}
	return fmt.Sprintf("event %d", uint8(k))
}

// Event is what a fault source reports, in pages of a region.
type Event struct {
	Kind   EventKind
	Region uint32 // region id; undefined for Forked
	Page   uint64 // the faulting page, or the first of the range
	Count  uint64 // pages; 1 for a fault
}

// FaultReader takes events off a fault source. One goroutine reads it, locked
// to its thread.
type FaultReader interface {
	// Read waits for events and fills buf with as many as there are. It returns
	// ErrStopped after Stop; any other error is fatal to the session.
	Read(buf []Event) (int, error)
	// Stop ends the present and every later Read; it may come from anywhere.
	Stop()
	// Close frees the reader, after the last Read has returned.
	Close() error
}

// EagerReader is a FaultReader that need not sleep where a fault is about to come.
type EagerReader interface {
	FaultReader
	// Soon says that a fault is likely: the next Read tries for it before it sleeps,
	// for longest at most. It is for the goroutine that reads.
	Soon(longest time.Duration)
}

// FaultSource is where the faults of a machine come from.
type FaultSource interface {
	// NewReader adds a reader; each event goes to one of them.
	NewReader() (FaultReader, error)
	// Release takes the engine out of the memory's path: whoever waits goes on,
	// and no touch faults into the source again. It is called once, when every
	// page is resident or zero.
	Release() error
}

// Installer makes pages visible to the machine. Calls are concurrent. An error
// that wraps ErrBusy is retried once the pending events have been read.
type Installer interface {
	// Install shows the pages of r. Where the memory has a Placer, src is nil, the
	// content is in place, and who waits is woken. Where it has none, src holds
	// the content, contiguous in memory that the kernel may read, and the engine
	// calls Wake afterwards. A page that is visible already is left alone.
	Install(r transport.Range, src [][]byte) error
	// Zero shows the pages of r, which read as zero, and wakes who waits. A page
	// that exists already is shown as it is.
	Zero(r transport.Range) error
	// Wake has the threads that wait for a page of r take their fault again.
	Wake(r transport.Range) error
}

// Placer is memory that can be written in place before it is visible: a second
// mapping of a shared file, or of the character device.
type Placer interface {
	// Place sets dst[i] to the writable memory of page r.First+i, all of them.
	Place(r transport.Range, dst [][]byte)
	// Discard empties pages that were written and will not be installed.
	Discard(r transport.Range) error
	// NextData returns the first run of pages in [from, pages) that have memory
	// behind them, written by whomever; ok is false if there is none.
	NextData(region uint32, from uint64) (first, count uint64, ok bool, err error)
}

// Writer is memory with a Placer that takes the content of a page more cheaply
// by a system call than by stores: a fresh page of a file need not be zeroed
// before it is filled, and costs no page fault in the alias. (64 pages of tmpfs
// at a time, with their CONTINUE, on the machine of docs/SPECIFICATION.md: 1.4 µs
// a page against 2.8 µs.)
type Writer interface {
	// Write puts src, the content of all pages of r and contiguous in memory,
	// behind them. They are not visible yet. An error that wraps
	// transport.ErrNoMemory says that there is no room now.
	Write(r transport.Range, src [][]byte) error
}

// PageReader reads memory with a Placer, visible or not.
type PageReader interface {
	// ReadPage copies a page of a region to dst, one page long. A page without memory
	// reads as zero and gets none by that. An error that wraps transport.ErrNoMemory
	// says that there is no room behind dst.
	ReadPage(region uint32, page uint64, dst []byte) error
}

// Memory is one kind of guest memory: where faults come from, how pages become
// visible, and, where that is possible, a place to write them before.
type Memory struct {
	Faults  FaultSource
	Install Installer
	Place   Placer // nil: pages are staged in buffers of the engine's
	// Write, if not nil, is used in the stead of stores to what Place gives by
	// precache channels whose fetcher does not place pages by itself
	// (transport.InPlace), or has them in memory of its own (transport.TakeSink),
	// and for pages that are not reserved. Not by demand channels: writes to one file exclude each
	// other (inode lock), so that a page in demand would wait for a batch.
	Write Writer
	// Read, if not nil, reads pages that are candidates of others.
	Read PageReader
	// Reserve, if not nil, allocates memory for [Engine.Reserve].
	Reserve Reserver
}

// Sentinels that a [Memory] returns and the engine understands.
var (
	// ErrStopped: a reader was stopped, as asked for.
	ErrStopped = errors.New("fault source: stopped")
	// ErrBusy: the memory's layout is changing; retry after reading events.
	ErrBusy = errors.New("memory layout is changing")
	// ErrGone: the machine's process has exited. Fatal to the session.
	ErrGone = errors.New("the machine's process is gone")
)

// Region is one region of the machine and what is known of its pages.
type Region struct {
	transport.Region
	// Residency has Pages pages. It stays the caller's and must outlive the
	// engine. One that was taken over from another engine has had its Recover.
	Residency *pagecache.Residency
}

// Opener makes the index'th channel of a kind, Demand or Precache. It blocks
// until there is one or ctx is done: the engine waits for a new channel by
// calling it. An error, other than that of ctx, is fatal to the session.
type Opener func(ctx context.Context, kind transport.Kind, index int) (transport.Fetcher, error)

// Config describes a session. Zero values of the optional fields mean their
// defaults.
type Config struct {
	Regions []Region
	Memory  Memory
	Open    Opener

	// DemandChannels and PrecacheChannels are the numbers of channels. Default 1
	// and 1; no more than 64 of each.
	DemandChannels   int
	PrecacheChannels int
	// Readers is the number of threads that read faults. Default 1: all readers
	// of a userfaultfd are woken by each fault, so more of them pay only where
	// there are many vCPUs and idle cores.
	Readers int
	// BlockingDemand says that Receive of a demand channel waits in the system
	// call, so that its goroutine is to be locked to a thread.
	BlockingDemand bool
	// Outstanding bounds the demand fetches in flight, a power of two from 64 to 4096. At the
	// bound further faults wait, in the order of their reading. Default 1024.
	Outstanding int
	// ReadAround is the number of neighbours that a demand fetch takes along, at
	// most, within an aligned group of that size; a power of two. Default 1: the
	// page alone.
	ReadAround uint32
	// Priority raises the priority of the threads on the fault path
	// (internal/sched: real-time while they use little of a CPU, else nice -10).
	// Refusal is logged, not fatal.
	Priority bool

	// BulkNice is added to the nice value of the precache workers, which then
	// have threads of their own: the guest and its faults get the CPU first.
	// Default 0: they share Go's threads and their priority.
	BulkNice int

	// PrecacheOff starts with precache switched off; SetPrecache changes it.
	PrecacheOff bool
	// Bandwidth caps precache, in bytes a second on the wire; 0 is no cap.
	Bandwidth uint64
	// Share, if not nil, is this session's part of what several may take together;
	// demand is counted there, too, and never waits. It stays the caller's.
	Share *pagecache.Share
	// BatchPages is the most pages of one precache fetch. Default 32. At least two
	// fetches are in flight, and what is in flight competes for the link and the
	// CPUs with a demand fetch: on a link where 32 pages take longer than 0.5 ms a
	// fetch has fewer, down to 16 (docs/PRECACHE.md).
	BatchPages uint32
	// WindowBytes is the most precache in flight on one channel. Default 16 MiB.
	WindowBytes uint64
	// GateHold is the longest time for which demand holds a precache fetch back:
	// under demand without end precache still posts one fetch per GateHold and
	// channel. Default 50 µs: long enough for an answer on a fast and idle network
	// to come first; with a longer one, a guest that faults without end was seen to
	// halve the drain's rate.
	GateHold time.Duration
	// DemandPace is the least time between two sends of demand fetches, beyond a
	// burst, while precache waits for CPUs for more than a fifth of its time: see
	// pacer. Default 0: a fault never waits. It needs BulkNice.
	DemandPace time.Duration
	// Policies are what the engine's own planner asks, in this order; nil is
	// pagecache.DefaultPolicies, an empty list is on demand only.
	Policies []pagecache.Policy
	// Held starts the planner held: only pages listed by Prefer are precached,
	// until Hold(false).
	Held bool
	// Planner replaces the engine's own choice of what to precache. Its regions
	// must be those above, and Policies is not used.
	Planner *pagecache.Planner
	// Record, if not nil, is told of every fault.
	Record Recorder

	// MaxDamage is how many channels in a row may end without one good answer
	// between them because the peer broke the protocol, until the session fails.
	// Default 8.
	MaxDamage int
	Log       *slog.Logger // default: slog.Default()
}

const (
	maxChannels = 64
	// maxOutstanding is what one channel takes (tcp.MaxOutstanding): others may be down.
	maxOutstanding = 4096
	faultBatch     = 64 // events of one read, fetches of one write
)

func (c *Config) setDefaults() error {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.DemandChannels, 1)
	def(&c.PrecacheChannels, 1)
	def(&c.Readers, 1)
	def(&c.Outstanding, 1024)
	def(&c.MaxDamage, 8)
	if c.ReadAround == 0 {
		c.ReadAround = 1
	}
	if c.BatchPages == 0 {
		c.BatchPages = 32
	}
	if c.WindowBytes == 0 {
		c.WindowBytes = 16 << 20
	}
	if c.GateHold == 0 {
		c.GateHold = 50 * time.Microsecond
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	switch {
	case len(c.Regions) == 0:
		return errors.New("no regions")
	case c.Memory.Faults == nil || c.Memory.Install == nil:
		return errors.New("no fault source or no installer")
	case c.Open == nil:
		return errors.New("no opener of channels")
	case c.DemandChannels < 1 || c.DemandChannels > maxChannels || c.PrecacheChannels < 0 || c.PrecacheChannels > maxChannels:
		return fmt.Errorf("%d demand and %d precache channels: 1 to %d of each are possible",
			c.DemandChannels, c.PrecacheChannels, maxChannels)
	case c.Readers < 1 || c.Readers > 64:
		return fmt.Errorf("%d fault readers: 1 to 64 are possible", c.Readers)
	case c.Outstanding < faultBatch || c.Outstanding > maxOutstanding || c.Outstanding&(c.Outstanding-1) != 0:
		return fmt.Errorf("%d outstanding demand fetches: a power of two from %d to %d is possible", c.Outstanding, faultBatch, maxOutstanding)
	case c.ReadAround&(c.ReadAround-1) != 0 || c.ReadAround > 256:
		return fmt.Errorf("read-around of %d pages: a power of two up to 256 is possible", c.ReadAround)
	}
	for _, r := range c.Regions {
		if r.Residency == nil || r.Residency.Pages() != r.Pages || r.Pages == 0 {
			return fmt.Errorf("region %d (%q) of %d pages has no residency of that size", r.ID, r.Name, r.Pages)
		}
	}
	return nil
}
