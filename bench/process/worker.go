package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pagewarp/pagewarp/bench/workloads"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/internal/touch"
)

// Worker is a process under test, as the harness sees it.
type Worker struct {
	// Load is what it does. Immutable, as is Memory: the file of its memory, or
	// empty if that is private.
	Load   workloads.Load
	Memory string

	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it was reaped
}

// Pid is the process id, as the host's processes have it.
func (w *Worker) Pid() int { return w.cmd.Process.Pid }

// Pages is the size of the memory in pages of 4 KiB.
func (w *Worker) Pages() int { return (&task{Load: w.Load}).pages() }

// StartWorker starts a worker at a host, over memory that is private or else in
// a file of the host's folder, and waits until it works. It ends with ctx, with
// the rig, or by Kill.
func StartWorker(ctx context.Context, h *rig.Host, p *Probe, l workloads.Load, private bool, log string) (*Worker, error) {
	t := task{Probe: p.path, Load: l}
	if !private {
		var err error
		if t.Memory, err = makeMemory(h, &t); err != nil {
			return nil, err
		}
	}
	w, err := start(ctx, h, t, log)
	if err != nil {
		return nil, err
	}
	err = w.begun(ctx, p, beginLimit)
	if err == nil && w.ended() {
		err = fmt.Errorf("the worker at host %s has ended%s", h.Name, w.said())
	}
	if err != nil {
		w.Kill()
		return nil, err
	}
	return w, nil
}

// beginLimit bounds the start of a worker, which fills its memory, at 1 GB/s or so.
const beginLimit = 3 * time.Minute

// begun waits until the worker works, or has ended.
func (w *Worker) begun(ctx context.Context, p *Probe, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %v", limit))
	defer cancel()
	return poll(ctx, "begin its work", func() bool { return atomic.LoadUint32(&p.h.ready) == 1 || w.ended() })
}

// Continue starts a worker at another host that goes on with the work of p when
// told by p.Run, over empty memory, which is private if private. block makes its
// userfaultfd one that blocks. It returns the worker's userfaultfd, which the
// caller closes, and the address of its memory.
func Continue(ctx context.Context, h *rig.Host, p *Probe, l workloads.Load, private, block bool, log string) (_ *Worker, fd int, addr uint64, err error) {
	t := task{Probe: p.path, Load: l, Socket: filepath.Join(h.Dir, "worker.sock"), Block: block}
	if !private {
		if t.Memory, err = makeMemory(h, &t); err != nil {
			return nil, -1, 0, err
		}
	}
	l2, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: t.Socket, Net: "unixpacket"})
	if err != nil {
		return nil, -1, 0, err
	}
	defer l2.Close()
	w, err := start(ctx, h, t, log)
	if err != nil {
		return nil, -1, 0, err
	}
	if err := l2.SetDeadline(time.Now().Add(handoverLimit)); err != nil {
		return nil, -1, 0, err
	}
	c, err := l2.AcceptUnix()
	if err != nil {
		return nil, -1, 0, fmt.Errorf("wait for the worker at host %s: %w%s", h.Name, err, w.said())
	}
	defer c.Close()
	var o handover
	if fd, err = touch.ReceivePacket(c, &o); err == nil && fd < 0 {
		err = errors.New("no userfaultfd came with it")
	}
	if err != nil {
		return nil, -1, 0, fmt.Errorf("take the worker's memory over: %w", err)
	}
	return w, fd, o.Addr, nil
}

// handoverLimit bounds the start of a second worker, which takes milliseconds.
const handoverLimit = 10 * time.Second

func makeMemory(h *rig.Host, t *task) (string, error) {
	path := filepath.Join(h.Dir, "memory")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return path, f.Truncate(int64(t.pages()) * pageBytes)
}

func start(ctx context.Context, h *rig.Host, t task, log string) (*Worker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	// CRIU finds it again by its path, and takes what is appended for unchanged.
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := h.Command(ctx, self)
	cmd.Env = append(touch.FaultingEnv(), envTask+"="+string(b))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // CRIU moves whole sessions
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a worker at host %s: %w", h.Name, err)
	}
	w := &Worker{Load: t.Load, Memory: t.Memory, cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ends is of no interest: it is killed
		close(w.done)
	}()
	return w, nil
}

func (w *Worker) ended() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// said is what the worker wrote, after a colon.
func (w *Worker) said() string { return lastWords(w.log) }

// lastWords is the end of a log, after a colon.
func lastWords(path string) string {
	b, err := os.ReadFile(path)
	text := strings.TrimSpace(string(b))
	if err != nil || text == "" {
		return ""
	}
	return ": " + text[max(0, len(text)-1500):]
}

// Kill ends the process, in whatever fault it is, and waits for its end.
func (w *Worker) Kill() {
	// It fails only if the process has ended, which is what is wanted.
	_ = w.cmd.Process.Kill()
	<-w.done
}
