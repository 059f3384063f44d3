package rdma

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

// Channel is the page channel that RDMA rides on; *tcp.Conn is one.
type Channel interface {
	Kind() transport.Kind
	Features() transport.Features
	SetSide(transport.Side)
	SendSide(h transport.Header, body []byte) error
	Done() <-chan struct{}
}

// Source names the memory of one region of a frozen image.
type Source struct {
	transport.Region
	// Path is its file, on tmpfs or hugetlbfs, which we must be allowed to open
	// for writing: kernels before 6.2 pin a shared mapping only if it is writable.
	// Nothing is written. Of an object of the character device it is the memory
	// (OpenMemory of package kmod; /proc/self/fd/N opens it anew), not the node.
	Path string
	// Offset of the region's first page in the file, in bytes.
	Offset int64
}

// Pin says when the image is registered.
type Pin string

// The ways to register.
const (
	// PinLazy registers a chunk when the destination first wants a page of it.
	PinLazy Pin = "lazy"
	// PinAll registers everything as soon as the image is frozen, a chunk after
	// the other, those that are asked for first.
	PinAll Pin = "all"
	// PinODP registers as PinLazy does and pins nothing: the device takes a page when
	// it is READ. Few devices can.
	PinODP Pin = "odp"
)

// ParsePin reads a Pin; empty is PinLazy.
func ParsePin(s string) (Pin, error) {
	switch p := Pin(s); p {
	case "":
		return PinLazy, nil
	case PinLazy, PinAll, PinODP:
		return p, nil
	}
	return "", fmt.Errorf("%q is no way to pin memory for RDMA: 'lazy', 'all' or 'odp'", s)
}

// ExportOptions are the choices of a source.
type ExportOptions struct {
	Pin Pin
	// Budget bounds the registered, and so pinned, memory in bytes; 0 leaves it to
	// the kernel (RLIMIT_MEMLOCK). What does not fit goes by FETCH.
	Budget uint64
	// Report, if not nil, is told once of each kind of trouble. It must not wait.
	Report func(error)
	// DeadAfter bounds the time of a SEND. Default 5 s.
	DeadAfter time.Duration
}

// gapBytes is the longest hole that is registered together with the data around
// it, rather than left out: a registration costs some µs, and a hole's memory,
// which pinning allocates, is given back with the image.
const gapBytes = 256 << 10

// Export is a frozen image that can be read from. It is safe for concurrent use.
type Export struct {
	dev     *Device
	opt     ExportOptions
	regions map[uint32]*exported
	order   []*exported
	used    atomic.Uint64 // registered bytes
	told    [troubles]sync.Once
	sent    *SendStats
}

// exported is one region. Its mutex is held through the registration of a chunk.
type exported struct {
	Source
	fd    int
	mem   []byte
	unit  uint64 // pages of a chunk
	holes bool   // its file system knows holes

	mu     sync.Mutex
	chunks map[uint64]*chunk // guarded by mu; by number
}

// chunk is what was found out about one chunk.
type chunk struct {
	count   uint32 // pages described
	windows []window
	mrs     []*region
	err     error
}

// NewExport opens the files of an image that is about to be frozen; it registers
// nothing yet.
func NewExport(dev *Device, sources []Source, o ExportOptions) (*Export, error) {
	if o.Pin == PinODP && !dev.caps.odp {
		return nil, fmt.Errorf("RDMA device %s has no on-demand paging for READs (--rdma-pin odp): pin the image, by 'lazy' or 'all'", dev.port.Device)
	}
	if o.Pin == PinODP && softRoCE(dev.port.Device) {
		return nil, fmt.Errorf("RDMA device %s is soft-RoCE, whose READs of memory that is paged on demand bring wrong bytes where the path MTU is below the page's size (seen on Linux 6.18, --rdma-pin odp): pin the image, by 'lazy' or 'all'", dev.port.Device)
	}
	if o.DeadAfter <= 0 {
		o.DeadAfter = 5 * time.Second
	}
	e := &Export{dev: dev, opt: o, sent: new(SendStats), regions: make(map[uint32]*exported)}
	if err := dev.hold(); err != nil {
		return nil, err
	}
	for _, s := range sources {
		x, err := openExported(s)
		if err != nil {
			e.Close()
			return nil, fmt.Errorf("export region %d (%q) for RDMA: %w", s.ID, s.Name, err)
		}
		e.regions[s.ID] = x
		e.order = append(e.order, x)
	}
	return e, nil
}

// softRoCE says whether a device is one of rdma_rxe's, which alone have this attribute.
func softRoCE(device string) bool {
	_, err := os.Stat(filepath.Join(sysfs, device, "parent"))
	return err == nil
}

