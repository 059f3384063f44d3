package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	// The child of TestCleanupStale builds a rig and leaves it behind.
	if os.Getenv("PAGEWARP_RIG_LEAVE_BEHIND") != "" {
		r, err := New("a")
		if err == nil {
			cmd := r.Host("a").Command(context.Background(), "sleep", "300")
			err = cmd.Start()
		}
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println(r.Ident)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// newRig builds a rig that must leave nothing behind.
func newRig(t *testing.T, hosts ...string) *Rig {
	t.Helper()
	r, err := New(hosts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close the rig: %v", err)
		}
		if left := Leftovers(r.Ident); len(left) > 0 {
			t.Errorf("the rig left behind: %q", left)
		}
		if err := r.Close(); err != nil {
			t.Errorf("close the rig again: %v", err)
		}
	})
	return r
}

// TestAfterIPNetns has ip-netns(8) add a namespace while a rig stands: it may hide
// none of the rig's.
func TestAfterIPNetns(t *testing.T) {
	r := newRig(t, "a", "b")
	name := r.Ident + "x"
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer func() {
		if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}()
	if err := exchange(t, r.Host("a"), r.Host("b"), 5*time.Second); err != nil {
		t.Error(err)
	}
}

// exchange sends one byte from one host to the other and back.
func exchange(t *testing.T, from, to *Host, limit time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	l, err := to.Listen(ctx, "tcp", to.Addr.String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(limit))
		io.CopyN(c, c, 1)
	}()
	defer func() { <-served }()
	defer l.Close()
	c, err := from.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write([]byte{42}); err != nil {
		return err
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	if b[0] != 42 {
		return fmt.Errorf("got %d back", b[0])
	}
	return nil
}

func TestHostsReachEachOther(t *testing.T) {
	r := newRig(t)
	a, b, client := r.Host("a"), r.Host("b"), r.Host("client")
	for _, pair := range [][2]*Host{{a, b}, {b, a}, {client, a}, {client, b}} {
		if err := exchange(t, pair[0], pair[1], 5*time.Second); err != nil {
			t.Errorf("%s to %s: %v", pair[0].Name, pair[1].Name, err)
		}
	}
	// The machine itself is no part of it.
	d := net.Dialer{Timeout: 200 * time.Millisecond}
	l, err := a.Listen(t.Context(), "tcp", a.Addr.String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err := d.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("a host of the rig can be reached from outside")
	}
}

func TestCutAndRestore(t *testing.T) {
	r := newRig(t, "a", "b")
	a, b := r.Host("a"), r.Host("b")
	for range 2 {
		if err := b.Cut(); err != nil {
			t.Fatal(err)
		}
		if err := exchange(t, a, b, 300*time.Millisecond); err == nil {
			t.Error("hosts reach each other over a cut link")
		}
		if err := b.Restore(); err != nil {
			t.Fatal(err)
		}
		if err := exchange(t, a, b, 10*time.Second); err != nil {
			t.Errorf("after Restore: %v", err)
		}
	}
}

func TestShape(t *testing.T) {
	r := newRig(t, "a", "b")
	a, b := r.Host("a"), r.Host("b")
	show := func(want bool) {
		t.Helper()
		out, err := a.Command(t.Context(), "tc", "qdisc", "show", "dev", uplinkName).CombinedOutput()
		if err != nil {
			t.Fatalf("tc: %v: %s", err, out)
		}
		if got := strings.Contains(string(out), "tbf") && strings.Contains(string(out), "rate 80Mbit"); got != want {
			t.Errorf("tc shows %q, want tbf at 80 Mbit/s: %t", out, want)
		}
	}
	if err := a.Unshape(); err != nil {
		t.Error("Unshape without a shape:", err)
	}
	for range 2 {
		if err := a.Shape(Shape{BytesPerSecond: 10e6}); err != nil {
			t.Fatal(err)
		}
	}
	show(true)
	if took := send(t, a, b, 4<<20); took < 250*time.Millisecond {
		t.Errorf("4 MiB took %s at 10 MB/s", took)
	}
	if took := send(t, b, a, 4<<20); took < 250*time.Millisecond {
		t.Errorf("4 MiB took %s at 10 MB/s the other way", took)
	}
	if err := a.Shape(Shape{BytesPerSecond: 10e6, Qdisc: QdiscCard}); err != nil {
		t.Fatal(err)
	}
	if out, err := a.Command(t.Context(), "tc", "qdisc", "show", "dev", uplinkName).CombinedOutput(); err != nil || !strings.Contains(string(out), "pfifo_fast") || !strings.Contains(string(out), "rate 80Mbit") {
		t.Errorf("tc shows %q, %v; want pfifo_fast in tbf", out, err)
	}
	if took := send(t, a, b, 4<<20); took < 250*time.Millisecond {
		t.Errorf("4 MiB took %s at 10 MB/s through a card's queue", took)
	}
	if err := a.Shape(Shape{BytesPerSecond: 10e6, Qdisc: "none-such"}); err == nil || !strings.Contains(err.Error(), "none-such") {
		t.Errorf("a queue that there is not: %v", err)
	}
	if err := a.Unshape(); err != nil {
		t.Fatal(err)
	}
	show(false)
	if err := a.Shape(Shape{}); err == nil || !strings.Contains(err.Error(), "use Cut") {
		t.Errorf("a rate of 0: %v", err)
	}
}

