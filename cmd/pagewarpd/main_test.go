package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/pki"
)

func TestMain(m *testing.M) {
	// Most of these tests wait for deadlines of the daemons: more of them than
	// there are cores can do so side by side.
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		flag.Set("test.parallel", "5") // its value is a number
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if binariesDir != "" {
			os.RemoveAll(binariesDir)
		}
		os.Exit(code)
	}))
}

type result struct {
	code     int
	out, err string
}

func pagewarpd(t *testing.T, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	code := run(t.Context(), append([]string{}, args...), &out, &errOut, make(chan os.Signal))
	return result{code, out.String(), errOut.String()}
}

func write(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "pagewarpd.toml")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConfig(t *testing.T) {
	if r := pagewarpd(t, "config", "--example"); r.code != 0 || r.out != config.Example {
		t.Errorf("%+v", r)
	}
	r := pagewarpd(t, "config")
	if c, err := config.Parse("printed", r.out); err != nil || r.code != 0 || c.StateDir != config.DefaultStateDir {
		t.Errorf("%+v, %v", r, err)
	}
	// Flags win over the file.
	r = pagewarpd(t, "config", "--config", write(t, "state_dir='/a'\n[log]\nlevel='warn'"), "--state-dir", "/b", "--listen", "127.0.0.1:1", "--listen", "unix:/x")
	c, err := config.Parse("printed", r.out)
	if err != nil || c.StateDir != "/b" || c.Log.Level != "warn" || len(c.Listen) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestCheck(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := pki.Init(dir, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	i, err := pki.Issue(dir, "hostA", nil, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	tls := "[tls]\nca='" + i.CA + "'\ncert='" + i.Cert + "'\nkey='" + i.Key + "'\n"
	for _, c := range []struct {
		text, want string
		code       int
	}{
		{"", "loopback and unix sockets only", 0},
		{tls, "mutual TLS as hostA until", 0},
		{"insecure=true", "NONE", 0},
		{strings.ReplaceAll(tls, "hostA.key", "hostB.key"), "tls.key", exitError},
		{"[log]\nlevl='x'", `pagewarpd.toml:2: unknown key "log.levl"`, exitError},
		{"listen=['10.0.0.1:7070']", "no certificates", exitError},
		{"[templates.web1]\nbinary='/nonexistent/qemu'", `warning: templates."web1".binary cannot be run`, 0},
	} {
		if r := pagewarpd(t, "check", "--config", write(t, c.text)); r.code != c.code || !strings.Contains(r.out+r.err, c.want) {
			t.Errorf("%q: %+v, want %q", c.text, r, c.want)
		}
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"--lisen x", exitUsage, "unknown flag: --lisen"},
		{"serve", exitUsage, `"serve"`},
		{"check more", exitUsage, `"more"`},
		{"--state-dir " + dir + "/s --cpuprofile " + dir + "/p --trace " + dir + "/p", exitUsage, "one profile at a time"},
		{"--config /nonexistent.toml", exitError, "config --example > /nonexistent.toml"},
		{"--listen 0.0.0.0:7070", exitError, "--insecure"},
		{"--log-level loud", exitError, "choose debug"},
	} {
		r := pagewarpd(t, strings.Fields(c.args)...)
		if r.code != c.code || r.out != "" || !strings.Contains(r.err, c.want) {
			t.Errorf("%s: %+v", c.args, r)
		}
	}
}

// buffer collects a log for two goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// TestDaemon runs the real daemon, engine and all, from start to SIGTERM.
func TestDaemon(t *testing.T) {
	dir, err := os.MkdirTemp("", "pw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	state, prof := filepath.Join(dir, "s"), filepath.Join(dir, "p")
	states, err := listenNotify(t, filepath.Join(dir, "notify"))
	if err != nil {
		t.Fatal(err)
	}
	var log buffer
	signals, ended := make(chan os.Signal), make(chan int, 1)
	ctx := t.Context()
	go func() {
		ended <- run(ctx, []string{"--state-dir", state, "--listen", "127.0.0.1:0", "--listen", "unix:" + dir + "/peer", "--cpuprofile", prof, "--log-format", "json"}, &log, &log, signals)
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case s := <-states:
			if !strings.Contains(s, want) {
				t.Fatalf("state %q, want %q", s, want)
			}
		case code := <-ended:
			t.Fatalf("the daemon ended with %d\n%s", code, log.String())
		case <-time.After(20 * time.Second):
			t.Fatalf("no %s\n%s", want, log.String())
		}
	}
	expect("READY=1")
	c := api.NewClient(filepath.Join(state, config.SocketName), 10*time.Second)
	defer c.Close()
	v, err := c.Version(ctx)
	if err != nil || len(v.Listen) != 2 || strings.HasSuffix(v.Listen[0], ":0") {
		t.Errorf("%+v, %v", v, err)
	}
	if ms, err := c.Machines(ctx); err != nil || len(ms) != 0 {
		t.Error(ms, err)
	}
	if _, err := c.Add(ctx, "web1", dir+"/none.qmp"); err == nil {
		t.Error("a machine without QMP socket was adopted")
	}
	signals <- syscall.SIGTERM
	expect("STOPPING=1")
	select {
	case code := <-ended:
		if code != 0 {
			t.Errorf("exit code %d\n%s", code, log.String())
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the daemon does not end\n%s", log.String())
	}
	if fi, err := os.Stat(filepath.Join(prof, "cpu.pprof")); err != nil || fi.Size() == 0 {
		t.Errorf("profile: %v, %v", fi, err)
	}
	for _, p := range []string{filepath.Join(state, config.SocketName), dir + "/peer"} {
		if _, err := os.Lstat(p); err == nil {
			t.Errorf("%s is left behind", p)
		}
	}
}

func TestUnitFile(t *testing.T) {
	b, err := os.ReadFile("pagewarpd.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"KillMode=process", "Type=notify", "RuntimeDirectoryPreserve=yes", "StartLimitIntervalSec=0", "TimeoutStartSec=10min", "RuntimeDirectory=" + filepath.Base(config.DefaultStateDir)} {
		if !strings.Contains(string(b), "\n"+want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}
