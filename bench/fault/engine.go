package fault

import (
	"context"
	"fmt"
	"os"

	"github.com/pagewarp/pagewarp/bench/floor"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
)

// Options of an Engine. Zero values mean the defaults.
type Options struct {
	// CPUs says where the two ends run.
	CPUs floor.CPUs
	// Source and Destination make the commands of the two processes. Default:
	// here.
	Source, Destination Command
	// Addr is where the fault daemon listens. Default 127.0.0.1:0.
	Addr string
	// Demand and Precache are numbers of channels. Default 1 and 2.
	Demand, Precache int
	// Codec of precache: auto, none, s2, zstd. Default auto.
	Codec string
	// TLS runs all channels over mutual TLS.
	TLS bool
	// RDMA names the device by which pages come; empty is TCP.
	RDMA string
	// Reserve has the destination's memory allocated before the first page comes.
	Reserve bool
	// Land has READs land in place: of "demand", of "all", of no channel if empty. It
	// reserves, too.
	Land string
	// LentBytes is rdma.FetchOptions.LentBytes.
	LentBytes int
}

// Memory is the memory that is served, at both ends; the files stay the
// caller's.
type Memory struct {
	// Image is the source's, of so many pages of PageSize bytes. It must not change
	// once the destination's is touched.
	Image    *os.File
	Pages    uint64
	PageSize uint32
	// There is the file of the destination's, mapped shared at the address Mapping
	// of the process whose Userfaultfd this is.
	There       *os.File
	Mapping     uint64
	Userfaultfd *os.File
}

// Engine is a page server, a fault daemon and a process whose memory they
// serve, all running.
type Engine struct {
	// Region is the memory in the touching process; nil of Attach.
	Region *touch.Region

	image          *Image
	toucher        *touch.Proc
	server, daemon *child
}

// NewEngine starts the three processes over an image. Precache is off until
// Precache is called. Close ends them.
func NewEngine(ctx context.Context, im *Image, o Options) (_ *Engine, err error) {
	e := &Engine{image: im}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	m := Memory{Image: im.file, Pages: im.Pages, PageSize: im.PageSize}
	size := int64(im.Pages) * int64(im.PageSize)
	fd, err := sysmem.CreateMemfd("bench-memory", size, int(im.PageSize))
	if err != nil {
		return nil, err
	}
	m.There = os.NewFile(uintptr(fd), "memory")
	defer m.There.Close()
	err = o.CPUs.AtDestination(func() (err error) {
		e.toucher, err = touch.Start(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	if e.Region, err = e.toucher.MapShared(fd, size); err != nil {
		return nil, err
	}
	n, err := e.toucher.Userfaultfd()
	if err != nil {
		return nil, err
	}
	m.Userfaultfd, m.Mapping = os.NewFile(uintptr(n), "userfaultfd"), e.Region.Addr
	defer m.Userfaultfd.Close()
	return e, e.serve(ctx, m, o)
}

// Attach starts a page server and a fault daemon for the memory of a process of
// the caller's, which ends before Close. See NewEngine for the rest; there is
// nothing to Verify.
func Attach(ctx context.Context, m Memory, o Options) (*Engine, error) {
	e := &Engine{}
	if err := e.serve(ctx, m, o); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

// serve starts the fault daemon and the page server, which dials it.
func (e *Engine) serve(ctx context.Context, m Memory, o Options) (err error) {
	if o.Demand == 0 {
		o.Demand = 1
	}
	if o.Precache == 0 {
		o.Precache = 2
	}
	if o.Codec == "" {
		o.Codec = "auto"
	}
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	t := task{Role: "daemon", Pages: m.Pages, PageSize: m.PageSize, Demand: o.Demand, Precache: o.Precache, Codec: o.Codec, Addr: o.Addr, RDMA: o.RDMA, Mapping: m.Mapping,
		Reserve: o.Reserve, Land: o.Land, LentBytes: o.LentBytes}
	if o.TLS {
		if t.Cert, t.Key, err = floor.Certificate(); err != nil {
			return err
		}
	}
	err = o.CPUs.AtDestination(func() (err error) {
		e.daemon, err = start(ctx, o.Destination, t, m.Userfaultfd, m.There)
		return err
	})
	if err != nil {
		return err
	}
	r, err := e.daemon.read()
	if err != nil {
		return err
	}
	t.Role, t.Addr = "server", r.Addr
	err = o.CPUs.AtSource(func() (err error) {
		e.server, err = start(ctx, o.Source, t, m.Image)
		return err
	})
	if err != nil {
		return err
	}
	for _, c := range []*child{e.server, e.daemon} {
		if _, err := c.read(); err != nil {
			return err
		}
	}
	return nil
}

// Precache switches precache on.
func (e *Engine) Precache() error {
	_, err := e.daemon.call("precache")
	return err
}

// Drain waits until every page is there.
func (e *Engine) Drain() (Stats, error) {
	r, err := e.daemon.call("drain")
	return r.Stats, err
}

// Stats returns the counters of the daemon and the service times of the server.
func (e *Engine) Stats() (Stats, error) {
	r, err := e.daemon.call("stats")
	if err != nil {
		return Stats{}, err
	}
	s, err := e.server.call("stats")
	if err != nil {
		return Stats{}, err
	}
	for name, l := range s.Stats.Stages {
		r.Stats.Stages[name] = l
	}
	r.Stats.ServerMemory = s.Stats.Memory
	return r.Stats, nil
}

// ResetLatencies empties the daemon's histograms.
func (e *Engine) ResetLatencies() error {
	_, err := e.daemon.call("reset")
	return err
}

// Verify compares all pages that are no holes, read by the touching process,
// with the image.
func (e *Engine) Verify() error {
	bad := 0
	for at := 0; at < len(e.image.data); {
		first, n := e.image.data[at], 1
		for at+n < len(e.image.data) && e.image.data[at+n] == first+uint64(n) {
			n++
		}
		sums, err := e.Region.Sums(first, uint64(n))
		if err != nil {
			return err
		}
		for i, got := range sums {
			if got != e.image.sums[at+i] {
				bad++
			}
		}
		at += n
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d pages are wrong", bad, len(e.image.data))
	}
	return nil
}

// Close ends the processes.
func (e *Engine) Close() {
	// The toucher first: its threads may wait for pages.
	if e.toucher != nil {
		e.toucher.Kill()
	}
	for _, c := range []*child{e.daemon, e.server} {
		if c != nil {
			c.stop()
		}
	}
}
