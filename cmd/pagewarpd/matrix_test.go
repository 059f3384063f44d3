package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
)

// binaries are built once, with the crash points, and removed by TestMain.
var binaries = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(binariesEnv); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "pagewarpd-crash-")
	if err != nil {
		return "", err
	}
	binariesDir = dir
	build := exec.Command("go", "build", "-tags", "crashtest", "-o", dir+"/", ".", "../pagewarp")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as they are released
	out, err := build.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
})

// binariesEnv names where the binaries are already, for a machine without Go.
const binariesEnv = "PAGEWARP_TEST_BINARIES"

// binariesDir is set by binaries, and read when all tests have ended.
var binariesDir string

func program(t *testing.T, name string) string {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// slow is a precache bandwidth, in bytes per second, that keeps a drain from
// ending before the test is done with it.
const slow = 2 << 20

// node is one host's daemon over all its lives.
type node struct {
	t    *testing.T
	root string
	name string // "a" or "b"
	dir  string
	addr string
	host *rig.Host // nil: the namespace of the test
	log  *lockedBuffer

	cmd    *exec.Cmd
	exited chan struct{}
	client *api.Client
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var lastPort atomic.Int32

// freeAddr is an address of loopback that stays free while a daemon is down:
// below the ports that the kernel gives out, and another one at each call.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 1000 {
		port := 10000 + (int(lastPort.Add(1))+os.Getpid()*61)%20000
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no free port of loopback from 10000 to 30000")
	return ""
}

// place is where a node lives and what its configuration says besides.
type place struct {
	host *rig.Host // nil: here
	addr string    // "": a free port of loopback
	conf string    // before the templates
	tmpl string    // in the template for all machines
}

func newNode(t *testing.T, root, name string, p place) *node {
	t.Helper()
	if p.addr == "" {
		p.addr = freeAddr(t)
	}
	n := &node{t: t, root: root, name: name, dir: filepath.Join(root, name), addr: p.addr, host: p.host, log: new(lockedBuffer)}
	other := map[string]string{"a": "b", "b": "a"}[name]
	conf := fmt.Sprintf("state_dir = %q\nlisten = [%q]\n%s\n[templates.\"*\"]\n%s\n[[templates.\"*\".rewrite]]\nfrom = %q\nto = %q\n",
		n.stateDir(), n.addr, p.conf, p.tmpl, filepath.Join(root, other), n.dir)
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.conf(), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.kill()
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, n.log)
		}
	})
	return n
}

func (n *node) stateDir() string { return filepath.Join(n.dir, "state") }
func (n *node) conf() string     { return filepath.Join(n.root, n.name+".toml") }

// start begins a life; crash is PAGEWARP_CRASH_AT.
func (n *node) start(crash string) {
	n.t.Helper()
	args := []string{"--config", n.conf(), "--log-level", "info", "--log-format", "text"}
	if bin := program(n.t, "pagewarpd"); n.host == nil {
		n.cmd = exec.Command(bin, args...)
	} else {
		n.cmd = n.host.Command(context.Background(), bin, args...)
	}
	n.cmd.Env = append(os.Environ(), "PAGEWARP_CRASH_AT="+crash)
	n.cmd.Stderr, n.cmd.Stdout = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	exited := make(chan struct{})
	n.exited = exited
	go func(cmd *exec.Cmd) {
		cmd.Wait() // a violent end is the point
		close(exited)
	}(n.cmd)
	n.client = api.NewClient(filepath.Join(n.stateDir(), "api.sock"), 10*time.Second)
	vmtest.Wait(n.t, "the daemon of "+n.name, func() bool {
		_, err := n.client.Version(n.t.Context())
		return err == nil
	})
}

func (n *node) kill() {
	if n.cmd == nil {
		return
	}
	n.cmd.Process.Kill()
	<-n.exited
	n.client.Close()
	n.cmd = nil
}

// awaitDeath waits for the crash point.
func (n *node) awaitDeath() {
	n.t.Helper()
	select {
	case <-n.exited:
		n.client.Close()
		n.cmd = nil
	case <-time.After(30 * time.Second):
		n.t.Fatalf("the daemon of %s did not reach its crash point within 30 s", n.name)
	}
}

func (n *node) state() string {
	ms, err := n.client.Machines(n.t.Context())
	if err != nil {
		return "daemon: " + err.Error()
	}
	for _, m := range ms {
		if m.Name == "web1" {
			return m.Status
		}
	}
	return "not adopted"
}

// status is the last relocation of the host in that role.
func (n *node) status(role relocate.Role) relocate.Status {
	r, err := n.client.Status(context.WithoutCancel(n.t.Context()), "")
	if err != nil {
		return relocate.Status{Error: err.Error()}
	}
	for _, s := range slices.Backward(r.Relocations) {
		if s.Role == role {
			return s
		}
	}
	return relocate.Status{}
}

// matrix is two hosts with a machine on the first.
type matrix struct {
	t     *testing.T
	root  string
	a, b  *node
	to    string        // what the source dials
	proxy *vmtest.Proxy // before b, where both are on loopback
	vm    *vmtest.VM
	want  []byte
	hold  string // of a hold: the file's name without its ending
}

func newMatrix(t *testing.T, crashA, crashB string) *matrix {
	t.Helper()
	m := makeMatrix(t, vmtest.Dir(t), place{}, place{})
	m.proxy = vmtest.StartProxy(t, m.b.addr)
	m.to = m.proxy.Addr()
	m.begin(crashA, crashB)
	return m
}

