package inject

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/internal/touch"
	"github.com/pagewarp/pagewarp/internal/uffd"
)

const patience = 5 * time.Second

func TestMain(m *testing.M) {
	touch.Main()
	if pid := os.Getenv(tracerEnv); pid != "" {
		tracerMain(pid)
	}
	goleak.VerifyTestMain(m)
}

// victim is a foreign process with pipes to it.
type victim struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startVictim(t *testing.T, attr *syscall.SysProcAttr, name string, args ...string) *victim {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &victim{t: t, cmd: cmd, in: in, out: bufio.NewReader(out)}
}

func (v *victim) pid() int { return v.cmd.Process.Pid }

func (v *victim) line() string {
	v.t.Helper()
	timer := time.AfterFunc(patience, func() { _ = v.cmd.Process.Kill() })
	defer timer.Stop()
	s, err := v.out.ReadString('\n')
	if err != nil {
		v.t.Fatalf("read from %s: %v", v.cmd.Path, err)
	}
	return strings.TrimSuffix(s, "\n")
}

// state waits until the process's main thread is in a state such as 'S' or 'T'.
func (v *victim) state(want byte) {
	v.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); runtime.Gosched() {
		if s := statusField(v.pid(), "State"); s != "" && s[0] == want {
			return
		}
	}
	v.t.Fatalf("process %d is never in state %c, now %s", v.pid(), want, statusField(v.pid(), "State"))
}

// take takes a userfaultfd, shows that it is one of that process, and closes it.
func (v *victim) take() {
	v.t.Helper()
	got, err := Userfaultfd(v.pid(), Options{})
	if err != nil {
		v.t.Fatal(err)
	}
	defer got.FD.Close()
	if f, err := got.FD.API(0); err != nil || f == 0 {
		v.t.Errorf("handshake on the taken descriptor: %v", err)
	}
	if left, err := FindUserfaultfds(v.pid()); err != nil || len(left) != 0 || got.Remote != -1 {
		v.t.Errorf("descriptors left in the process: %v, %v", left, err)
	}
	if tracer := statusField(v.pid(), "TracerPid"); tracer != "0" {
		v.t.Errorf("process is still traced by %s", tracer)
	}
}

func TestBlockedInRead(t *testing.T) {
	v := startVictim(t, nil, "cat")
	v.state('S')
	for i := range 20 {
		v.take()
		fmt.Fprintf(v.in, "line %d\n", i)
		if got := v.line(); got != fmt.Sprint("line ", i) {
			t.Fatalf("cat answers %q", got)
		}
	}
	v.in.Close()
	if err := v.cmd.Wait(); err != nil {
		t.Errorf("cat ended with %v", err)
	}
}

// TestBlockedInNanosleep: the sleep ends in time and well, so that the system
// call was restarted with what was left of it.
func TestBlockedInNanosleep(t *testing.T) {
	const naps = 600 * time.Millisecond
	v := startVictim(t, nil, "sleep", "0.6")
	began := time.Now()
	v.state('S')
	last := began
	for time.Since(began) < naps*8/10 {
		v.take()
		last = time.Now()
	}
	if err := v.cmd.Wait(); err != nil {
		t.Fatalf("sleep ended with %v", err)
	}
	took := time.Since(began)
	if took < naps*95/100 {
		t.Errorf("sleep of %v took %v", naps, took)
	}
	// One that had started anew would end a full nap after the last injection.
	if took >= last.Sub(began)+naps {
		t.Errorf("sleep of %v took %v, as if started anew at %v", naps, took, last.Sub(began))
	}
}

// TestBusy interrupts a computation between any two instructions.
func TestBusy(t *testing.T) {
	const size = 64 << 20
	v := startVictim(t, nil, "sha256sum")
	wrote := make(chan error, 1)
	go func() {
		_, err := io.CopyN(v.in, neverEnding('x'), size)
		wrote <- err
	}()
	taken := 0
loop:
	for {
		select {
		case err := <-wrote:
			if err != nil {
				t.Fatal(err)
			}
			break loop
		default:
			v.take()
			taken++
		}
	}
	// Not before: the victim exits when its input ends, which no injection survives.
	if err := v.in.Close(); err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.CopyN(h, neverEnding('x'), size); err != nil {
		t.Fatal(err)
	}
	sum, _, _ := strings.Cut(v.line(), " ")
	if want := hex.EncodeToString(h.Sum(nil)); sum != want {
		t.Errorf("sum %s after %d injections, want %s", sum, taken, want)
	}
	t.Logf("%d injections", taken)
}

