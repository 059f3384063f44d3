package process

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/pagewarp/pagewarp/bench/fault"
	"github.com/pagewarp/pagewarp/bench/report"
)

// own is our page server and fault daemon on the process's memory, the parts of
// pagewarpd that serve a guest's.
type own struct{ name string }

func (o *own) Name() string  { return o.name }
func (o *own) Private() bool { return false }

func (o *own) Available(context.Context) (version, program string, err error) {
	program, err = os.Executable()
	return report.BuildVersions().Pagewarp, program, err
}

func (o *own) Move(ctx context.Context, j *Job) (m Moved, err error) {
	codec := cmp.Or(j.Codec, "auto")
	m.Settings = "page server and fault daemon with their defaults, codec " + codec + ", no TLS; shared memory; all is started within its time; the process is not carried over, another goes on over its memory"
	m.Started = j.Begin()
	image, err := os.Open(j.Worker.Memory)
	if err != nil {
		return m, err
	}
	defer image.Close()
	next, fd, addr, err := Continue(ctx, j.B, j.Probe, j.Worker.Load, false, false, filepath.Join(j.Dir, "worker-b.log"))
	if err != nil {
		return m, err
	}
	userfaultfd := os.NewFile(uintptr(fd), "userfaultfd")
	defer userfaultfd.Close()
	there, err := os.OpenFile(next.Memory, os.O_RDWR, 0)
	if err != nil {
		return m, err
	}
	defer there.Close()
	e, err := fault.Attach(ctx, fault.Memory{Image: image, Pages: uint64(j.Worker.Pages()), PageSize: pageBytes, There: there, Mapping: addr, Userfaultfd: userfaultfd},
		fault.Options{Source: j.A.Command, Destination: j.B.Command, Addr: net.JoinHostPort(j.B.Addr.String(), "0"), Codec: codec})
	if err != nil {
		return m, err
	}
	// The process runs on without the daemon if all is there; else it waits in a
	// fault until the rig ends it.
	defer e.Close()
	if err := j.Probe.Stop(ctx); err != nil {
		return m, err
	}
	m.Frozen = time.Now()
	j.Probe.Run()
	if err := e.Precache(); err != nil {
		return m, err
	}
	drained := make(chan error, 1)
	var s fault.Stats
	go func() {
		var err error
		s, err = e.Drain()
		drained <- err
	}()
	select {
	case err = <-drained:
	case <-ctx.Done():
		e.Close() // ends the daemon, and so the question to it
		<-drained
		return m, context.Cause(ctx)
	}
	if err == nil {
		// On a busy machine all may be there before the process gets a CPU.
		err = j.Probe.Resumed(ctx, m.Frozen)
	}
	if err != nil {
		return m, err
	}
	j.Worker.Kill()
	m.Completed, m.BytesReported = time.Now(), s.BytesWire
	m.Notes = append(m.Notes, fmt.Sprintf("%d pages on demand, %d by precache", s.PagesDemand, s.PagesPrecache))
	return m, nil
}
