package relocate

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ramMiB     = 96
	patternOff = 32 << 20 // the BIOS has no business above this
	patternLen = 40 << 20
)

// testVM is a QEMU as an operator would run it. Its guest is the BIOS, which
// finds nothing to boot and keeps trying.
type testVM struct {
	t    *testing.T
	cmd  *exec.Cmd
	dir  string
	ram  string
	qmp  string
	done chan struct{}
}

func startVM(t *testing.T, dir string, extra ...string) *testVM {
	t.Helper()
	v := &testVM{t: t, dir: dir, ram: filepath.Join(dir, "vm.mem"), qmp: filepath.Join(dir, "vm.qmp"), done: make(chan struct{})}
	args := []string{
		"-name", "test", "-nodefaults", "-display", "none", "-vga", "none", "-accel", "tcg",
		"-machine", "pc,memory-backend=mem", "-m", fmt.Sprint(ramMiB),
		"-object", fmt.Sprintf("memory-backend-file,id=mem,size=%dM,mem-path=%s,share=on", ramMiB, v.ram),
		"-qmp", "unix:" + v.qmp + ",server=on,wait=off",
	}
	v.start(append(args, extra...)...)
	return v
}

func (v *testVM) start(args ...string) {
	v.t.Helper()
	v.cmd = exec.Command("qemu-system-x86_64", args...)
	v.cmd.Stderr = os.Stderr
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := v.cmd.Start(); err != nil {
		v.t.Fatalf("start QEMU: %v (apt-get install qemu-system-x86)", err)
	}
	go func() {
		v.cmd.Wait()
		close(v.done)
	}()
	v.t.Cleanup(func() {
		v.cmd.Process.Kill()
		<-v.done
	})
	waitFor(v.t, "QEMU's monitor", func() bool {
		_, err := os.Stat(v.qmp)
		return err == nil
	})
}

// waitFor polls what has no event to wait for.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}

// pattern is what the test keeps in guest memory: random pages, zero pages,
// pages of one word.
func pattern(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, patternLen)
	for p := 0; p < len(b); p += 4096 {
		page := b[p : p+4096]
		switch r.IntN(4) {
		case 0:
		case 1:
			w := byte(r.Uint32())
			for i := range page {
				page[i] = w
			}
		default:
			for i := 0; i < len(page); i += 8 {
				v := r.Uint64()
				for j := range 8 {
					page[i+j] = byte(v >> (8 * j))
				}
			}
		}
	}
	return b
}

func mapRAM(t *testing.T, path string) []byte {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	mem, err := sysmem.MapShared(fd, 0, ramMiB<<20, true)
	if err != nil {
		t.Fatal(err)
	}
	return mem
}

func writePattern(t *testing.T, path string, b []byte) {
	t.Helper()
	mem := mapRAM(t, path)
	copy(mem[patternOff:], b)
	if err := sysmem.Unmap(mem); err != nil {
		t.Fatal(err)
	}
}

func checkPattern(t *testing.T, path string, want []byte) {
	t.Helper()
	mem := mapRAM(t, path)
	defer sysmem.Unmap(mem)
	for p := 0; p < len(want); p += 4096 {
		if !bytes.Equal(mem[patternOff+p:patternOff+p+4096], want[p:p+4096]) {
			t.Fatalf("%s: page at offset %#x differs from what the source had", path, patternOff+p)
		}
	}
}

// testHost is a Host on loopback with a state directory and a RAM directory.
type testHost struct {
	*Host
	dir   string
	addr  string
	serve chan error
}

// tempDir is on tmpfs and short: RAM files and sockets go there.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "pw-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func startHost(t *testing.T, root, name string, change func(*HostConfig)) *testHost {
	t.Helper()
	dir := filepath.Join(root, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := HostConfig{
		StateDir: filepath.Join(dir, "state"), Listen: []string{"127.0.0.1:0"},
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})).With("host", name),
		Template: func(string) qemu.Template {
			var rules []qemu.Rewrite
			for _, other := range []string{"a", "b"} {
				if other != name {
					rules = append(rules, qemu.Rewrite{From: filepath.Join(root, other), To: dir})
				}
			}
			return qemu.Template{Rewrite: rules}
		},
	}
	if change != nil {
		change(&cfg)
	}
	h, err := NewHost(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	th := &testHost{Host: h, dir: dir, addr: h.Addrs()[0], serve: make(chan error, 1)}
	go func() { th.serve <- h.Serve() }()
	t.Cleanup(func() { th.stop(t) })
	return th
}