// tracerEnv makes the test program a tracer, which has the process of that pid
// poll nothing for a second.
const tracerEnv = "PAGEWARP_TEST_TRACER"

func tracerMain(text string) {
	pid, err := strconv.Atoi(text)
	if err == nil {
		_, err = Syscall(pid, time.Minute, unix.SYS_POLL, 0, 0, 1000)
	}
	fmt.Fprintln(os.Stderr, "tracer:", err)
	os.Exit(1)
}

// TestTracerKilled: a process whose tracer is killed in the middle of a call
// goes on, if it was blocked in one of its own that may return for no reason.
func TestTracerKilled(t *testing.T) {
	p, err := touch.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	for range 5 {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		tracer := exec.Command(exe)
		tracer.Env = append(os.Environ(), tracerEnv+"="+fmt.Sprint(p.Pid()))
		if err := tracer.Start(); err != nil {
			t.Fatal(err)
		}
		// Field 1 of /proc/PID/syscall is the number of the call it is blocked in.
		inPoll := func() bool {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", p.Pid()))
			return err == nil && bytes.HasPrefix(b, []byte("7 0x0 0x0 0x3e8 "))
		}
		for end := time.Now().Add(patience); !inPoll(); runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatal("the injected poll is never seen")
			}
		}
		_ = tracer.Process.Kill()
		_ = tracer.Wait()
	}
	r, err := p.MapPrivate(1 << 20)
	if err != nil {
		t.Fatalf("the process does not answer any more: %v", err)
	}
	if _, err := r.TouchAll(0, r.Pages(), true, 4); err != nil {
		t.Fatal(err)
	}
}

type neverEnding byte

