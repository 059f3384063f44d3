package inject

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrDied: the process ended while we held it; a seccomp filter that kills
	// is one reason.
	ErrDied = errors.New("process died while it was traced")
	// ErrTimeout: the thread did not stop, or the system call did not return, in
	// time. The process was let go, restored where it could be.
	ErrTimeout = errors.New("time is up")
	// ErrUnsupported: this machine, or the process's instruction set, is not one
	// we know.
	ErrUnsupported = errors.New("injection is not supported")
)

const (
	defaultTimeout = 5 * time.Second
	// restoreGrace bounds the way back after an error.
	restoreGrace = time.Second

	ptraceEventStop = 128 // PTRACE_EVENT_STOP
	sysgoodTrap     = unix.SIGTRAP | 0x80
)

// Tracee is a stopped thread, good within the function given to Do.
type Tracee struct {
	pid, tid int
	insn     uint64 // address of a system call instruction
	saved    registers
	mask     uint64        // signals blocked before
	held     []unix.Signal // stopping signals to send again at the end
	deadline time.Time
	running  bool // within a call of ours, not known to have stopped
}

// Do stops a thread of process pid, runs f, which may run system calls in the
// thread, and lets the process go on as if nothing had happened. timeout bounds
// the whole; 0 is 5 s. f runs on a thread of its own; it must not keep t.
func Do(pid int, timeout time.Duration, f func(t *Tracee) error) error {
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	var err error
	onThread(func() (clean bool) {
		t := &Tracee{pid: pid, deadline: time.Now().Add(timeout)}
		clean, err = t.session(f)
		return clean
	})
	return err
}

// Syscall runs one system call in process pid and returns its result, or its
// errno as the error. Pointers among args are addresses in the process.
func Syscall(pid int, timeout time.Duration, nr uint64, args ...uint64) (uint64, error) {
	var ret uint64
	err := Do(pid, timeout, func(t *Tracee) (err error) {
		ret, err = t.Syscall(nr, args...)
		return err
	})
	return ret, err
}

// onThread runs f on a locked thread, as ptrace asks for. If f returns false the
// thread ends, so that the kernel detaches whatever it still traces; the main
// thread cannot end, and is not used.
func onThread(f func() bool) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onThread(f)
			runtime.UnlockOSThread()
		} else if f() {
			runtime.UnlockOSThread()
		}
	}()
	<-done
}

// session is Do on the tracing thread. clean is false if something may still be
// attached.
func (t *Tracee) session(f func(*Tracee) error) (clean bool, err error) {
	if len(syscallInsn) == 0 {
		return true, fmt.Errorf("%w on %s", ErrUnsupported, runtime.GOARCH)
	}
	if t.tid, err = liveThread(t.pid); err != nil {
		return true, err
	}
	if err := unix.PtraceSeize(t.tid); err != nil {
		return true, explainSeize(t.pid, err)
	}
	if err := t.stop(); err != nil {
		return errors.Is(err, ErrDied), fmt.Errorf("stop thread %d of process %d: %w", t.tid, t.pid, err)
	}
	err = t.prepare()
	if err == nil {
		err = f(t)
	}
	if errors.Is(err, ErrDied) {
		return true, err
	}
	if rerr := t.restore(); rerr != nil {
		return errors.Is(rerr, ErrDied),
			errors.Join(err, fmt.Errorf("restore thread %d of process %d: %w", t.tid, t.pid, rerr))
	}
	return true, err
}

// stop brings the running thread into an event stop; signals on their way are
// delivered first.
func (t *Tracee) stop() error {
	if err := unix.PtraceInterrupt(t.tid); err != nil {
		return gone(err)
	}
	for {
		ws, err := t.wait()
		if err != nil {
			return err
		}
		if int(ws)>>16 == ptraceEventStop {
			return nil
		}
		// Any other stop has used up the interrupt.
		if err := unix.PtraceInterrupt(t.tid); err != nil {
			return gone(err)
		}
		if err := unix.PtraceCont(t.tid, int(ws.StopSignal())); err != nil {
			return gone(err)
		}
	}
}

// prepare saves the state, and blocks all signals for the time being.
func (t *Tracee) prepare() (err error) {
	// Not before the stop, which is on the way to user mode: a process in the
	// middle of execve(2) has no code yet.
	if err := t.saved.load(t.tid); err != nil {
		return err
	}
	if at, ok := t.saved.blocked(); ok && holdsSyscall(t.pid, at) {
		t.insn = at
	} else if t.insn, err = findSyscall(t.pid); err != nil {
		return err
	}
	if err := unix.PtraceSetOptions(t.tid, unix.PTRACE_O_TRACESYSGOOD); err != nil {
		return fmt.Errorf("set trace options of thread %d: %w", t.tid, gone(err))
	}
	if err := sigmask(ptraceGetSigmask, t.tid, &t.mask); err != nil {
		return fmt.Errorf("save signal mask of thread %d: %w", t.tid, gone(err))
	}
	all := ^uint64(0)
	if err := sigmask(ptraceSetSigmask, t.tid, &all); err != nil {
		return fmt.Errorf("block signals of thread %d: %w", t.tid, gone(err))
	}
	return nil
}