func (h *testHost) stop(t *testing.T) {
	t.Helper()
	if h.serve == nil {
		return
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := <-h.serve; err != nil {
		t.Error(err)
	}
	h.serve = nil
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// await follows a host's events until one relocation of vm reaches a phase that
// is final, or want.
func (h *testHost) await(t *testing.T, vm string, want Phase) Event {
	t.Helper()
	events, cancel := h.Subscribe(0)
	defer cancel()
	deadline := time.After(60 * time.Second)
	for {
		select {
		case ev := <-events:
			if ev.VM != vm || ev.Kind != "phase" {
				continue
			}
			if ev.Phase == want {
				return ev
			}
			if ev.Phase.Final() {
				t.Fatalf("%s ended %s, want %s: %s", vm, ev.Phase, want, ev.Text)
			}
		case <-deadline:
			t.Fatalf("%s did not reach %s within 60 s; statuses: %+v", vm, want, h.Statuses())
		}
	}
}

func (h *testHost) adopt(t *testing.T, name, qmp string) Machine {
	t.Helper()
	m, err := h.Adopt(t.Context(), name, qmp)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (h *testHost) last(t *testing.T, role Role) Status {
	t.Helper()
	all := h.Statuses()
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].Role == role {
			return all[i]
		}
	}
	t.Fatalf("no status as %s among %+v", role, all)
	return Status{}
}

func runState(t *testing.T, h *testHost, name string) string {
	t.Helper()
	for _, m := range h.Machines(t.Context()) {
		if m.Name == name {
			return m.Status
		}
	}
	return "not adopted"
}

// noTrace checks that a directory holds nothing but what is expected.
func noTrace(t *testing.T, dir string, allowed ...string) {
	t.Helper()
	ok := func(name string) bool {
		for _, a := range allowed {
			if m, _ := filepath.Match(a, name); m {
				return true
			}
		}
		return false
	}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !ok(d.Name()) {
			t.Errorf("left behind: %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRelocateThereAndBack(t *testing.T) {
	root := tempDir(t)
	a, b := startHost(t, root, "a", nil), startHost(t, root, "b", nil)
	vm := startVM(t, a.dir)
	want := pattern(1)
	writePattern(t, vm.ram, want)
	a.adopt(t, "web1", vm.qmp)

	if _, err := a.Relocate(t.Context(), "web1", b.addr, Options{}); err != nil {
		t.Fatal(err)
	}
	a.await(t, "web1", PhaseDone)
	b.await(t, "web1", PhaseDone)
	s := a.last(t, RoleSource)
	t.Logf("downtime %.2f ms, status %+v", s.DowntimeMS, s)
	if s.PagesRemaining != 0 || s.PagesTotal != ramMiB<<20>>12 || s.DowntimeMS <= 0 {
		t.Errorf("final status at the source: %+v", s)
	}
	if got := runState(t, b, "web1"); got != "running" {
		t.Errorf("at the destination the machine is %q", got)
	}
	if got := runState(t, a, "web1"); got != "not adopted" {
		t.Errorf("at the source the machine is still %q", got)
	}
	select {
	case <-vm.done:
	case <-time.After(10 * time.Second):
		t.Error("the source's QEMU still runs")
	}
	checkPattern(t, filepath.Join(b.dir, "vm.mem"), want)
	noTrace(t, a.dir, "*.json")

	// And back, paused; the destination's image is compared with the source's.
	if _, err := b.Relocate(t.Context(), "web1", a.addr, Options{Paused: true, KeepSource: true}); err != nil {
		t.Fatal(err)
	}
	b.await(t, "web1", PhaseDone)
	waitFor(t, "a to finish", func() bool { return runState(t, a, "web1") == "paused" })
	x, y := mapRAM(t, filepath.Join(a.dir, "vm.mem")), mapRAM(t, filepath.Join(b.dir, "vm.mem"))
	if !bytes.Equal(x, y) {
		t.Error("the two memory files differ after a paused relocation")
	}
	for _, m := range [][]byte{x, y} {
		if err := sysmem.Unmap(m); err != nil {
			t.Error(err)
		}
	}
	checkPattern(t, filepath.Join(a.dir, "vm.mem"), want)
	for _, h := range []*testHost{a, b} {
		killAll(t, h)
	}
}

// killAll ends the QEMUs that hosts started, by their recorded pids.
func killAll(t *testing.T, h *testHost) {
	t.Helper()
	recs, err := h.journal.load(time.Now())
	if err != nil {
		t.Error(err)
	}
	for _, r := range recs {
		if r.PID != 0 {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if err := endProcess(ctx, nil, r.PID, r.StartTime); err != nil {
				t.Error(err)
			}
			cancel()
		}
	}
}
