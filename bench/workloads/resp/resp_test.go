package resp

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/internal/rig"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// redis starts the Redis of the guest's image on a unix socket, and returns how
// to connect to it.
func redis(t *testing.T) func(context.Context, string, string) (net.Conn, error) {
	t.Helper()
	top, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(top, "build", "guest", "programs", "redis")
	program := filepath.Join(root, "usr", "bin", "redis-server")
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("Redis is not there: %v; run 'make guest'", err)
	}
	socket := filepath.Join(t.TempDir(), "redis.sock")
	cmd := exec.Command(program, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--loglevel", "warning")
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(root, "usr/lib/x86_64-linux-gnu")+":"+filepath.Join(root, "lib/x86_64-linux-gnu"))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.Dir = t.TempDir()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := dial(t.Context(), "", "")
		if err == nil {
			c.Close()
			return dial
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // a socket offers nothing to wait on before it is there
	}
}

func await(t *testing.T, r *Run, ok func(Summary) bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		l := r.Log()
		s := l.Summary(l.Start, l.End)
		if ok(s) {
			return
		}
		if time.Now().After(deadline) {
			r.Stop()
			t.Fatalf("waited in vain; so far %+v", s)
		}
		time.Sleep(5 * time.Millisecond) // polls a condition that has a deadline
	}
}

func TestLoadOnRedis(t *testing.T) {
	dial := redis(t)
	r, err := Start(t.Context(), Config{Addr: "redis", Conns: 3, Keys: 100, ValueBytes: 777, Writes: 0.3, Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	await(t, r, func(s Summary) bool { return s.Good >= 2000 })
	l := r.Stop()
	s := l.Summary(l.Start, l.End)
	if s.Failed+s.Wrong != 0 || s.LatencyUS.Count != int64(s.Good) || s.LatencyUS.Max < s.LatencyUS.P50 {
		t.Errorf("summary %+v", s)
	}
	sum := 0
	for _, b := range l.Bins(l.Start, l.End) {
		sum += b.Count
	}
	if sum != s.Good {
		t.Errorf("the bins hold %d operations, the summary %d", sum, s.Good)
	}
}

// A server whose memory went back in time, was damaged, or forgot a key.
func TestWrongValuesAreFound(t *testing.T) {
	dial := redis(t)
	for _, tc := range []struct {
		name, want string
		writes     float64
		damage     func(c *conn, v []byte) error
	}{
		{"an old version", "is version 1 of", 0.5, func(c *conn, v []byte) error {
			value(v, 0, 1)
			return c.command([]byte("SET"), []byte("pagewarp:0"), v)
		}},
		{"one bit", "checksum", 0, func(c *conn, v []byte) error {
			v[500] ^= 1
			return c.command([]byte("SET"), []byte("pagewarp:0"), v)
		}},
		{"forgotten", "is gone", 0, func(c *conn, v []byte) error {
			return c.command([]byte("SET"), []byte("pagewarp:0"), v, []byte("PX"), []byte("1"))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			raw, err := dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			c := &conn{Conn: raw, in: bufio.NewReader(raw)}
			r, err := Start(t.Context(), Config{Addr: "redis", Conns: 1, Keys: 1, Dial: dial, Rate: 200, Writes: tc.writes})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Stop()
			await(t, r, func(s Summary) bool { return s.Good >= 20 })
			v := make([]byte, 1024)
			value(v, 0, 1)
			for range 50 { // a SET of the client's may come between
				if err := tc.damage(c, v); err != nil {
					t.Fatal(err)
				}
				if _, err := c.reply(nil); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Millisecond) // spreads the attempts over the load's schedule
			}
			await(t, r, func(s Summary) bool { return s.Wrong >= 1 })
			l := r.Stop()
			if s := l.Summary(l.Start, l.End); !strings.Contains(strings.Join(s.FirstErrors, ""), tc.want) {
				t.Errorf("errors %q, want one with %q", s.FirstErrors, tc.want)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	gone := func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
	for _, c := range []Config{
		{}, {Addr: "x", Keys: 2}, {Addr: "x", ValueBytes: 3}, {Addr: "x", Writes: 2}, {Addr: "x", Rate: -1}, {Addr: "x", Dial: gone},
	} {
		if r, err := Start(t.Context(), c); err == nil {
			r.Stop()
			t.Errorf("Start(%+v) gave no error", c)
		}
	}
	for _, text := range []string{"", "x\r\n", "+OK\n", "$x\r\n", "$9999999999\r\n", "$3\r\nabcde", "$1\r\n", "*1\r\n", "-ERR no\r\n"} {
		c := &conn{in: bufio.NewReader(strings.NewReader(text))}
		if got, err := c.reply(nil); err == nil {
			t.Errorf("reply %q read as %q", text, got)
		}
	}
	c := &conn{in: bufio.NewReader(strings.NewReader("+OK\r\n$-1\r\n$0\r\n\r\n$2\r\nab\r\n"))}
	for _, want := range []string{"OK", "", "", "ab"} {
		if got, err := c.reply(make([]byte, 1)); err != nil || string(got) != want {
			t.Errorf("reply %q, %v; want %q", got, err, want)
		}
	}
}

// A cut server costs failed operations and no storm of them.
func TestCutAndRecovery(t *testing.T) {
	dial := redis(t)
	cut := make(chan struct{})
	r, err := Start(t.Context(), Config{Addr: "redis", Conns: 1, Keys: 10, Deadline: 50 * time.Millisecond, Writes: 0.5,
		Dial: func(ctx context.Context, n, a string) (net.Conn, error) {
			c, err := dial(ctx, n, a)
			return &deaf{Conn: c, cut: cut}, err
		}})
	if err != nil {
		t.Fatal(err)
	}
	await(t, r, func(s Summary) bool { return s.Good >= 50 })
	close(cut)
	await(t, r, func(s Summary) bool { return s.Failed >= 3 })
	l := r.Stop()
	s := l.Summary(l.Start, l.End)
	if s.Wrong != 0 || s.LongestGap.LengthMS < 100 {
		t.Errorf("summary %+v", s)
	}
}

// deaf is a connection that, once cut, loses what is written to it.
type deaf struct {
	net.Conn
	cut chan struct{}
}

func (d *deaf) Write(p []byte) (int, error) {
	select {
	case <-d.cut:
		return len(p), nil
	default:
		return d.Conn.Write(p)
	}
}