// restore puts the thread back and detaches.
func (t *Tracee) restore() error {
	if end := time.Now().Add(restoreGrace); t.deadline.Before(end) {
		t.deadline = end
	}
	if t.saved.loaded() {
		// The kernel looks at a system call to be restarted only on its way out of
		// the stop for a signal or an interrupt, not out of a system call stop.
		if err := unix.PtraceInterrupt(t.tid); err != nil {
			return gone(err)
		}
		// A call of ours that never came back is ended by the interrupt alone. To
		// let it run on would race with the stop at its exit, and restart it.
		if !t.running {
			if err := unix.PtraceCont(t.tid, 0); err != nil {
				return gone(err)
			}
		}
		for {
			ws, err := t.wait()
			if err != nil {
				return err
			}
			if int(ws)>>16 == ptraceEventStop {
				break
			}
			// Any other stop has used up the interrupt.
			t.hold(ws.StopSignal())
			if err := unix.PtraceInterrupt(t.tid); err != nil {
				return gone(err)
			}
			if err := unix.PtraceCont(t.tid, 0); err != nil {
				return gone(err)
			}
		}
		if err := t.saved.store(t.tid); err != nil {
			return err
		}
		if err := sigmask(ptraceSetSigmask, t.tid, &t.mask); err != nil {
			return gone(err)
		}
	}
	for _, sig := range t.held {
		if err := unix.Tgkill(t.pid, t.tid, sig); err != nil {
			return gone(err)
		}
	}
	if err := unix.PtraceDetach(t.tid); err != nil {
		return gone(err)
	}
	return nil
}

// hold keeps a signal that cannot be blocked to send it again at the end.
func (t *Tracee) hold(sig unix.Signal) {
	if sig != unix.SIGTRAP && sig != sysgoodTrap {
		t.held = append(t.held, sig)
	}
}

// Syscall runs one system call in the thread and returns its result, or its
// errno as the error. Pointers among args are addresses in the process.
func (t *Tracee) Syscall(nr uint64, args ...uint64) (uint64, error) {
	if len(args) > 6 {
		return 0, fmt.Errorf("system call %d with %d arguments: 6 are possible", nr, len(args))
	}
	regs := t.saved
	regs.call(t.insn, nr, args)
	if err := regs.store(t.tid); err != nil {
		return 0, err
	}
	for _, when := range []string{"enter", "return from"} {
		if err := t.toSyscallStop(); err != nil {
			return 0, fmt.Errorf("%s system call %d in process %d: %w", when, nr, t.pid, err)
		}
	}
	if err := regs.load(t.tid); err != nil {
		return 0, err
	}
	got, ret := regs.result()
	if got != nr {
		return 0, fmt.Errorf("system call %d in process %d: the process did %d", nr, t.pid, int64(got))
	}
	if ret > ^uint64(0)-4096 {
		errno := unix.Errno(-ret)
		if errno > 511 {
			errno = unix.EINTR // the kernel's own codes for a restart
		}
		return 0, errno
	}
	return ret, nil
}

// toSyscallStop resumes the thread up to the entry to, or the exit from, a
// system call.
func (t *Tracee) toSyscallStop() error {
	for {
		if err := unix.PtraceSyscall(t.tid, 0); err != nil {
			return gone(err)
		}
		t.running = true
		ws, err := t.wait()
		if err != nil {
			return err
		}
		t.running = false
		sig := ws.StopSignal()
		switch {
		case int(ws)>>16 == ptraceEventStop:
		case sig == sysgoodTrap:
			return nil
		case sig == unix.SIGSYS:
			return fmt.Errorf("a seccomp filter of the process traps it: %w", unix.EPERM)
		case sig == unix.SIGSEGV || sig == unix.SIGILL || sig == unix.SIGBUS:
			return fmt.Errorf("the instruction at %#x raises %v", t.insn, sig)
		default:
			t.hold(sig)
		}
	}
}

// WriteMemory writes b at addr of the process.
func (t *Tracee) WriteMemory(addr uint64, b []byte) error {
	f, err := os.OpenFile("/proc/"+strconv.Itoa(t.pid)+"/mem", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("write to process %d: %w", t.pid, err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, int64(addr)); err != nil {
		return fmt.Errorf("write to process %d at %#x: %w", t.pid, addr, err)
	}
	return nil
}

// wait returns the next stop of the thread. There is no wait with a time limit
// for a ptrace stop, so it asks in growing intervals.
func (t *Tracee) wait() (unix.WaitStatus, error) {
	nap := 5 * time.Microsecond
	for {
		var ws unix.WaitStatus
		n, err := unix.Wait4(t.tid, &ws, unix.WNOHANG|unix.WALL, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, gone(err)
		case n == t.tid && ws.Stopped():
			return ws, nil
		case n == t.tid:
			if ws.Signaled() {
				return 0, fmt.Errorf("%w by %v", ErrDied, ws.Signal())
			}
			return 0, ErrDied
		}
		if time.Now().After(t.deadline) {
			return 0, ErrTimeout
		}
		ts := unix.NsecToTimespec(int64(nap))
		_ = unix.Nanosleep(&ts, nil) // an early return only asks sooner
		nap = min(nap*3/2, time.Millisecond)
	}
}

// gone makes ErrDied of the errors by which a dead tracee shows.
func gone(err error) error {
	if err == unix.ESRCH || err == unix.ECHILD {
		return fmt.Errorf("%w: %w", ErrDied, err)
	}
	return err
}
