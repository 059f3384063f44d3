package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/relocate/qemu/qemutest"
	"golang.org/x/sys/unix"
)

func fake(t *testing.T) (*qemutest.Server, string) {
	t.Helper()
	path := filepath.Join(shortDir(t), "q")
	s, err := qemutest.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, path
}

// shortDir is a temporary directory whose socket paths fit into an address.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pwq")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T, path string) *VM {
	t.Helper()
	v, err := Connect(within(t, 10*time.Second), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// wantError checks for a sentinel and for words that make the message useful.
func wantError(t *testing.T, err, want error, words ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not mention %q", err, w)
		}
	}
}

func TestConnectMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	_, err := Connect(t.Context(), path)
	wantError(t, err, ErrMonitorMissing, path, "-qmp")
}

func TestConnectDead(t *testing.T) {
	path := filepath.Join(shortDir(t), "q")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	_, err = Connect(t.Context(), path)
	wantError(t, err, ErrMonitorDead, path)
}

func TestConnectToAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Connect(t.Context(), path); err == nil || errors.Is(err, ErrMonitorDead) || !strings.Contains(err.Error(), path+" is no socket") {
		t.Error(err)
	}
}

// A QEMU that has just been started was seen to greet twice, on a busy host.
func TestGreetedTwice(t *testing.T) {
	s, path := fake(t)
	s.Greet(qemutest.Greeting + "\n" + qemutest.Greeting + "\n")
	m, err := Connect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
}

func TestConnectRefusedByPermission(t *testing.T) {
	err := dialError("/run/q", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unix.EACCES)})
	wantError(t, err, unix.EACCES, "/run/q", "run it as root")
}

