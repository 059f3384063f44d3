package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/daemon"
	"github.com/pagewarp/pagewarp/cmd/internal/daemon/daemontest"
	"github.com/pagewarp/pagewarp/cmd/internal/pki"
	"github.com/pagewarp/pagewarp/relocate"
)

// lines collects a log and states, and lets a test wait for a text.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
	wake chan struct{}
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.wake)
	l.wake = make(chan struct{})
	return l.text.Write(b)
}

func (l *lines) await(t *testing.T, want string) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		text, wake := l.text.String(), l.wake
		l.mu.Unlock()
		if strings.Contains(text, want) {
			return
		}
		select {
		case <-wake:
		case <-limit:
			t.Fatalf("no %q in\n%s", want, text)
		}
	}
}

// process is a daemon under test.
type process struct {
	log     *lines
	host    *daemontest.Host
	engine  daemon.EngineConfig
	signals chan os.Signal
	ended   chan error
	level   *slog.LevelVar
	next    config.Config // what a reload reads
	client  *api.Client
}

func start(t *testing.T, c config.Config) *process {
	t.Helper()
	p := &process{log: &lines{wake: make(chan struct{})}, host: daemontest.New(), signals: make(chan os.Signal), ended: make(chan error, 1), level: new(slog.LevelVar)}
	ctx := t.Context()
	go func() {
		p.ended <- daemon.Run(ctx, daemon.Options{
			Config: c, Reload: func() (config.Config, error) { return p.next, nil }, Level: p.level,
			Log: daemon.NewLog(p.log, "text", p.level),
			NewEngine: func(_ context.Context, e daemon.EngineConfig) (daemon.Engine, error) {
				p.engine = e
				return p.host, nil
			},
			Signals: p.signals, Notify: func(s string) { fmt.Fprintf(p.log, "notify %s\n", s) },
		})
	}()
	p.client = api.NewClient(c.Socket(), 10*time.Second)
	t.Cleanup(p.client.Close)
	return p
}

func (p *process) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-p.ended:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the daemon does not end")
		return nil
	}
}

// stateDir is a short path: a unix socket's is limited.
func stateDir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "pw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

func conf(t *testing.T) config.Config {
	c := config.Default()
	c.StateDir = stateDir(t)
	return c
}