// makeMatrix starts nothing but the machine.
func makeMatrix(t *testing.T, root string, a, b place, vmArgs ...string) *matrix {
	t.Helper()
	return makeMatrixOn(t, root, filepath.Join(root, "a", "vm.mem"), a, b, vmArgs...)
}

// makeMatrixOn does so with the machine's memory at a place of its own.
func makeMatrixOn(t *testing.T, root, ram string, a, b place, vmArgs ...string) *matrix {
	t.Helper()
	m := &matrix{t: t, root: root, a: newNode(t, root, "a", a), b: newNode(t, root, "b", b), want: vmtest.Pattern(11)}
	m.to = m.b.addr
	t.Cleanup(m.killIncoming)
	m.vm = vmtest.StartOn(t, m.a.dir, ram, vmArgs...)
	vmtest.WritePattern(t, m.vm.RAM, m.want)
	return m
}

// begin starts the daemons and has the first adopt the machine.
func (m *matrix) begin(crashA, crashB string) {
	m.t.Helper()
	m.a.start(crashA)
	m.b.start(crashB)
	if _, err := m.a.client.Add(m.t.Context(), "web1", m.vm.QMP); err != nil {
		m.t.Fatal(err)
	}
}

// vmms finds the QEMUs of this test, by the path that all of them name.
func (m *matrix) vmms() map[int]string {
	found := make(map[int]string)
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, e := range entries {
		b, err := os.ReadFile(e)
		if err != nil || !bytes.Contains(b, []byte("qemu-system")) || !bytes.Contains(b, []byte("-incoming")) || !bytes.Contains(b, []byte(m.root)) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(e, "/proc/%d/cmdline", &pid); err == nil {
			found[pid] = string(b)
		}
	}
	return found
}

func (m *matrix) relocate(o relocate.Options) {
	m.t.Helper()
	_, err := m.a.client.Relocate(m.t.Context(), "web1", api.RelocateRequest{To: m.to, Options: o})
	if err != nil && !errors.As(err, new(*net.OpError)) && !strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "refused") {
		m.t.Fatal(err)
	}
}

// lift ends the artificial slowness, as soon as the destination has a drain to
// speed up.
func (m *matrix) lift() {
	m.t.Helper()
	vmtest.Wait(m.t, "the bandwidth cap to be lifted", func() bool {
		return m.b.status(relocate.RoleDestination).Phase.Final() || m.b.client.SetBandwidth(m.t.Context(), "web1", 0) == nil
	})
}

// arrived asserts that the machine has moved, whole.
func (m *matrix) arrived() {
	m.t.Helper()
	m.lift()
	vmtest.Wait(m.t, "both sides to be done", func() bool {
		return m.a.status(relocate.RoleSource).Phase == relocate.PhaseDone && m.b.status(relocate.RoleDestination).Phase == relocate.PhaseDone
	})
	vmtest.Wait(m.t, "the destination to adopt the machine", func() bool { return m.b.state() == "running" })
	if got := m.a.state(); got == "running" {
		m.t.Error("the machine runs at both hosts")
	}
	vmtest.CheckPattern(m.t, filepath.Join(m.b.dir, "vm.mem"), m.want)
	select {
	case <-m.vm.Done:
	case <-time.After(10 * time.Second):
		m.t.Error("the source's QEMU is still there")
	}
	if n := len(m.vmms()); n != 1 {
		m.t.Errorf("%d QEMUs run at the destination, want 1", n)
	}
}

// stayed asserts that the machine runs at its source as if nothing had been.
func (m *matrix) stayed() {
	m.t.Helper()
	vmtest.Wait(m.t, "the machine to run at its source", func() bool { return m.a.state() == "running" })
	vmtest.Wait(m.t, "the destination's QEMU to end", func() bool { return len(m.vmms()) == 0 })
	vmtest.CheckPattern(m.t, m.vm.RAM, m.want)
	if got := m.b.state(); got != "not adopted" {
		m.t.Errorf("at the destination the machine is %q", got)
	}
	vmtest.Wait(m.t, "the destination's files to be gone", func() bool {
		left, _ := filepath.Glob(filepath.Join(m.b.dir, "vm.*"))
		return len(left) == 0
	})
	vmtest.NoTrace(m.t, m.b.stateDir(), "*.json", "*.sock", "*.lock", "lock", "pagewarpd.*")
}

// hold starts a matrix whose daemon of that role stops at a phase, runs the
// relocation up to there, calls f, and lets it go on.
func hold(t *testing.T, role relocate.Role, p relocate.Phase, f func(*matrix)) *matrix {
	t.Helper()
	flag := filepath.Join(t.TempDir(), "hold")
	crash := map[relocate.Role]string{role: fmt.Sprintf("%s:%s:hold=%s", role, p, flag)}
	m := newMatrix(t, crash[relocate.RoleSource], crash[relocate.RoleDestination])
	m.hold = flag
	m.relocate(relocate.Options{Bandwidth: slow})
	m.awaitHold()
	f(m)
	m.letGo()
	return m
}

// awaitHold waits until the held phase is entered.
func (m *matrix) awaitHold() {
	m.t.Helper()
	vmtest.Wait(m.t, "the hold", func() bool {
		_, err := os.Stat(m.hold + ".reached")
		return err == nil
	})
}

// letGo ends the hold.
func (m *matrix) letGo() {
	m.t.Helper()
	if err := os.WriteFile(m.hold+".go", nil, 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *matrix) killIncoming() {
	for pid := range m.vmms() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	vmtest.Wait(m.t, "the QEMUs to end", func() bool { return len(m.vmms()) == 0 })
}
