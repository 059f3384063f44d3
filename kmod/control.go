package kmod

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Nodes of the device.
const (
	ControlPath = "/dev/pagewarp-control"
	NodeDir     = "/dev/pagewarp/"
)

// Sentinels. Others are the errnos of docs/UAPI.md, wrapped.
var (
	// ErrNoDevice: the module is not loaded. Use userfaultfd, or load it.
	ErrNoDevice = errors.New("the pagewarp kernel module is not loaded (modprobe pagewarp)")
	// ErrABI: the module is of another version than this program. Fatal.
	ErrABI = errors.New("the pagewarp kernel module speaks another version")
	// ErrStopped is returned by a [Reader] after its Stop.
	ErrStopped = errors.New("fault ring reader: stopped")
	// ErrGone: the process behind [ReaderConfig.PIDFD] has exited.
	ErrGone = errors.New("fault ring reader: the process is gone")
	// ErrDestroyed: the object was destroyed. Fatal to its session.
	ErrDestroyed = errors.New("the object was destroyed")
)

// State is what an object is at.
type State uint32

// States of an object; see docs/UAPI.md.
const (
	New      State = iota // no daemon yet
	Served                // a daemon is attached
	Orphaned              // the daemon is gone, pages are missing
	Plain                 // plain memory
	Frozen                // plain memory that nobody may write
)

// String names the state.
func (s State) String() string {
	names := [...]string{"new", "served", "orphaned", "plain", "frozen"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint32(s))
}

// Config describes an object to be made.
type Config struct {
	Name  string // 1 to 63 of A-Z a-z 0-9 . _ -, a letter or digit first
	Bytes uint64 // whole pages
	// PageSize is that of the object, in bytes: Info's PageSize, which 0 stands for, or
	// its HugePageSize.
	PageSize int
	Mode     os.FileMode // permission bits of the node
	UID      int         // owner of the node
	GID      int
	// Plain makes ordinary memory, with no page missing: for a source.
	Plain bool
	// Deadline, if not 0, is how long threads wait once the daemon is gone before
	// they get a SIGBUS: 1 ms to an hour. 0: they wait for the next daemon.
	Deadline time.Duration
}

// Info is what the module says of itself.
type Info struct {
	PageSize int // bytes of a page of an object that asks for no other
	// HugePageSize is what else an object's page can be: 2 MiB, or 0 where the kernel
	// or the module has none.
	HugePageSize int
	MaxBytes     uint64 // of one object
	MaxObjects   int
	MaxRing      int
	Objects      int // that there are
}

// Stat is an object's state and counters, which begin at its creation.
type Stat struct {
	Name        string
	ID          uint32
	State       State
	Bytes       uint64
	PageSize    int           // bytes
	Deadline    time.Duration // 0: none
	Faults      uint64        // touches of missing pages
	Posted      uint64        // entries put into rings
	Overflows   uint64        // faults that found the ring full
	Redelivered uint64        // entries posted again
	Wakes       uint64        // pages woken
	Killed      uint64        // touches that ended in SIGBUS
	Spun        uint64        // touches that found their page before they slept
}

// Control is the open control device. Its methods may be called concurrently.
type Control struct {
	fd int
}

