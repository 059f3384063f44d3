package process

import (
	"bufio"
	"context"
	"debug/buildinfo"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/internal/uffd"
)

// gopeerPort is where the Go peer's source listens.
const gopeerPort = "7997"

// goPeer is the program in bench/peers/userfaultfd-go: the handler of that
// library, one page a fault, over one TCP connection. It brings nothing by itself.
type goPeer struct{ name, binary string }

func (g *goPeer) Name() string  { return g.name }
func (g *goPeer) Private() bool { return false } // the source's: its server maps it

func (g *goPeer) Available(context.Context) (version, program string, err error) {
	program, err = exec.LookPath(g.binary)
	if err != nil {
		return "", g.binary, fmt.Errorf("there is no Go peer at %s: run 'make peers', which needs the Go module proxy and a C compiler: %w", g.binary, err)
	}
	version, err = moduleVersion(program, "github.com/loopholelabs/userfaultfd-go")
	return version, program, err
}

const goPeerSettings = "the library's handler, one fault after the other, one page each; one TCP connection without delay, a source that answers from mapped memory; private memory at the destination; both programs and the connection are there before the command; no TLS; the process is not carried over, another goes on over its memory"

// Move leaves the handler running, as the process may need it: it ends with ctx,
// or with the rig.
func (g *goPeer) Move(ctx context.Context, j *Job) (m Moved, err error) {
	m.Settings = goPeerSettings
	pages := uint64(j.Worker.Pages())
	source := net.JoinHostPort(j.A.Addr.String(), gopeerPort)
	if _, err := startPeer(ctx, j.A, filepath.Join(j.Dir, "serve.log"), g.binary, "serve", source, j.Worker.Memory); err != nil {
		return m, err
	}
	socket := filepath.Join(j.B.Dir, "peer.sock")
	handle, err := startPeer(ctx, j.B, filepath.Join(j.Dir, "handle.log"), g.binary, "handle", socket, source, strconv.FormatUint(pages, 10))
	if err != nil {
		return m, err
	}
	m.Started = j.Begin()
	if err := g.adopt(ctx, j, socket); err != nil {
		return m, err
	}
	if err := j.Probe.Stop(ctx); err != nil {
		return m, err
	}
	m.Frozen = time.Now()
	j.Probe.Run()
	if err := j.Probe.Resumed(ctx, m.Frozen); err != nil {
		return m, err
	}
	enough := time.NewTimer(j.Span)
	defer enough.Stop()
	select {
	case <-handle.all:
		m.Completed, m.BytesReported = time.Now(), pages*pageBytes
	case <-enough.C:
		served := handle.served.Load()
		m.BytesReported = served * pageBytes
		m.Notes = append(m.Notes, fmt.Sprintf("some %d of %d pages were still at the source %v after the process had resumed", pages-served, pages, j.Span))
	case <-handle.ended:
		return m, fmt.Errorf("the handler of the Go peer has ended%s", lastWords(handle.log))
	case <-ctx.Done():
		return m, context.Cause(ctx)
	}
	return m, nil
}

// adopt starts the process at the destination, registers its memory as the
// library does, and gives its userfaultfd to the handler.
func (g *goPeer) adopt(ctx context.Context, j *Job, socket string) error {
	w, fd, addr, err := Continue(ctx, j.B, j.Probe, j.Worker.Load, true, true, filepath.Join(j.Dir, "worker-b.log"))
	if err != nil {
		return err
	}
	u, err := uffd.Open(fd)
	if err != nil {
		return err
	}
	defer u.Close()
	if _, err := u.API(0); err != nil {
		return err
	}
	if _, err := u.Register(addr, uint64(w.Pages())*pageBytes, uffd.ModeMissing); err != nil {
		return err
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(handoverLimit)); err != nil {
		return err
	}
	// The library's format: the address, big-endian, then two descriptors, of
	// which it takes the second.
	if err := binary.Write(c, binary.BigEndian, addr); err != nil {
		return err
	}
	if _, _, err := c.WriteMsgUnix([]byte{0}, unix.UnixRights(u.Fd(), u.Fd()), nil); err != nil {
		return err
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return fmt.Errorf("the handler of the Go peer did not take the userfaultfd: %w", err)
	}
	return nil
}

// peerProcess is one end of the Go peer.
type peerProcess struct {
	log        string
	served     atomic.Uint64
	all, ended chan struct{} // closed when it says so, or has ended
}

// startPeer starts an end inside a host, and waits until it is ready.
func startPeer(ctx context.Context, h *rig.Host, log, binary string, args ...string) (*peerProcess, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := h.Command(ctx, binary, args...)
	cmd.Stderr = f
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the Go peer: %w", err)
	}
	p := &peerProcess{log: log, all: make(chan struct{}), ended: make(chan struct{})}
	ready := make(chan struct{})
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.hear(lines.Text(), ready)
		}
		_ = cmd.Wait() // it is killed, or its log says why it ended
		close(p.ended)
	}()
	select {
	case <-ready:
		return p, nil
	case <-p.ended:
		return nil, fmt.Errorf("the Go peer (%s) has ended%s", args[0], lastWords(log))
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// hear takes one line of an end; each of "ready" and "done" comes once.
func (p *peerProcess) hear(line string, ready chan struct{}) {
	word, number, _ := strings.Cut(line, " ")
	switch word {
	case "ready":
		close(ready)
	case "done":
		close(p.all)
	case "pages":
		if n, err := strconv.ParseUint(number, 10, 64); err == nil {
			p.served.Store(n)
		}
	}
}

// moduleVersion is the version of a module in a Go program.
func moduleVersion(program, module string) (string, error) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return "", fmt.Errorf("%s is no Go program: %w", program, err)
	}
	for _, d := range info.Deps {
		if d.Path == module {
			return d.Version, nil
		}
	}
	return "", fmt.Errorf("%s is not built with %s: run 'make peers'", program, module)
}
