package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a QEMU process that this daemon, or one before it, started. It is
// held by a pidfd, so that no signal reaches another process of the same pid.
type Process struct {
	// PID and Start (clock ticks since boot) name the process; immutable.
	PID   int
	Start uint64

	pidfd *os.File
	log   logFile       // immutable
	done  chan struct{} // closed when it has ended, err being set

	mu       sync.Mutex
	err      error // guarded by mu: how it ended
	clean    bool  // guarded by mu: with exit status 0
	released bool  // guarded by mu
}

// Adopt takes over a process that an earlier daemon started. ErrProcessGone: the
// process has ended, or its pid now belongs to another.
func Adopt(pid int, start uint64, logPath string) (*Process, error) {
	p, err := openProcess(pid, logFile{path: logPath})
	if err != nil {
		return nil, err
	}
	now, err := startTime(pid)
	if err == nil && now != start {
		err = detailed(ErrProcessGone, "pid %d started at %d and not at %d: the pid was reused", pid, now, start)
	}
	if err != nil {
		p.pidfd.Close()
		return nil, err
	}
	p.Start = start
	go p.watch(nil)
	return p, nil
}

func openProcess(pid int, log logFile) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, detailed(ErrProcessGone, "no process has pid %d", pid)
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of pid %d: %w", pid, err)
	}
	return &Process{PID: pid, pidfd: os.NewFile(uintptr(fd), "pidfd"), log: log, done: make(chan struct{})}, nil
}

// watch waits on the pidfd, which is readable once the process has ended
// (pidfd_open(2)), without holding a thread.
func (p *Process) watch(cmd *exec.Cmd) {
	raw, err := p.pidfd.SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 0)
			return err == nil && n > 0
		})
	}
	if err != nil {
		return // released
	}
	what := detailed(ErrExited, "pid %d", p.PID)
	if cmd != nil {
		cmd.Wait()
		what = detailed(ErrExited, "pid %d, %s", p.PID, cmd.ProcessState)
	}
	p.mu.Lock()
	p.err, p.clean = what, cmd != nil && cmd.ProcessState.Success()
	p.mu.Unlock()
	close(p.done)
	p.pidfd.Close()
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is nil while the process lives, then says how it ended: ErrExited.
func (p *Process) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Clean reports whether the process has ended with exit status 0, as a QEMU does whose guest
// has powered off, or that was told to quit. Of a process that an earlier daemon has started
// that is not known: false.
func (p *Process) Clean() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.clean
}

// exitSoon gives a process whose monitor has closed a moment to be gone.
func (p *Process) exitSoon() error {
	select {
	case <-p.done:
	case <-time.After(time.Second):
	}
	return p.Err()
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	raw, err := p.pidfd.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
		err = errors.Join(err, cerr)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("kill QEMU pid %d: %w", p.PID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, CommandTimeout)
	defer cancel()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill QEMU pid %d: it is still there (stuck in the kernel?): %w", p.PID, contextError(ctx))
	}
}

// Release stops watching the process, which runs on; Done will not close. A child
// that ends after Release stays a zombie until this process ends.
func (p *Process) Release() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.released {
		return nil
	}
	p.released = true
	if err := p.pidfd.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("release QEMU pid %d: %w", p.PID, err)
	}
	return nil
}

// SpawnConfig is how to start a destination's QEMU.
type SpawnConfig struct {
	Argv    []string // of DestinationArgv
	Dir     string   // working directory; empty is the daemon's
	Env     []string // added to the daemon's environment
	LogPath string   // gets standard output and error, mode 0600, appended
	QMPPath string   // the daemon's monitor in Argv
}

// spawnWait bounds the start of a QEMU whose context has no nearer deadline.
const spawnWait = 30 * time.Second

// Spawn starts QEMU in a session of its own, where the daemon's end does not
// reach it, connects to its monitor and checks that it awaits a migration. On an
// error nothing is left running. Errors: ErrBinary, ErrMachineType, ErrNoMemory
// and ErrExited with the end of the log, ErrRunState, ErrTimeout.
func Spawn(ctx context.Context, c SpawnConfig) (*VM, *Process, error) {
	ctx, cancel := context.WithTimeout(ctx, spawnWait)
	defer cancel()
	if len(c.Argv) == 0 {
		return nil, nil, detailed(ErrArgv, "it is empty")
	}
	path, err := findBinary(c.Argv[0])
	if err != nil {
		return nil, nil, err
	}
	if err := checkSocketPath(c.QMPPath); err != nil {
		return nil, nil, err
	}
	log, err := os.OpenFile(c.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open QEMU's log: %w", err)
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd) // what an earlier QEMU said is not its doing
	if err != nil {
		return nil, nil, fmt.Errorf("open QEMU's log: %w", err)
	}
	cmd := exec.Command(path, c.Argv[1:]...)
	cmd.Args[0] = c.Argv[0]
	cmd.Dir, cmd.Env = c.Dir, append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, detailed(ErrBinary, "start %s: %w", path, err)
	}
	// A daemon that the kernel spares when memory runs out must not make its
	// children, which have all the memory, exempt too.
	os.WriteFile(procPath(cmd.Process.Pid, "oom_score_adj"), []byte("0"), 0) // refused only where it was 0 already
	p, err := openProcess(cmd.Process.Pid, logFile{path: c.LogPath, from: from})
	if err == nil {
		p.Start, err = startTime(p.PID)
		if errors.Is(err, ErrProcessGone) {
			err = nil // a child not yet waited for: it has ended, watch says how
		}
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, nil, err
	}
	go p.watch(cmd)
	v, err := p.connect(ctx, c.QMPPath)
	if err != nil {
		if kerr := p.Kill(context.WithoutCancel(ctx)); kerr != nil {
			err = errors.Join(err, kerr)
		}
		if errors.Is(err, ErrMachineType) {
			err = fmt.Errorf("%w (-machine %s)", err, machineOf(c.Argv))
		}
		return nil, nil, fmt.Errorf("start %s: %w", path, err)
	}
	return v, p, nil
}