func (b neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

func TestSignalsSurvive(t *testing.T) {
	// The loop looks for signals every 10 ms: a shell that blocks in read for good
	// would miss one that comes just before, with or without us.
	v := startVictim(t, nil, "sh", "-c",
		`trap 'n=$((n+1)); echo got $n' USR1; echo ready; while :; do sleep 0.01; done`)
	if v.line() != "ready" {
		t.Fatal("shell does not start")
	}
	for i := range 50 {
		if err := unix.Kill(v.pid(), unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		v.take()
		if got := v.line(); got != fmt.Sprint("got ", i+1) {
			t.Fatalf("after signal %d the shell says %q", i+1, got)
		}
	}
}

func TestStopped(t *testing.T) {
	v := startVictim(t, nil, "cat")
	v.state('S')
	if err := unix.Kill(v.pid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	v.state('T')
	v.take()
	v.state('T')
	if err := unix.Kill(v.pid(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(v.in, "on")
	if v.line() != "on" {
		t.Error("cat did not go on")
	}
}

func TestSyscall(t *testing.T) {
	v := startVictim(t, nil, "cat")
	if pid, err := Syscall(v.pid(), 0, unix.SYS_GETPID); err != nil || int(pid) != v.pid() {
		t.Errorf("getpid: %d, %v; want %d", pid, err, v.pid())
	}
	if _, err := Syscall(v.pid(), 0, unix.SYS_CLOSE, 999); !errors.Is(err, unix.EBADF) {
		t.Errorf("close(999): %v, want EBADF", err)
	}
	if _, err := Syscall(v.pid(), 0, 1, 2, 3, 4, 5, 6, 7, 8); err == nil {
		t.Error("seven arguments were accepted")
	}
	// One that blocks is given up, and the process goes on.
	err := Do(v.pid(), 100*time.Millisecond, func(tr *Tracee) error {
		_, err := tr.Syscall(unix.SYS_PAUSE)
		return err
	})
	if !errors.Is(err, ErrTimeout) || strings.Contains(err.Error(), "restore") {
		t.Errorf("pause: %v, want ErrTimeout", err)
	}
	fmt.Fprintln(v.in, "alive")
	if v.line() != "alive" {
		t.Error("cat did not go on")
	}
	// One that ends it is told.
	if _, err := Syscall(v.pid(), 0, unix.SYS_EXIT_GROUP, 3); !errors.Is(err, ErrDied) {
		t.Errorf("exit_group: %v, want ErrDied", err)
	}
}

func TestViaDevice(t *testing.T) {
	v := startVictim(t, nil, "cat")
	var remote uint64
	err := Do(v.pid(), 0, func(tr *Tracee) (err error) {
		remote, err = tr.viaDevice(uffd.CloseOnExec | uffd.NonBlock)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	fds, err := FindUserfaultfds(v.pid())
	if err != nil || len(fds) != 1 || fds[0] != int(remote) {
		t.Errorf("found %v, %v; want %d", fds, err, remote)
	}
	u, err := Retake(v.pid(), int(remote))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.API(0); err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	t.Run("no process", func(t *testing.T) {
		v := startVictim(t, nil, "true")
		_ = v.cmd.Wait()
		if _, err := Userfaultfd(v.pid(), Options{}); !errors.Is(err, unix.ESRCH) {
			t.Errorf("%v, want ESRCH", err)
		}
	})
	t.Run("process without privilege", func(t *testing.T) {
		v := startVictim(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, "cat")
		_, err := Userfaultfd(v.pid(), Options{})
		if err == nil {
			t.Fatal("an unprivileged process may create a userfaultfd here: the test needs vm.unprivileged_userfaultfd=0 and mode 0600 on /dev/userfaultfd")
		}
		if !errors.Is(err, unix.EPERM) || !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "unprivileged_userfaultfd") {
			t.Errorf("%v: want EPERM, EACCES of the device, and the remedy", err)
		}
		fmt.Fprintln(v.in, "alive")
		if v.line() != "alive" {
			t.Error("cat did not go on")
		}
	})
	t.Run("traced by another", func(t *testing.T) {
		v := startVictim(t, nil, "cat")
		onThread(func() bool {
			if err := unix.PtraceSeize(v.pid()); err != nil {
				t.Error(err)
				return true
			}
			_, err := Userfaultfd(v.pid(), Options{})
			if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "is traced by process") {
				t.Errorf("%v: want EPERM and who traces it", err)
			}
			return false
		})
	})
	t.Run("retake of something else", func(t *testing.T) {
		v := startVictim(t, nil, "cat")
		if _, err := Retake(v.pid(), 0); err == nil || !strings.Contains(err.Error(), "not a userfaultfd") {
			t.Errorf("took a pipe: %v", err)
		}
		if _, err := Retake(v.pid(), 999); !errors.Is(err, unix.EBADF) {
			t.Errorf("%v, want EBADF", err)
		}
	})
}

// TestServeTouchProcess takes the userfaultfd of a process with many threads,
// and serves it.
func TestServeTouchProcess(t *testing.T) {
	p, err := touch.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	r, err := p.MapPrivate(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Userfaultfd(p.Pid(), Options{KeepRemote: true})
	if err != nil {
		t.Fatal(err)
	}
	serveZeroes(t, got.FD, r, true)
	// The registration outlives our descriptor, for the process keeps one.
	if err := got.FD.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Retake(p.Pid(), got.Remote)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.API(0); !errors.Is(err, uffd.ErrHandshakeDone) {
		t.Errorf("handshake on a retaken descriptor: %v, want ErrHandshakeDone", err)
	}
	serveZeroes(t, again, r, false)
}

// serveZeroes serves one fault: page 0 of r after a registration, or page 1.
func serveZeroes(t *testing.T, u *uffd.FD, r *touch.Region, fresh bool) {
	t.Helper()
	page := uint64(1)
	if fresh {
		page = 0
		if _, err := u.API(0); err != nil {
			t.Fatal(err)
		}
		if _, err := u.Register(r.Addr, r.Size, uffd.ModeMissing); err != nil {
			t.Fatal(err)
		}
	}
	rd, err := u.NewReader(uffd.ReaderConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	done := make(chan error, 1)
	go func() { _, err := r.Touch([]uint64{page}, true, 1); done <- err }()
	var ev [1]uffd.Event
	if _, err := rd.Wait(ev[:], patience); err != nil || ev[0].Addr != r.PageAddr(page) {
		t.Fatalf("event %+v, %v", ev[0], err)
	}
	if _, err := u.ZeroPage(ev[0].Addr, r.PageSize, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestStatusField(t *testing.T) {
	if got := statusField(os.Getpid(), "Pid"); got != fmt.Sprint(os.Getpid()) {
		t.Errorf("Pid is %q", got)
	}
	if got := statusField(os.Getpid(), "NoSuchField"); got != "" {
		t.Errorf("NoSuchField is %q", got)
	}
	if !bytes.Equal(syscallInsn, []byte{0x0f, 0x05}) && runtime.GOARCH == "amd64" {
		t.Error("wrong instruction")
	}
}

func BenchmarkUserfaultfd(b *testing.B) {
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	for b.Loop() {
		got, err := Userfaultfd(cmd.Process.Pid, Options{})
		if err != nil {
			b.Fatal(err)
		}
		got.FD.Close()
	}
}
