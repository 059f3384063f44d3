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
}

// Engine is a page server, a fault daemon and a process whose memory they
// serve, all running.
type Engine struct {
	// Region is the memory in the touching process.
	Region *touch.Region

	image          *Image
	toucher        *touch.Proc
	server, daemon *child
}

// NewEngine starts the three processes over an image. Precache is off until
// Precache is called. Close ends them.
func NewEngine(ctx context.Context, im *Image, o Options) (_ *Engine, err error) {
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
	t := task{Pages: im.Pages, PageSize: im.PageSize, Demand: o.Demand, Precache: o.Precache, Codec: o.Codec, Addr: o.Addr, RDMA: o.RDMA}
	if o.TLS {
		if t.Cert, t.Key, err = floor.Certificate(); err != nil {
			return nil, err
		}
	}
	e := &Engine{image: im}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	err = o.CPUs.AtDestination(func() (err error) {
		if e.toucher, err = touch.Start(ctx); err != nil {
			return err
		}
		return e.startDaemon(ctx, o, t)
	})
	if err != nil {
		return nil, err
	}
	r, err := e.daemon.read()
	if err != nil {
		return nil, err
	}
	t.Role, t.Addr = "server", r.Addr
	err = o.CPUs.AtSource(func() (err error) {
		e.server, err = start(ctx, o.Source, t, im.file)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, c := range []*child{e.server, e.daemon} {
		if _, err := c.read(); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// startDaemon makes the memory, maps it in the touching process, and starts the
// fault daemon with that process's userfaultfd.
func (e *Engine) startDaemon(ctx context.Context, o Options, t task) error {
	size := int64(t.Pages) * int64(t.PageSize)
	fd, err := sysmem.CreateMemfd("bench-memory", size, int(t.PageSize))
	if err != nil {
		return err
	}
	memory := os.NewFile(uintptr(fd), "memory")
	defer memory.Close()
	if e.Region, err = e.toucher.MapShared(fd, size); err != nil {
		return err
	}
	n, err := e.toucher.Userfaultfd()
	if err != nil {
		return err
	}
	u := os.NewFile(uintptr(n), "userfaultfd")
	defer u.Close()
	t.Role, t.Mapping = "daemon", e.Region.Addr
	e.daemon, err = start(ctx, o.Destination, t, u, memory)
	return err
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