// Open opens the control device. The error wraps ErrNoDevice where the module is
// not loaded, ErrABI where it is of another version.
func Open() (*Control, error) {
	fd, err := unix.Open(ControlPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ENXIO || err == unix.ENODEV {
		return nil, fmt.Errorf("open %s: %w", ControlPath, ErrNoDevice)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", ControlPath, err)
	}
	c := &Control{fd: fd}
	if _, err := c.Info(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close closes the control device; objects and daemons' ends stay. A second call does
// nothing.
func (c *Control) Close() error { return closeOnce(&c.fd) }

// closeOnce closes a descriptor, whose number may be another's soon.
func closeOnce(fd *int) error {
	n := *fd
	if *fd = -1; n < 0 {
		return nil
	}
	return unix.Close(n)
}

// Info asks the module what it is.
func (c *Control) Info() (Info, error) {
	var r rawInfo
	if err := ioctl(c.fd, ioGetInfo, &r); err != nil {
		return Info{}, fmt.Errorf("ask the pagewarp module what it is: %w", err)
	}
	if r.abi != abiVersion || r.entrySize != 32 || r.pageSize != pageBytes {
		return Info{}, fmt.Errorf("%w: version %d with pages of %d bytes, want %d and %d; install the one that came with this program",
			ErrABI, r.abi, r.pageSize, abiVersion, pageBytes)
	}
	return Info{PageSize: int(r.pageSize), HugePageSize: int(r.hugePageSize), MaxBytes: r.maxBytes, MaxObjects: int(r.maxObjects),
		MaxRing: int(r.maxRing), Objects: int(r.object)}, nil
}

func setName(dst *[nameLen]byte, name string) error {
	if name == "" || len(name) >= nameLen {
		return fmt.Errorf("object name %q: 1 to %d bytes are possible: %w", name, nameLen-1, unix.EINVAL)
	}
	copy(dst[:], name)
	return nil
}

// Create makes an object and returns the path of its node. EOPNOTSUPP: this kernel has
// no huge pages of shared memory.
func (c *Control) Create(cfg Config) (path string, err error) {
	r := rawCreate{bytes: cfg.Bytes, mode: uint32(cfg.Mode), uid: uint32(cfg.UID), gid: uint32(cfg.GID)}
	if err := setName(&r.name, cfg.Name); err != nil {
		return "", err
	}
	if cfg.PageSize != pageBytes { // else 0, which a module without page sizes takes as well
		r.pageSize = uint32(min(max(cfg.PageSize, 0), 1<<31))
	}
	if cfg.Plain {
		r.flags |= createPlain
	}
	if cfg.Deadline != 0 {
		r.policy, r.deadlineMS = 1, uint32(min(max(cfg.Deadline.Milliseconds(), 0), 1<<31))
	}
	if err := ioctl(c.fd, ioCreate, &r); err != nil {
		return "", fmt.Errorf("create object %q of %d bytes: %w%s", cfg.Name, cfg.Bytes, err, adviseCreate(err))
	}
	return NodeDir + cfg.Name, nil
}

func adviseCreate(err error) string {
	switch err {
	case unix.EINVAL:
		return " (see docs/UAPI.md for names, sizes, page sizes and deadlines)"
	case unix.EOPNOTSUPP:
		return " (this kernel has no huge pages of shared memory: leave the page size out, or boot one with CONFIG_TRANSPARENT_HUGEPAGE)"
	case unix.EEXIST:
		return " (destroy the old one, or choose another name)"
	}
	return ""
}

// Destroy removes an object; whoever waits for a page of it gets a SIGBUS.
func (c *Control) Destroy(name string) error {
	var r rawName
	if err := setName(&r.name, name); err != nil {
		return err
	}
	if err := ioctl(c.fd, ioDestroy, &r); err != nil {
		return fmt.Errorf("destroy object %q: %w", name, err)
	}
	return nil
}

// Reset empties plain memory that has no daemon: every page is missing again, and
// the object is new. It is for a VMM that must start before its memory comes:
// create the object plain, start the VMM, pause it, reset, attach. EBUSY: the
// object is frozen, not plain, or has a daemon.
func (c *Control) Reset(name string) error {
	var r rawName
	if err := setName(&r.name, name); err != nil {
		return err
	}
	if err := ioctl(c.fd, ioReset, &r); err != nil {
		return fmt.Errorf("reset object %q: %w", name, err)
	}
	return nil
}

// Shrink gives the pages from bytes on back for good.
func (c *Control) Shrink(name string, bytes uint64) error {
	r := rawShrink{bytes: bytes}
	if err := setName(&r.name, name); err != nil {
		return err
	}
	if err := ioctl(c.fd, ioShrink, &r); err != nil {
		return fmt.Errorf("shrink object %q to %d bytes: %w", name, bytes, err)
	}
	return nil
}

// Freeze stops all writes through the node of plain memory and returns the
// memory, read-only; the caller closes the descriptor.
func (c *Control) Freeze(name string) (fd int, err error) {
	return c.freeze(name, 0, "freeze")
}

// OpenMemory returns plain memory, read-only, and lets its users go on writing; the
// caller closes the descriptor.
func (c *Control) OpenMemory(name string) (fd int, err error) {
	return c.freeze(name, freezeOpen, "open the memory of")
}

func (c *Control) freeze(name string, flags uint32, what string) (fd int, err error) {
	r := rawFreeze{flags: flags}
	if err := setName(&r.name, name); err != nil {
		return -1, err
	}
	if err := ioctl(c.fd, ioFreeze, &r); err != nil {
		return -1, fmt.Errorf("%s object %q: %w", what, name, err)
	}
	return int(r.fd), nil
}

// Thaw allows writes again.
func (c *Control) Thaw(name string) error {
	_, err := c.freeze(name, freezeThaw, "thaw")
	return err
}

// Stat tells of one object.
func (c *Control) Stat(name string) (Stat, error) {
	var r rawStat
	if err := setName(&r.name, name); err != nil {
		return Stat{}, err
	}
	if err := ioctl(c.fd, ioStat, &r); err != nil {
		return Stat{}, fmt.Errorf("stat object %q: %w", name, err)
	}
	return r.decode(), nil
}

// List tells of all objects, in the order of their making.
func (c *Control) List() ([]Stat, error) {
	var list []Stat
	for next := uint32(0); ; {
		r := rawStat{id: next}
		err := ioctl(c.fd, ioList, &r)
		if err == unix.ENOENT {
			return list, nil
		}
		if err != nil {
			return list, fmt.Errorf("list objects: %w", err)
		}
		list = append(list, r.decode())
		if next = r.id + 1; next == 0 {
			return list, nil
		}
	}
}

func (r *rawStat) decode() Stat {
	return Stat{Name: unix.ByteSliceToString(r.name[:]), ID: r.id, State: State(r.state), Bytes: r.bytes, PageSize: int(r.pageSize),
		Deadline: time.Duration(r.deadlineMS) * time.Millisecond,
		Faults:   r.faults, Posted: r.posted, Overflows: r.overflows, Redelivered: r.redelivered,
		Wakes: r.wakes, Killed: r.killed, Spun: r.spun}
}

// Attach makes this process the daemon of an object, with a ring of so many
// entries, a power of two from MinRing to MaxRing. EBUSY: it has one.
func (c *Control) Attach(name string, ringEntries int) (*Daemon, error) {
	r := rawAttach{ringEntries: uint32(min(max(ringEntries, 0), 1<<31))}
	if err := setName(&r.name, name); err != nil {
		return nil, err
	}
	if err := ioctl(c.fd, ioAttach, &r); err != nil {
		return nil, fmt.Errorf("attach to object %q: %w", name, err)
	}
	d, err := NewDaemon(int(r.fd))
	if err != nil {
		unix.Close(int(r.fd))
		return nil, fmt.Errorf("attach to object %q: %w", name, err)
	}
	return d, nil
}