func openExported(s Source) (*exported, error) {
	fd, err := unix.Open(s.Path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open for pinning", Path: s.Path, Err: err}
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR {
		err = fmt.Errorf("%s is a device, whose holes cannot be found: export the memory behind it, which its module opens", s.Path)
	}
	var fs sysmem.FSInfo
	if err == nil {
		fs, err = sysmem.FSOf(fd)
	}
	var mem []byte
	if err == nil {
		mem, err = sysmem.MapShared(fd, s.Offset, int64(s.Pages)*int64(s.PageSize), true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &exported{Source: s, fd: fd, mem: mem, unit: max(1, chunkBytes/uint64(s.PageSize)),
		holes: fs.Kind != sysmem.FSHugetlbfs, chunks: make(map[uint64]*chunk)}, nil
}

// Close takes every key back: from here on no READ of the image succeeds. End the
// channels first.
func (e *Export) Close() error {
	var err error
	for _, x := range e.order {
		for _, c := range x.chunks {
			for _, r := range c.mrs {
				err = errors.Join(err, r.close())
			}
		}
		err = errors.Join(err, sysmem.Unmap(x.mem), unix.Close(x.fd))
	}
	e.order, e.regions = nil, nil
	e.dev.drop()
	return err
}

// Registered returns the bytes that are registered now.
func (e *Export) Registered() uint64 { return e.used.Load() }

// Sent counts the answers by SEND of all channels.
func (e *Export) Sent() *SendStats { return e.sent }

// trouble is a kind of it, of which the first is told.
type trouble int

const (
	notSetUp trouble = iota
	notRegistered
	notSent
	notTakenBack
	troubles
)

func (e *Export) report(kind trouble, err error) {
	if e.opt.Report != nil {
		e.told[kind].Do(func() { e.opt.Report(err) })
	}
}

// begins checks that a chunk begins at page first, if it is a page of the export's.
func (e *Export) begins(region uint32, first uint64) error {
	if x := e.regions[region]; x != nil && (first >= x.Pages || first%x.unit != 0) {
		return fmt.Errorf("%w: MAP of page %d of region %d, where no chunk begins", transport.ErrMalformed, first, region)
	}
	return nil
}

// chunk registers the chunk that begins at page first, or returns what was done.
func (e *Export) chunk(region uint32, first uint64) (*chunk, error) {
	if err := e.begins(region, first); err != nil {
		return nil, err
	}
	x := e.regions[region]
	if x == nil {
		return nil, fmt.Errorf("region %d is not exported for RDMA", region)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if c := x.chunks[first]; c != nil {
		return c, nil
	}
	c := e.describe(x, first)
	x.chunks[first] = c
	if c.err != nil {
		e.report(notRegistered, c.err)
	}
	return c, nil
}

// describe finds the data of a chunk and registers it. x.mu is held.
func (e *Export) describe(x *exported, first uint64) *chunk {
	end := min(first+x.unit, x.Pages)
	c := &chunk{count: uint32(end - first)}
	at := first
	for at < end {
		from, to, err := x.data(at, end)
		if err != nil {
			c.err = err
			return c
		}
		if from >= end {
			if at == first { // nothing but hole: as far as it goes, in whole chunks
				last := x.Pages
				if from < last {
					last = from - from%x.unit
				}
				c.count = uint32(min(last-first, (1<<31)/x.unit*x.unit))
			}
			break
		}
		if err := e.register(x, c, from, to); err != nil {
			e.release(x, c)
			c.err = err
			return c
		}
		at = to
	}
	return c
}

// data finds the next stretch of data in [at, end), with short holes taken in;
// from is the start of the next data, at or after end if there is none before.
func (x *exported) data(at, end uint64) (from, to uint64, err error) {
	if !x.holes {
		return at, end, nil
	}
	ps := uint64(x.PageSize)
	gap := max(1, gapBytes/ps)
	for {
		s, t, err := sysmem.NextData(x.fd, x.Offset+int64(at*ps))
		if errors.Is(err, io.EOF) {
			if to == 0 {
				return x.Pages, x.Pages, nil
			}
			return from, to, nil
		}
		if err != nil {
			return 0, 0, err
		}
		a, b := uint64(s-x.Offset)/ps, (uint64(t-x.Offset)+ps-1)/ps
		switch {
		case to == 0 && a >= end:
			return a, a, nil
		case to == 0:
			from = a
		case a >= end || a-to >= gap:
			return from, to, nil
		}
		if to = min(b, end); to == end {
			return from, to, nil
		}
		at = to
	}
}

func (e *Export) register(x *exported, c *chunk, from, to uint64) error {
	ps := uint64(x.PageSize)
	size := (to - from) * ps
	how := readable
	if e.opt.Pin == PinODP {
		how = readableODP
	}
	if used := e.used.Add(size); how == readable && e.opt.Budget != 0 && used > e.opt.Budget {
		e.used.Add(-size)
		return fmt.Errorf("the budget of %d bytes for registered memory is used up (--rdma-budget)", e.opt.Budget)
	}
	mem := x.mem[from*ps : to*ps]
	r, err := e.dev.register(mem, how)
	if err != nil {
		e.used.Add(-size)
		return err
	}
	c.mrs = append(c.mrs, r)
	c.windows = append(c.windows, window{first: from, count: uint32(to - from), rkey: r.rkey, addr: addressOf(mem)})
	return nil
}

// release takes back what a chunk has registered so far.
func (e *Export) release(x *exported, c *chunk) {
	for i, r := range c.mrs {
		if err := r.close(); err != nil {
			e.report(notTakenBack, err)
		}
		e.used.Add(-uint64(c.windows[i].count) * uint64(x.PageSize))
	}
	c.mrs, c.windows = nil, nil
}