func TestLifeCycle(t *testing.T) {
	c := conf(t)
	p := start(t, c)
	p.log.await(t, "notify READY=1")
	p.log.await(t, "loopback and unix sockets only")
	fi, err := os.Stat(c.Socket())
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", fi, err)
	}
	v, err := p.client.Version(t.Context())
	if err != nil || v.Security != api.SecurityLocal || v.PID != os.Getpid() {
		t.Errorf("%+v, %v", v, err)
	}
	// A second daemon of the same state directory says who is there.
	err = start(t, c).end(t)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d uses state directory %s already", os.Getpid(), c.StateDir)) {
		t.Errorf("a second daemon: %v", err)
	}
	// Another state directory, the same socket.
	d := conf(t)
	d.API.Socket = c.Socket()
	if err := start(t, d).end(t); err == nil || !strings.Contains(err.Error(), "another program answers on") {
		t.Errorf("a second socket: %v", err)
	}
	p.signals <- syscall.SIGTERM
	if err := p.end(t); err != nil {
		t.Error(err)
	}
	p.log.await(t, "notify STOPPING=1")
	if _, err := os.Lstat(c.Socket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestStaleSocket(t *testing.T) {
	c := conf(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.Socket()})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close() // the socket file stays, as after a kill -9
	p := start(t, c)
	p.log.await(t, "notify READY=1")
	p.signals <- syscall.SIGTERM
	if err := p.end(t); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(c.Socket(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := start(t, c).end(t); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file in the socket's place: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	open := conf(t)
	if err := os.Chmod(open.StateDir, 0o755); err != nil {
		t.Fatal(err)
	}
	far := conf(t)
	far.Listen = []string{"0.0.0.0:7070"}
	cert := conf(t)
	cert.TLS = config.TLS{CA: "/nonexistent/ca", Cert: "/nonexistent/c", Key: "/nonexistent/k"}
	busy := conf(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	busy.Metrics.Listen = l.Addr().String()
	for want, c := range map[string]config.Config{
		"chmod 700": open, "--insecure": far, "pagewarp pki issue": cert, "choose another metrics.listen": busy,
	} {
		if err := start(t, c).end(t); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if _, err := os.Lstat(c.Socket()); err == nil {
			t.Errorf("%s: a socket is left behind", want)
		}
	}
}

// Journals that survive a reboot describe machines that are gone.
func TestStateOnADisk(t *testing.T) {
	for base, warned := range map[string]bool{"/dev/shm": false, "/var/tmp": true} {
		c := config.Default()
		dir, err := os.MkdirTemp(base, "pw")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		c.StateDir = dir
		p := start(t, c)
		p.log.await(t, "READY=1")
		p.signals <- syscall.SIGTERM
		if err := p.end(t); err != nil {
			t.Error(err)
		}
		if got := strings.Contains(p.log.text.String(), "not on tmpfs"); got != warned {
			t.Errorf("%s: warned %v, want %v", base, got, warned)
		}
	}
}

func TestInsecureIsLoud(t *testing.T) {
	c := conf(t)
	c.Insecure = true
	p := start(t, c)
	p.log.await(t, "level=WARN msg=\"INSECURE: anybody")
	p.log.await(t, "READY=1")
	r, err := p.client.Status(t.Context(), "")
	if err != nil || r.Daemon.Security != api.SecurityInsecure || !strings.Contains(r.Daemon.Warning, "clear text") {
		t.Errorf("%+v, %v", r, err)
	}
	p.signals <- syscall.SIGINT
	if err := p.end(t); err != nil {
		t.Error(err)
	}
}

func TestStopRollsBackAndKeeps(t *testing.T) {
	p := start(t, conf(t))
	p.log.await(t, "READY=1")
	if _, err := p.client.Add(t.Context(), "db1", "/run/db1.qmp"); err != nil {
		t.Fatal(err)
	}
	for _, vm := range []string{"web1", "db1"} {
		if _, err := p.client.Relocate(t.Context(), vm, api.RelocateRequest{To: "127.0.0.1:7070"}); err != nil {
			t.Fatal(err)
		}
	}
	p.host.Phase("db1", relocate.PhaseDraining, nil)
	p.signals <- syscall.SIGTERM
	if err := p.end(t); err != nil {
		t.Error(err)
	}
	p.log.await(t, `relocation goes on when a daemon runs here again" vm=db1`)
	for _, s := range p.host.Statuses() {
		if want := map[string]relocate.Phase{"web1": relocate.PhaseRolledBack, "db1": relocate.PhaseDraining}[s.VM]; s.Phase != want {
			t.Errorf("%s is %s, want %s", s.VM, s.Phase, want)
		}
	}
}

func TestReload(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := pki.Init(dir, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	i, err := pki.Issue(dir, "hostA", nil, false, time.Now().Add(-810*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	c := conf(t)
	c.TLS = config.TLS{CA: i.CA, Cert: i.Cert, Key: i.Key}
	c.Listen = []string{"127.0.0.1:0"}
	p := start(t, c)
	p.log.await(t, "READY=1")
	p.log.await(t, "pki issue hostA --force") // it expires in 15 days
	if p.engine.ServerTLS == nil || p.engine.ClientTLS == nil {
		t.Error("the engine got no TLS")
	}
	n, err := config.Parse("t", "[log]\nlevel='debug'\n[relocate]\ncodec='s2'\nhost_bandwidth='80M'\n[templates.web1]\nbinary='/opt/qemu'\n")
	if err != nil {
		t.Fatal(err)
	}
	n.StateDir, n.TLS, n.Listen = c.StateDir, c.TLS, []string{"127.0.0.1:9"}
	p.next = n
	p.signals <- syscall.SIGHUP
	p.log.await(t, "configuration reloaded")
	p.log.await(t, "take effect at the next start\" keys=[listen]")
	if p.level.Level() != slog.LevelDebug || p.engine.Template("web1").Binary != "/opt/qemu" || p.engine.Template("x").Binary != "" {
		t.Errorf("level %v, template %+v", p.level.Level(), p.engine.Template("web1"))
	}
	if got := p.host.HostBandwidth(); got != 10e6 {
		t.Errorf("the engine was told of a cap of %d bytes per second, want 10 MB/s", got)
	}
	if s, err := p.client.Relocate(t.Context(), "web1", api.RelocateRequest{To: "hostB:7070"}); err != nil || s.Options.Codec != "s2" {
		t.Errorf("%+v, %v", s, err)
	}
	bad := n
	bad.Log.Level = "loud"
	p.next = bad
	p.signals <- syscall.SIGHUP
	p.log.await(t, "configuration not reloaded, the old one stays")
	p.signals <- syscall.SIGTERM
	if err := p.end(t); err != nil {
		t.Error(err)
	}
}

func TestMetricsAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := conf(t)
	c.Metrics.Listen = l.Addr().String()
	l.Close()
	p := start(t, c)
	p.log.await(t, "READY=1")
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	hc := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	for path, want := range map[string]int{"/metrics": 200, "/v1/vms": 404} {
		res, err := hc.Get("http://" + c.Metrics.Listen + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, res.StatusCode, want)
		}
	}
	p.signals <- syscall.SIGTERM
	if err := p.end(t); err != nil {
		t.Error(err)
	}
}
