package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"reflect"
	"sync"
	"syscall"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/cmd/internal/pki"
	"github.com/pagewarp/pagewarp/cmd/internal/version"
	"github.com/pagewarp/pagewarp/relocate/qemu"
	"golang.org/x/sys/unix"
)

// Options of Run; all but Notify are needed.
type Options struct {
	Config config.Config
	// Reload reads the configuration again.
	Reload func() (config.Config, error)
	Log    *slog.Logger
	Level  *slog.LevelVar
	// NewEngine makes the engine.
	NewEngine func(context.Context, EngineConfig) (Engine, error)
	// Signals delivers SIGTERM, SIGINT and SIGHUP.
	Signals <-chan os.Signal
	// Notify tells the service manager a state in the notation of sd_notify(3).
	Notify func(state string)
}

// certificateCheck is how often an expiring certificate is complained about.
const certificateCheck = 12 * time.Hour

type process struct {
	Options
	started time.Time
	engine  Engine
	server  *Server
	store   *pki.Store // nil without certificates

	mu  sync.Mutex
	cfg config.Config // guarded by mu; the one in force
}

// Run is the daemon from its start to its end. It returns nil after a stop by
// signal, and the reason otherwise.
func Run(ctx context.Context, o Options) error {
	if o.Notify == nil {
		o.Notify = func(string) {}
	}
	p := &process{Options: o, started: time.Now(), cfg: o.Config}
	c := o.Config
	if err := c.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	level, err := config.ParseLevel(c.Log.Level)
	if err != nil {
		return err
	}
	o.Level.Set(level)
	if err := prepareDir(c.StateDir); err != nil {
		return err
	}
	if outlivesReboot(c.StateDir) {
		o.Log.Warn("the state directory is not on tmpfs: after a reboot of this host its journals describe machines that are gone; choose one below /run (state_dir)", "dir", c.StateDir)
	}
	lock, err := lockDir(c.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	ec := EngineConfig{StateDir: c.StateDir, Listen: c.Listeners(), Template: p.template, Relocate: c.Relocate, Engine: c.Engine, RDMA: c.RDMA, Cache: c.Cache, Log: o.Log}
	if c.TLS.Enabled() {
		if p.store, err = pki.Open(files(c.TLS), p.reloaded); err != nil {
			return err
		}
		ec.ServerTLS, ec.ClientTLS = p.store.Server(), p.store.Client
	}
	// The socket comes before the engine: a socket that cannot be had must not
	// cost a start that takes up relocations and lets go of them again.
	l, err := listenSocket(c.Socket())
	if err != nil {
		return err
	}
	defer l.Close() // removes the socket, too
	var ml net.Listener
	if c.Metrics.Listen != "" {
		if ml, err = net.Listen("tcp", c.Metrics.Listen); err != nil {
			if errors.Is(err, unix.EADDRINUSE) {
				err = fmt.Errorf("%w; another program has that address: choose another metrics.listen, or \"\" for none", err)
			}
			return fmt.Errorf("listen for metrics (metrics.listen): %w", err)
		}
		defer ml.Close()
	}
	if p.engine, err = o.NewEngine(ctx, ec); err != nil {
		return fmt.Errorf("start engine: %w", err)
	}
	p.server = NewServer(p.engine, c, p.info, o.Log)
	p.security()
	return p.serve(ctx, l, ml)
}

func (p *process) serve(ctx context.Context, l, ml net.Listener) error {
	var (
		wg     sync.WaitGroup
		failed = make(chan error, 3)
		stop   = make(chan struct{})
	)
	srv := p.server.httpServer(p.server.Handler())
	wg.Go(func() { failed <- wrap("serve API", srv.Serve(l)) })
	msrv := p.server.httpServer(p.server.metrics.ServeTCP())
	if ml != nil {
		wg.Go(func() { failed <- wrap("serve metrics", msrv.Serve(ml)) })
	}
	wg.Go(func() { failed <- wrap("serve peers", p.engine.Serve()) })
	wg.Go(func() { p.server.metrics.Watch(stop) })
	p.Log.Info("daemon is ready", "version", version.Get().Version, "pid", os.Getpid(), "peers", p.engine.Addrs(), "socket", p.current().Socket(), "state_dir", p.current().StateDir)
	p.Notify("READY=1\nSTATUS=serving " + p.current().Socket())
	err := p.wait(ctx, failed)
	p.Notify("STOPPING=1\nSTATUS=rolling back what is before its switch-over")
	err = errors.Join(err, p.shutdown())
	close(stop)
	p.server.EndStreams()
	end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, s := range []*http.Server{srv, msrv} {
		if s.Shutdown(end) != nil {
			s.Close()
		}
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	select {
	case <-ended:
		p.Log.Info("daemon has stopped")
	case <-end.Done():
		// Only an engine that does not settle gets here; err says so.
		p.Log.Error("daemon stops with work unfinished")
	}
	return err
}

// wrap gives an error of a server its name; a server that was told to stop has
// none.
func wrap(what string, err error) error {
	if err == nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// wait returns when the daemon should stop.
func (p *process) wait(ctx context.Context, failed <-chan error) error {
	check := time.NewTicker(certificateCheck)
	defer check.Stop()
	for {
		select {
		case err := <-failed:
			if err == nil {
				err = errors.New("a server ended by itself")
			}
			return err
		case <-ctx.Done():
			return nil
		case <-check.C:
			p.warnExpiry()
		case sig := <-p.Signals:
			if sig != syscall.SIGHUP {
				p.Log.Info("stopping", "signal", sig.String())
				return nil
			}
			p.reload()
		}
	}
}

// shutdown closes the engine and says what becomes of each live relocation.
func (p *process) shutdown() error {
	p.server.Refuse()
	limit := time.Duration(p.current().ShutdownTimeout)
	done := make(chan error, 1)
	go func() { done <- p.engine.Close() }()
	t := time.NewTimer(limit)
	defer t.Stop()
	var err error
	for waiting := true; waiting; {
		select {
		case err = <-done:
			waiting = false
		case <-t.C:
			// What is left are journals on tmpfs; the next daemon reads them.
			return fmt.Errorf("relocations did not settle within shutdown_timeout (%v); the next daemon takes them up", limit)
		case sig := <-p.Signals:
			if sig != syscall.SIGHUP {
				p.Log.Warn("still rolling back; a second signal does not hurry it", "limit", limit)
			}
		}
	}
	for _, s := range p.engine.Statuses() {
		if !s.Phase.Final() {
			p.Log.Warn("relocation goes on when a daemon runs here again", "vm", s.VM, "role", s.Role, "phase", s.Phase, "session", s.Session)
		}
	}
	return wrap("close engine", err)
}

// security says which protection is in force; the weak ones loudly.
func (p *process) security() {
	c := p.current()
	switch {
	case p.store != nil:
		p.Log.Info("peers are authenticated by mutual TLS", "certificate", p.store.Leaf().Subject.CommonName, "expires", p.store.Leaf().NotAfter.Format(time.DateOnly))
		p.warnExpiry()
	case c.Insecure:
		p.Log.Warn("INSECURE: anybody who reaches these addresses can send machines here, and guest memory travels in clear text; remove --insecure and set [tls]", "listen", c.Listeners())
	default:
		p.Log.Warn("no certificates: listening on loopback and unix sockets only; for other hosts run `pagewarp pki init` and `pagewarp pki issue NAME` and set [tls]", "listen", c.Listeners())
	}
}

func (p *process) warnExpiry() {
	if w := p.certificateWarning(); w != "" {
		p.Log.Warn(w)
	}
}

func (p *process) certificateWarning() string {
	if p.store == nil {
		return ""
	}
	return p.store.Expiring(time.Now())
}

// reload takes over what can change in a running daemon.
func (p *process) reload() {
	p.Notify("RELOADING=1")
	defer p.Notify("READY=1")
	next, err := p.Reload()
	if err == nil {
		err = next.Validate()
	}
	if err != nil {
		p.Log.Error("configuration not reloaded, the old one stays", "error", err)
		return
	}
	old := p.current()
	if p.store != nil && next.TLS.Enabled() {
		if err := p.store.Reload(files(next.TLS)); err != nil {
			p.Log.Error("certificates not reloaded, the old ones stay", "error", err)
			next.TLS = old.TLS
		}
	}
	if keys := fixed(old, next); len(keys) > 0 {
		p.Log.Warn("these keys take effect at the next start", "keys", keys)
	}
	applied := old
	applied.Log.Level, applied.Relocate, applied.Templates, applied.ShutdownTimeout = next.Log.Level, next.Relocate, next.Templates, next.ShutdownTimeout
	if p.store != nil && next.TLS.Enabled() {
		applied.TLS = next.TLS
	}
	if level, err := config.ParseLevel(next.Log.Level); err == nil {
		p.Level.Set(level)
	}
	p.mu.Lock()
	p.cfg = applied
	p.mu.Unlock()
	p.server.SetConfig(applied)
	p.engine.SetHostBandwidth(int64(applied.Relocate.HostBandwidth))
	p.Log.Info("configuration reloaded")
	p.warnExpiry()
}

// fixed names the changed keys that only a start applies.
func fixed(a, b config.Config) (keys []string) {
	for _, k := range []struct {
		name string
		a, b any
	}{
		{"state_dir", a.StateDir, b.StateDir}, {"listen", a.Listeners(), b.Listeners()}, {"insecure", a.Insecure, b.Insecure},
		{"api.socket", a.Socket(), b.Socket()}, {"tls", a.TLS.Enabled(), b.TLS.Enabled()}, {"log.format", a.Log.Format, b.Log.Format},
		{"metrics.listen", a.Metrics.Listen, b.Metrics.Listen}, {"engine", a.Engine, b.Engine}, {"cache", a.Cache, b.Cache},
		{"rdma", a.RDMA, b.RDMA},
		// Outgoing connections keep the authority that they were set up with.
		{"tls.ca", a.TLS.CA, b.TLS.CA},
	} {
		if !reflect.DeepEqual(k.a, k.b) {
			keys = append(keys, k.name)
		}
	}
	return keys
}

// reloaded is told by the certificate store what a change of the files led to.
func (p *process) reloaded(err error) {
	if err != nil {
		p.Log.Error("certificates changed on disk and cannot be used, the old ones stay", "error", err)
		return
	}
	p.Log.Info("certificates reloaded")
}

func (p *process) current() config.Config {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg
}

func (p *process) template(vm string) qemu.Template { return p.current().Template(vm) }

func (p *process) info() api.VersionReply {
	c := p.current()
	v := api.VersionReply{
		API: api.Version, Info: version.Get(), PID: os.Getpid(), Started: p.started,
		StateDir: c.StateDir, Listen: p.engine.Addrs(), Security: api.SecurityTLS, Warning: p.certificateWarning(),
	}
	source, reason, err := p.engine.FaultSource()
	if err != nil {
		source, reason = "none", err.Error()
	}
	v.FaultSource, v.FaultReason = source, reason
	if p.store == nil {
		v.Security = api.SecurityLocal
		if c.Insecure {
			v.Security = api.SecurityInsecure
			v.Warning = "--insecure: guest memory travels in clear text, and anybody may connect"
		}
	}
	return v
}

func files(t config.TLS) pki.Files {
	return pki.Files{CA: t.CA, Cert: t.Cert, Key: t.Key, Peers: t.Peers}
}
