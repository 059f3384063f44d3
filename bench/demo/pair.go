package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/relocate"
)

// Client talks to one daemon.
type Client interface {
	Add(ctx context.Context, name, qmp string) (relocate.Machine, error)
	Relocate(ctx context.Context, name, to string, o relocate.Options) (relocate.Status, error)
	Statuses(ctx context.Context, vm string) ([]relocate.Status, error)
	Events(ctx context.Context) ([]relocate.Event, error)
	Close()
}

// Tools are what a Pair is made with; all fields must be set.
type Tools struct {
	// Pagewarpd is the daemon's program.
	Pagewarpd string
	// Dial makes a client of the daemon behind a socket; it connects later.
	Dial func(socket string) Client
	// Certificates makes the certificate of a host in dir, and the authority
	// before the first one, and returns their files.
	Certificates func(dir, host string, addr netip.Addr) (ca, cert, key string, err error)
	// Insecure leaves out certificates and TLS, to compare with what has none.
	Insecure bool
	// FaultLog, if not empty, is a folder for the daemons' logs of faults; an
	// absolute path.
	FaultLog string
	// Cache, if not 0, is how many bytes of memory of machines that leave a daemon
	// keeps for their return.
	Cache uint64
}

const (
	daemonPort    = "7070"
	daemonTimeout = 10 * time.Second
	pollEvery     = 100 * time.Millisecond
)

// Pair is two hosts with daemons, and a host for the client.
type Pair struct {
	Rig  *rig.Rig
	A, B *Side
	// Client is the host from which requests come.
	Client *rig.Host
}

// Side is a host with its daemon. Its fields are immutable.
type Side struct {
	*rig.Host
	Daemon Client
	// Addr is where the daemon listens for peers.
	Addr string
	// LogPath is the daemon's log.
	LogPath string

	proc *exec.Cmd
	done chan struct{} // closed when the daemon was reaped
	err  error         // how it ended; valid once done is closed
}

// NewPair makes the hosts and starts their daemons, each with a certificate of
// a new authority and a tap0 for a VM. Logs go to logDir. Close removes all.
func NewPair(ctx context.Context, t Tools, logDir string) (_ *Pair, err error) {
	if err := os.MkdirAll(logDir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of logs: %w", err)
	}
	r, err := rig.New("a", "b", "client")
	if err != nil {
		return nil, err
	}
	p := &Pair{Rig: r, Client: r.Host("client")}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	for name, side := range map[string]**Side{"a": &p.A, "b": &p.B} {
		h := r.Host(name)
		if err := h.AddTap("tap0"); err != nil {
			return nil, err
		}
		*side = &Side{Host: h, Addr: netip.MustParseAddr(h.Addr.String()).String() + ":" + daemonPort,
			LogPath: filepath.Join(logDir, "pagewarpd-"+name+".log")}
	}
	for _, s := range []*Side{p.A, p.B} {
		if err := s.start(t, p.other(s), p.A.Dir); err != nil {
			return nil, err
		}
	}
	for _, s := range []*Side{p.A, p.B} {
		if err := s.awaitDaemon(ctx); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *Pair) other(s *Side) *Side {
	if s == p.A {
		return p.B
	}
	return p.A
}

// Close ends the daemons and removes the hosts with all that runs in them.
func (p *Pair) Close() error {
	for _, s := range []*Side{p.A, p.B} {
		if s != nil && s.Daemon != nil {
			s.Daemon.Close()
		}
		if s != nil && s.proc != nil {
			// It fails only if the daemon has ended, which is what is wanted.
			_ = s.proc.Process.Kill()
			<-s.done
		}
	}
	return p.Rig.Close()
}

func (s *Side) stateDir() string { return filepath.Join(s.Dir, "pagewarpd") }

// config is the daemon's configuration: whatever comes from the other host has
// its paths under this one's folder.
func (s *Side) config(security string, other *Side) string {
	return fmt.Sprintf(`state_dir = %q
listen = [%q]
%s
[[templates."*".rewrite]]
from = %q
to = %q
`, s.stateDir(), s.Addr, security, other.Dir, s.Dir)
}

// security is the part of the configuration that says who may connect.
func (s *Side) security(t Tools, pkiDir string) (string, error) {
	if t.Insecure {
		return "insecure = true", nil
	}
	ca, cert, key, err := t.Certificates(filepath.Join(pkiDir, "pki"), "host"+s.Name, s.Host.Addr)
	if err != nil {
		return "", fmt.Errorf("certificate of host %s: %w", s.Name, err)
	}
	return fmt.Sprintf("[tls]\nca = %q\ncert = %q\nkey = %q", ca, cert, key), nil
}

// start starts the daemon; pkiDir holds the authority of all.
func (s *Side) start(t Tools, other *Side, pkiDir string) error {
	security, err := s.security(t, pkiDir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.stateDir(), 0o700); err != nil {
		return err
	}
	if t.FaultLog != "" {
		security += fmt.Sprintf("\n[engine]\nfault_log = %q", t.FaultLog)
	}
	if t.Cache > 0 {
		// Where the RAM files are, so that keeping them costs no copy.
		security += fmt.Sprintf("\n[cache]\ndir = %q\nsize = \"%dM\"", filepath.Join(s.Dir, "kept"), t.Cache>>20)
	}
	path := filepath.Join(s.Dir, "pagewarpd.toml")
	if err := os.WriteFile(path, []byte(s.config(security, other)), 0o600); err != nil {
		return err
	}
	log, err := os.Create(s.LogPath)
	if err != nil {
		return err
	}
	defer log.Close()
	s.Daemon = t.Dial(filepath.Join(s.stateDir(), "api.sock"))
	// Not tied to a context: Close ends the daemon after its QEMUs are seen to.
	s.proc = s.Command(context.Background(), t.Pagewarpd, "--config", path)
	s.proc.Stdout, s.proc.Stderr = log, log
	// Ctrl-C on the terminal is for us; we end the daemons ourselves.
	s.proc.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.proc.Start(); err != nil {
		s.proc = nil
		return fmt.Errorf("start the daemon of host %s: %w", s.Name, err)
	}
	s.done = make(chan struct{})
	go func() {
		s.err = s.proc.Wait()
		close(s.done)
	}()
	return nil
}

// awaitDaemon waits until the daemon answers.
func (s *Side) awaitDaemon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, daemonTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := s.Daemon.Statuses(ctx, "")
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.done:
			return fmt.Errorf("the daemon of host %s has ended: %w\n%s", s.Name, s.err, s.tail())
		case <-ctx.Done():
			return fmt.Errorf("the daemon of host %s does not answer: %w\n%s", s.Name, err, s.tail())
		}
	}
}

// tail is the end of the daemon's log.
func (s *Side) tail() string {
	b, err := os.ReadFile(s.LogPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err.Error()
	}
	const most = 3000
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return "--- " + s.LogPath + "\n" + strings.TrimSpace(string(b))
}