// send sends n bytes and returns how long they took to arrive.
func send(t *testing.T, from, to *Host, n int64) time.Duration {
	t.Helper()
	l, err := to.Listen(t.Context(), "tcp", to.Addr.String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- err
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if m, err := io.Copy(io.Discard, c); m != n {
			got <- fmt.Errorf("received %d of %d bytes: %v", m, n, err)
			return
		}
		got <- nil
	}()
	c, err := from.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	c.SetDeadline(begin.Add(20 * time.Second))
	_, err = c.Write(make([]byte, n))
	c.Close()
	if err := errors.Join(err, <-got); err != nil {
		t.Fatal(err)
	}
	return time.Since(begin)
}

func TestCloseEndsProcesses(t *testing.T) {
	r := newRig(t, "a")
	inside := r.Host("a").Command(t.Context(), "sleep", "300")
	outside := exec.Command("sleep", "300")
	for _, cmd := range []*exec.Cmd{inside, outside} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Track(outside.Process.Pid, "the test's sleep"); err != nil {
		t.Fatal(err)
	}
	awaitInside(t, r, inside.Process.Pid)
	if left := Leftovers(r.Ident); len(left) != 4 { // two namespaces, a process, a folder
		t.Errorf("Leftovers sees %q", left)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []*exec.Cmd{inside, outside} {
		if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
			t.Errorf("%v ended with %v, want a kill", cmd.Args, err)
		}
	}
	if err := r.Track(outside.Process.Pid, "gone"); err == nil {
		t.Error("a process that has ended can be tracked")
	}
}

// A rig that cannot be removed says so, and which part.
func TestCloseLeavesBehind(t *testing.T) {
	r := newRig(t, "a")
	dir := r.Host("a").Dir
	mounted := filepath.Join(dir, "mounted")
	if err := os.Mkdir(mounted, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", mounted, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	err := r.Close()
	if uerr := unix.Unmount(mounted, 0); uerr != nil {
		t.Fatal(uerr)
	}
	if !errors.Is(err, ErrLeftBehind) || !strings.Contains(fmt.Sprint(err), mounted) {
		t.Errorf("a folder that could not be removed: %v", err)
	}
	if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
		t.Fatal(err)
	}
}

// What a process starts while it is being ended is ended as well, and a namespace full
// of such is given up.
func TestEndAll(t *testing.T) {
	var ended []int
	found := [][]int{{10, 11}, {12}, nil}
	list := func() (pids []int, err error) {
		pids, found = found[0], found[1:]
		return pids, nil
	}
	err := endAll("x", list, func(pid int) error { ended = append(ended, pid); return nil })
	if err != nil || !slices.Equal(ended, []int{10, 11, 12}) {
		t.Errorf("ended %v, %v", ended, err)
	}
	err = endAll("x", func() ([]int, error) { return []int{1}, nil }, func(int) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "start others as fast") {
		t.Errorf("without an end: %v", err)
	}
	stays := errors.New("it stays")
	if err := endAll("x", func() ([]int, error) { return []int{1}, nil }, func(int) error { return stays }); !errors.Is(err, stays) {
		t.Errorf("one that cannot be ended: %v", err)
	}
}

// A VM that cannot be ended does not hold Close up for ever.
func TestVMThatStays(t *testing.T) {
	r := &Rig{Ident: "x"}
	stays := make(chan struct{})
	r.vms.Go(func() { <-stays })
	if err := r.awaitReaped(20 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "still runs") {
		t.Errorf("error %v", err)
	}
	close(stays)
	if err := r.awaitReaped(10 * time.Second); err != nil {
		t.Error(err)
	}
}

// awaitInside waits until nsenter, as pid, has entered the host's namespace.
func awaitInside(t *testing.T, r *Rig, pid int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		pids, err := processesIn(r.Ident + "-a")
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(pids, pid) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d never entered the namespace", pid)
		}
	}
}

// A rig whose process died is removed by the next New.
func TestCleanupStale(t *testing.T) {
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "PAGEWARP_RIG_LEAVE_BEHIND=1")
	out, err := child.Output()
	if err != nil {
		t.Fatalf("the child: %v: %s", err, out)
	}
	ident := strings.TrimSpace(string(out))
	if left := Leftovers(ident); len(left) < 3 {
		t.Fatalf("the child left only %q", left)
	}
	// Several processes may find it at the same time.
	errs := make(chan error, 3)
	for range cap(errs) {
		go func() {
			_, err := CleanupStale()
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Errorf("cleaning up together: %v", err)
		}
	}
	r := newRig(t, "a")
	if left := Leftovers(ident); len(left) > 0 {
		t.Errorf("New left of the dead rig: %q", left)
	}
	if stale, err := CleanupStale(); err != nil || len(stale) > 0 {
		t.Errorf("a second cleaning found %q, %v", stale, err)
	}
	if _, err := os.Stat(filepath.Join(nsDir, r.Host("a").NS)); err != nil {
		t.Errorf("the living rig was touched: %v", err)
	}
}

func TestNewErrors(t *testing.T) {
	for _, hosts := range [][]string{{"a", "a"}, {"A"}, {"switch"}, {"far-too-long-a-name"}, {"../x"}} {
		r, err := New(hosts...)
		if err == nil {
			t.Errorf("New(%q) made a rig", hosts)
			r.Close()
		}
	}
	for ident, alive := range identities() {
		if _, mine, _ := identOf(ident); alive && mine && strings.Contains(ident, fmt.Sprintf("-%d-", os.Getpid())) {
			t.Errorf("a failed New left %q", Leftovers(ident))
		}
	}
}