// connect waits for the monitor of a process that is starting.
func (p *Process) connect(ctx context.Context, qmpPath string) (*VM, error) {
	tick := time.NewTicker(2 * time.Millisecond) // while it starts only: QEMU tells nobody that it listens
	defer tick.Stop()
	for {
		v, err := ConnectProcess(ctx, qmpPath, p)
		if err == nil {
			s, err := v.RunState(ctx)
			if err == nil && s.Status != "inmigrate" {
				err = detailed(ErrRunState, "QEMU pid %d is %q instead of awaiting a migration; its arguments need -incoming defer", p.PID, s.Status)
			}
			if err != nil {
				err = v.died(err)
				v.Close()
				return nil, err
			}
			return v, nil
		}
		select {
		case <-p.done:
			return nil, p.startError()
		default:
		}
		if !errors.Is(err, ErrMonitorMissing) && !errors.Is(err, ErrMonitorDead) && !errors.Is(err, ErrDisconnected) {
			return nil, err
		}
		select {
		case <-tick.C:
		case <-p.done:
			return nil, p.startError()
		case <-ctx.Done():
			return nil, fmt.Errorf("QEMU pid %d has not opened %s%s: %w", p.PID, qmpPath, p.log.suffix(), contextError(ctx))
		}
	}
}

// startError names why a QEMU ended at once, by its last words.
func (p *Process) startError() error {
	tail := p.log.tail()
	kind := ErrExited
	for _, k := range []struct {
		words string
		err   error
	}{
		{"unsupported machine type", ErrMachineType},
		{"Cannot allocate memory", ErrNoMemory},
		{"No space left on device", ErrNoMemory},
		{"cannot set up guest memory", ErrNoMemory},
		{"unable to map backing store", ErrNoMemory},
	} {
		if strings.Contains(tail, k.words) {
			kind = k.err
			break
		}
	}
	if kind == ErrExited {
		return fmt.Errorf("%w; the end of %s: %s", p.Err(), p.log.path, tail)
	}
	return fmt.Errorf("%w: %w; the end of %s: %s", kind, p.Err(), p.log.path, tail)
}

// machineOf is the machine type of a command line; QEMU's own message lacks it.
func machineOf(argv []string) string {
	p, err := ParseArgv(argv)
	if err != nil {
		return ""
	}
	kind := ""
	for _, a := range p.Args {
		if o, err := a.options(); err == nil && (a.Name == "machine" || a.Name == "M") && o.Kind("type") != "" {
			kind = o.Kind("type")
		}
	}
	return kind
}

func findBinary(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil && filepath.IsAbs(name) {
		return "", detailed(ErrBinary, "%w: install the source's QEMU here, or set binary in the destination's template", err)
	}
	if err != nil {
		return "", detailed(ErrBinary, "%w: install QEMU (Debian: qemu-system-x86), or set binary in the destination's template", err)
	}
	return path, nil
}

// ConnectProcess is Connect for a process of Spawn or Adopt, whose end and last
// words then appear in the errors of the VM. Another process at that socket is
// an error.
func ConnectProcess(ctx context.Context, qmpPath string, p *Process) (*VM, error) {
	v, err := Connect(ctx, qmpPath)
	if err != nil {
		if exit := p.Err(); exit != nil {
			err = fmt.Errorf("%w: %w%s", err, exit, p.log.suffix())
		}
		return nil, err
	}
	if v.PID != p.PID {
		v.Close()
		return nil, fmt.Errorf("QMP socket %s belongs to pid %d, not to pid %d", qmpPath, v.PID, p.PID)
	}
	v.log, v.own = p.log, p
	return v, nil
}

// Ended asks the kernel, now, whether the process has ended or is about to;
// Done follows a moment later: a killed process is first rid of its memory,
// which may take long, and runs no instruction of its own meanwhile.
func (p *Process) Ended() bool {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return true // released: it had ended
	}
	ended := false
	cerr := raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		ended = err == nil && n == 1 || exiting(p.PID)
	})
	return ended || cerr != nil
}
