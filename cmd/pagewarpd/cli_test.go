package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
)

// cli is a run of the operator's command.
type cli struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *lockedBuffer // both of its outputs
	done chan struct{}
}

// pagewarp starts the operator's command at a node.
func pagewarp(t *testing.T, n *node, args ...string) *cli {
	t.Helper()
	c := &cli{t: t, out: new(lockedBuffer), done: make(chan struct{})}
	c.cmd = exec.Command(program(t, "pagewarp"), append([]string{"--socket", filepath.Join(n.stateDir(), "api.sock")}, args...)...)
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.out
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		c.cmd.Wait() // the exit code is asked for
		close(c.done)
	}()
	t.Cleanup(func() {
		c.cmd.Process.Kill()
		<-c.done
	})
	return c
}

func (c *cli) text() string { return c.out.String() }

func (c *cli) says(what string) {
	c.t.Helper()
	vmtest.Wait(c.t, "the command to say "+what, func() bool { return strings.Contains(c.text(), what) })
}

func (c *cli) interrupt() {
	c.t.Helper()
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		c.t.Fatal(err)
	}
}

// wait returns the exit code.
func (c *cli) wait() int {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(30 * time.Second):
		c.t.Fatalf("the command does not end:\n%s", c.text())
	}
	return c.cmd.ProcessState.ExitCode()
}

func (c *cli) exits(code int, says string) {
	c.t.Helper()
	if got := c.wait(); got != code || !strings.Contains(c.text(), says) {
		c.t.Errorf("%q exits with %d, want %d and %q:\n%s", c.cmd.Args[3:], got, code, says, c.text())
	}
}

// heldMatrix is a matrix whose daemon of that role will stop at a phase.
func heldMatrix(t *testing.T, role relocate.Role, p relocate.Phase) *matrix {
	t.Helper()
	flag := filepath.Join(t.TempDir(), "hold")
	crash := map[relocate.Role]string{role: string(role) + ":" + string(p) + ":hold=" + flag}
	m := newMatrix(t, crash[relocate.RoleSource], crash[relocate.RoleDestination])
	m.hold = flag
	return m
}

// cancelled waits until the source's daemon has been told to roll back.
func (m *matrix) cancelled() {
	m.t.Helper()
	vmtest.Wait(m.t, "the cancel to be heard", func() bool {
		return strings.Contains(m.a.status(relocate.RoleSource).Error, "cancelled by the operator")
	})
}

func TestInterruptBeforeTheSwitch(t *testing.T) {
	t.Parallel()
	for _, p := range append([]relocate.Phase{relocate.PhaseConnecting, relocate.PhasePreparing}, before...) {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			m := heldMatrix(t, relocate.RoleSource, p)
			c := pagewarp(t, m.a, "relocate", "web1", "--to", m.to)
			m.awaitHold()
			c.interrupt()
			c.says("rolling back")
			m.cancelled()
			m.letGo()
			c.exits(130, "runs on")
			m.stayed()
		})
	}
}

func TestInterruptAfterTheSwitch(t *testing.T) {
	t.Parallel()
	m := newMatrix(t, "", "")
	c := pagewarp(t, m.a, "relocate", "web1", "--to", m.to, "--bandwidth", "16M")
	vmtest.Wait(t, "the drain", func() bool { return m.a.status(relocate.RoleSource).Phase == relocate.PhaseDraining })
	pagewarp(t, m.a, "cancel", "web1").exits(1, "past the switch-over")
	c.interrupt()
	c.exits(130, "past the switch-over")
	pagewarp(t, m.a, "status", "web1").exits(0, "draining")
	m.arrived()
	pagewarp(t, m.a, "status", "web1").exits(0, "done")
}

// Ctrl-C at the very moment of the switch-over: the machine is the destination's.
func TestInterruptAtTheSwitch(t *testing.T) {
	t.Parallel()
	m := heldMatrix(t, relocate.RoleSource, relocate.PhaseCommitted)
	c := pagewarp(t, m.a, "relocate", "web1", "--to", m.to)
	m.awaitHold()
	c.interrupt()
	c.exits(130, "past the switch-over")
	m.letGo()
	m.arrived()
}