func TestConnectFaults(t *testing.T) {
	for _, c := range []struct {
		name, greeting string
		reply          qemutest.Reply
		want           error
		words          string
	}{
		{"no greeting", "", nil, ErrMonitorBusy, "second -qmp"},
		{"HMP", "QEMU 7.2.22 monitor - type 'help' for more information\r\n", nil, nil, "HMP monitor"},
		{"half a greeting", qemutest.Greeting[:40], nil, ErrMonitorBusy, "greeting"},
		{"silent handshake", qemutest.Greeting + "\n", qemutest.Stall, ErrTimeout, "handshake"},
		{"hang-up in handshake", qemutest.Greeting + "\n", qemutest.HangUp, ErrDisconnected, "handshake"},
		{"garbage in handshake", qemutest.Greeting + "\n", qemutest.Raw("%%%\n"), nil, "QMP sent"},
		{"refused handshake", qemutest.Greeting + "\n", qemutest.Fail("GenericError", "no way"), nil, "no way"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, path := fake(t)
			s.Greet(c.greeting)
			if c.reply != nil {
				s.Handle("qmp_capabilities", c.reply)
			}
			start := time.Now()
			_, err := Connect(within(t, 300*time.Millisecond), path)
			if err == nil {
				t.Fatal("connected")
			}
			if c.want != nil {
				wantError(t, err, c.want)
			}
			if !strings.Contains(err.Error(), c.words) {
				t.Errorf("error %q does not mention %q", err, c.words)
			}
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestConnectCancelled(t *testing.T) {
	s, path := fake(t)
	s.Greet("")
	ctx, cancel := context.WithCancel(t.Context())
	stop := time.AfterFunc(20*time.Millisecond, cancel)
	defer stop.Stop()
	if _, err := Connect(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestCommandErrorClass(t *testing.T) {
	_, path := fake(t)
	v := connect(t, path)
	err := v.Execute(t.Context(), "no-such", nil, nil)
	var refused *CommandError
	if !errors.As(err, &refused) || refused.Class != "CommandNotFound" || refused.Command != "no-such" {
		t.Errorf("error is %#v", err)
	}
}

// TestLateReply: a command that timed out must not give its reply to the next.
func TestLateReply(t *testing.T) {
	s, path := fake(t)
	release := make(chan struct{})
	s.Handle("slow", func(c *qemutest.Conn, _ qemutest.Command) {
		<-release
		c.Send(map[string]any{"return": "slow"})
	})
	s.Handle("quick", qemutest.Return("quick"))
	v := connect(t, path)
	var got string
	wantError(t, v.Execute(within(t, 20*time.Millisecond), "slow", nil, &got), ErrTimeout, "slow")
	wantError(t, v.Execute(within(t, 20*time.Millisecond), "quick", nil, &got), ErrTimeout, "earlier command")
	close(release)
	if err := v.Execute(within(t, 5*time.Second), "quick", nil, &got); err != nil || got != "quick" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestEventStorm: replies stay whole and no event is lost or moved while events
// (some of them long) follow every reply at once, and a subscriber reads at the end.
func TestEventStorm(t *testing.T) {
	s, path := fake(t)
	const rounds, each = 200, 10
	n := 0
	s.Handle("echo", func(c *qemutest.Conn, cmd qemutest.Command) {
		var b strings.Builder
		fmt.Fprintf(&b, "{\"return\": %q}\r\n", strings.Repeat("x", 100+n%1000))
		for range each {
			fmt.Fprintf(&b, "{\"event\": \"RESET\", \"data\": {\"n\": %d, \"pad\": %q}, \"timestamp\": {\"seconds\": 100, \"microseconds\": %d}}\r\n", n, strings.Repeat("p", n%7*n%3000), n)
			n++
		}
		c.Raw(b.String())
	})
	v := connect(t, path)
	sub := v.Subscribe()
	defer sub.Close()
	for i := range rounds {
		var got string
		if err := v.Execute(within(t, 5*time.Second), "echo", nil, &got); err != nil {
			t.Fatal(err)
		}
		if want := 100 + i*each%1000; len(got) != want || strings.Trim(got, "x") != "" {
			t.Fatalf("round %d: reply of %d bytes, want %d", i, len(got), want)
		}
	}
	for i := range rounds * each {
		e, err := sub.Next(within(t, 5*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if e.Data["n"] != float64(i) || !e.Time.Equal(time.UnixMicro(100e6+int64(i))) {
			t.Fatalf("event %d is %v", i, e)
		}
	}
}

func TestLongReply(t *testing.T) {
	s, path := fake(t)
	s.Handle("long", qemutest.Return(strings.Repeat("y", 300<<10)))
	s.Handle("short", qemutest.Return("z"))
	v := connect(t, path)
	var got string
	if err := v.Execute(t.Context(), "long", nil, &got); err != nil || len(got) != 300<<10 {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if err := v.Execute(t.Context(), "short", nil, &got); err != nil || got != "z" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestEventOverflow(t *testing.T) {
	s, path := fake(t)
	s.Handle("flood", func(c *qemutest.Conn, _ qemutest.Command) {
		for range MaxQueuedEvents + 10 {
			c.Event("RESET", time.Unix(1, 0), nil)
		}
		c.Send(map[string]any{"return": struct{}{}})
	})
	v := connect(t, path)
	slow, other := v.Subscribe(), v.Subscribe("STOP")
	defer slow.Close()
	defer other.Close()
	if err := v.Execute(t.Context(), "flood", nil, nil); err != nil {
		t.Fatal(err)
	}
	var err error
	n := 0
	for ; err == nil; n++ {
		_, err = slow.Next(within(t, 5*time.Second))
	}
	wantError(t, err, ErrEventOverflow)
	if n-1 != MaxQueuedEvents {
		t.Errorf("%d events before the overflow, want %d", n-1, MaxQueuedEvents)
	}
	if _, err := other.Next(within(t, 10*time.Millisecond)); !errors.Is(err, ErrTimeout) {
		t.Errorf("the other subscriber has %v", err)
	}
}

func TestDisconnect(t *testing.T) {
	for _, c := range []struct {
		name  string
		reply qemutest.Reply
		words string
	}{
		{"hang-up", qemutest.HangUp, "closed the monitor"},
		{"half a line", func(c *qemutest.Conn, cmd qemutest.Command) { c.Raw(`{"retu`); qemutest.HangUp(c, cmd) }, "closed the monitor"},
		{"garbage", qemutest.Raw("\x00\xff}{\n"), "QMP sent"},
		{"two replies", qemutest.Raw("{\"return\": 1}\n{\"return\": 2}\n"), "without a command"},
		{"no reply, no event", qemutest.Raw("{}\n"), "neither event nor reply"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, path := fake(t)
			s.Handle("boom", c.reply)
			v := connect(t, path)
			sub := v.Subscribe()
			s.Conn().Event("STOP", time.Unix(5, 0), nil)
			start := time.Now()
			err := v.Execute(t.Context(), "boom", nil, nil)
			if c.name != "two replies" {
				wantError(t, err, ErrDisconnected, c.words)
			}
			if e, err := sub.Next(within(t, time.Second)); err != nil || e.Name != "STOP" {
				t.Errorf("the event before the end: %v, %v", e, err)
			}
			_, err = sub.Next(within(t, time.Second))
			wantError(t, err, ErrDisconnected, c.words)
			select {
			case <-v.Done():
			case <-within(t, time.Second).Done():
				t.Error("Done is not closed")
			}
			wantError(t, v.Execute(t.Context(), "boom", nil, nil), ErrDisconnected)
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestCloseDuringCommand(t *testing.T) {
	s, path := fake(t)
	begun := make(chan struct{})
	s.Handle("stall", func(*qemutest.Conn, qemutest.Command) { close(begun) })
	v := connect(t, path)
	res := make(chan error, 1)
	go func() { res <- v.Execute(context.Background(), "stall", nil, nil) }()
	<-begun
	v.Close()
	wantError(t, <-res, ErrDisconnected)
	sub := v.Subscribe()
	if _, err := sub.Next(t.Context()); !errors.Is(err, ErrDisconnected) {
		t.Errorf("subscription after Close: %v", err)
	}
}

func TestStateStreamIdle(t *testing.T) {
	l, err := ListenState(shortDir(t), os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	path := strings.TrimPrefix(l.URI(), "unix:")
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st, err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept(within(t, time.Second), os.Getpid(), 30*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory is still there: %v", err)
	}
	_, err = s.Read(make([]byte, 1))
	wantError(t, err, ErrTimeout, "nothing moved")
	c.Close()
	if _, err := s.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	s.Close()
	s.Close()

	// A stranger, and nobody at all.
	l, err = ListenState(shortDir(t), os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	if c, err = net.Dial("unix", strings.TrimPrefix(l.URI(), "unix:")); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := l.Accept(within(t, time.Second), 1, time.Second); err == nil {
		t.Error("accepted a stranger")
	}
	if l, err = ListenState(shortDir(t), os.Geteuid()); err != nil {
		t.Fatal(err)
	}
	_, err = l.Accept(within(t, 20*time.Millisecond), 1, time.Second)
	wantError(t, err, ErrTimeout)
}
