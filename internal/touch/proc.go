package touch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/sysmem"
)

// ErrDead is returned by whatever waits on a process that has ended.
var ErrDead = errors.New("touch process has ended")

// Proc is a touch process.
type Proc struct {
	ctx  context.Context
	cmd  *exec.Cmd
	conn *net.UnixConn
	done chan struct{} // closed when the connection has ended

	mu      sync.Mutex
	next    uint64                 // guarded by mu
	pending map[uint64]chan answer // guarded by mu; nil after the end
}

type answer struct {
	reply
	fd int
}

// Start starts a touch process, which ends with ctx, Kill or Close, one of
// which must come about; Close or Kill also free what the Proc holds.
func Start(ctx context.Context) (*Proc, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start touch process: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "touch-socket")
	defer theirs.Close()
	conn, err := PacketConn(pair[0])
	if err != nil {
		return nil, fmt.Errorf("start touch process: %w", err)
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(FaultingEnv(), envMark+"=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("start touch process: %w", err)
	}
	p := &Proc{ctx: ctx, cmd: cmd, conn: conn, done: make(chan struct{}), pending: make(map[uint64]chan answer)}
	go p.receive()
	if _, _, err := p.call(request{Op: "hello"}, -1); err != nil {
		p.Kill()
		return nil, fmt.Errorf("start touch process: %w (is touch.Main called first in main or TestMain?)", err)
	}
	return p, nil
}

// FaultingEnv is our environment with what a Go process that faults needs: more Ps than
// threads, since each thread in a fault holds one; no preemption signals, since
// each would make a waiting thread fault anew; no garbage collection.
func FaultingEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if name != "GOMAXPROCS" && name != "GODEBUG" && name != "GOGC" && name != "GOTRACEBACK" && name != "GOCOVERDIR" {
			env = append(env, kv)
		}
	}
	return append(env, fmt.Sprintf("GOMAXPROCS=%d", MaxThreads+2), "GODEBUG=asyncpreemptoff=1", "GOGC=off",
		"GOTRACEBACK=none")
}

// receive hands answers to those who wait, until the connection ends.
func (p *Proc) receive() {
	for {
		var a answer
		var err error
		if a.fd, err = ReceivePacket(p.conn, &a.reply); err != nil {
			break
		}
		p.mu.Lock()
		ch := p.pending[a.ID]
		delete(p.pending, a.ID)
		p.mu.Unlock()
		if ch != nil {
			ch <- a // has room for the one answer
		} else if a.fd >= 0 {
			unix.Close(a.fd)
		}
	}
	p.mu.Lock()
	p.pending = nil
	p.mu.Unlock()
	close(p.done)
}

// call sends a request and waits for its answer.
func (p *Proc) call(r request, fd int) (reply, int, error) {
	ch := make(chan answer, 1)
	p.mu.Lock()
	if p.pending == nil {
		p.mu.Unlock()
		return reply{}, -1, fmt.Errorf("%s in touch process %d: %w", r.Op, p.Pid(), ErrDead)
	}
	p.next++
	r.ID = p.next
	p.pending[r.ID] = ch
	p.mu.Unlock()
	if err := SendPacket(p.conn, r, fd); err != nil {
		return reply{}, -1, fmt.Errorf("%s in touch process %d: %w: %w", r.Op, p.Pid(), ErrDead, err)
	}
	select {
	case a := <-ch:
		if a.Err != "" {
			return a.reply, a.fd, fmt.Errorf("%s in touch process %d: %s", r.Op, p.Pid(), a.Err)
		}
		return a.reply, a.fd, nil
	case <-p.done:
		return reply{}, -1, fmt.Errorf("%s in touch process %d: %w", r.Op, p.Pid(), ErrDead)
	case <-p.ctx.Done():
		return reply{}, -1, fmt.Errorf("%s in touch process %d: %w", r.Op, p.Pid(), context.Cause(p.ctx))
	}
}

// Pid is the process's number.
func (p *Proc) Pid() int { return p.cmd.Process.Pid }

// Userfaultfd has the process create a userfaultfd, non-blocking and without a
// handshake yet, and returns a descriptor of it, which the caller closes; the
// process keeps none.
func (p *Proc) Userfaultfd() (int, error) {
	_, fd, err := p.call(request{Op: "userfaultfd"}, -1)
	return fd, err
}

// MapShared maps the first size bytes of fd in the process, shared, readable
// and writable.
func (p *Proc) MapShared(fd int, size int64) (*Region, error) {
	info, err := sysmem.FSOf(fd)
	if err != nil {
		return nil, err
	}
	rep, _, err := p.call(request{Op: "map", Len: uint64(size)}, fd)
	return &Region{p: p, Addr: rep.Addr, Size: uint64(size), PageSize: uint64(info.PageSize)}, err
}

// MapPrivate maps size bytes of private anonymous memory in the process.
func (p *Proc) MapPrivate(size int64) (*Region, error) {
	rep, _, err := p.call(request{Op: "map", Len: uint64(size)}, -1)
	return &Region{p: p, Addr: rep.Addr, Size: uint64(size), PageSize: uint64(sysmem.PageSize)}, err
}

// Fork has the process fork; the child reads one byte at addr and ends. Fork
// returns that byte, or an error if the child died.
func (p *Proc) Fork(addr uint64) (byte, error) {
	rep, _, err := p.call(request{Op: "fork", Addr: addr}, -1)
	return byte(rep.Count), err
}

// Kill ends the process by SIGKILL, in whatever fault it is, and waits for its
// end.
func (p *Proc) Kill() {
	// Fails only if the process has ended, which is what is wanted.
	_ = p.cmd.Process.Kill()
	p.Close()
}

// Close ends the process and waits for its end.
func (p *Proc) Close() {
	// The process exits when its socket ends; how it ends is of no interest.
	p.conn.Close()
	_ = p.cmd.Wait()
	<-p.done
}