// What scripts branch on, beside the codes that other tests of this package see: 0, 1, 3
// and 130.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	m := newMatrix(t, "", "")
	pagewarp(t, m.a, "relocate", "web1").exits(2, "--to is missing")
	pagewarp(t, m.a, "relocate", "web1", "--to", m.to, "--bandwith", "2G").exits(2, "did you mean --bandwidth?")
	c := pagewarp(t, m.a, "relocate", "web1", "--to", m.to, "--bandwidth", "16M")
	vmtest.Wait(t, "the drain", func() bool { return m.b.status(relocate.RoleDestination).Phase == relocate.PhaseDraining })
	m.killIncoming()
	c.exits(4, "web1 is lost")
	pagewarp(t, m.a, "status", "web1").exits(0, "lost")
	vmtest.Wait(t, "the destination to tidy up", func() bool { return m.b.status(relocate.RoleDestination).Phase == relocate.PhaseLost })
	vmtest.Wait(t, "its memory to be freed", func() bool {
		_, err := os.Stat(filepath.Join(m.b.dir, "vm.mem"))
		return os.IsNotExist(err)
	})
	if _, err := os.Stat(filepath.Join(m.a.dir, "vm.mem")); err != nil {
		t.Errorf("what is left of the machine, its memory at the source: %v", err)
	}
	m.a.kill()
	pagewarp(t, m.a, "status").exits(5, "is pagewarpd running?")
}

// A daemon that is not root's says what it cannot do, and the command who may use it.
func TestWithoutPermission(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "pw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	asNobody := func(name string, args ...string) (*exec.Cmd, *lockedBuffer) {
		t.Helper()
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(program(t, name))
		if err == nil {
			err = os.WriteFile(path, b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		out := new(lockedBuffer)
		cmd := exec.Command(path, args...)
		cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		return cmd, out
	}
	cmd, out := asNobody("pagewarpd", "--state-dir", "/run/pagewarp-of-nobody")
	if err := cmd.Run(); err == nil || !strings.Contains(out.String(), "--state-dir") || !strings.Contains(out.String(), "as root") {
		t.Errorf("a state directory that cannot be made: %v\n%s", err, out.String())
	}
	state := filepath.Join(dir, "s")
	cmd, out = asNobody("pagewarpd", "--state-dir", state, "--listen", "unix:"+filepath.Join(dir, "p"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	vmtest.Wait(t, "the daemon", func() bool { return strings.Contains(out.String(), "daemon is ready") })
	if !strings.Contains(out.String(), "CAP_SYS_PTRACE") {
		t.Errorf("the daemon says\n%s", out.String())
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("stopped: %v", err)
	}
	// And the other way round: root's daemon, asked by somebody else.
	m := newMatrix(t, "", "")
	if err := os.Chmod(m.root, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd, out = asNobody("pagewarp", "--socket", filepath.Join(m.a.stateDir(), "api.sock"), "status")
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 5 || !strings.Contains(out.String(), "run this as root") {
		t.Errorf("asked by another user: %v\n%s", err, out.String())
	}
}

func TestCancelByTheOperator(t *testing.T) {
	t.Parallel()
	m := heldMatrix(t, relocate.RoleSource, relocate.PhaseFrozen)
	c := pagewarp(t, m.a, "relocate", "web1", "--to", m.to)
	m.awaitHold()
	cancel := pagewarp(t, m.a, "cancel", "web1")
	m.cancelled()
	m.letGo()
	cancel.exits(0, "")
	c.exits(3, "cancelled by the operator")
	m.stayed()
	// Nothing of it is in the way of the next one.
	pagewarp(t, m.a, "relocate", "web1", "--to", m.to).exits(0, "")
	m.arrived()
}

// What the source's host refuses before anything is asked of another one.
func TestRefusedAtTheSource(t *testing.T) {
	t.Parallel()
	m := newMatrix(t, "", "")
	dead := filepath.Join(m.root, "dead.qmp")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	pagewarp(t, m.a, "vm", "add", "web2", "--qmp", filepath.Join(m.root, "none.qmp")).exits(1, "QMP socket is missing")
	pagewarp(t, m.a, "vm", "add", "web2", "--qmp", dead).exits(1, "QMP socket is dead")

	private := vmtest.StartPrivate(t, vmtest.Dir(t))
	pagewarp(t, m.a, "vm", "add", "web3", "--qmp", private.QMP).exits(0, "web3")
	pagewarp(t, m.a, "relocate", "web3", "--to", m.to).exits(1, "-object memory-backend-file,id=mem")

	nobody := freeAddr(t)
	pagewarp(t, m.a, "relocate", "web1", "--to", nobody).exits(3, "reach the destination "+nobody)
	pagewarp(t, m.a, "relocate", "web1", "--to", "192.0.2.1:7070").exits(1, "clear text")
	m.stayed()
	// The QEMU of an adopted machine dies: its socket is dead then, too.
	m.vm.Kill()
	pagewarp(t, m.a, "relocate", "web1", "--to", m.to).exits(1, "has ended or closed its monitor; `pagewarp vm rm web1`")
	if err := os.Remove(m.vm.QMP); err != nil {
		t.Error(err)
	}
}
