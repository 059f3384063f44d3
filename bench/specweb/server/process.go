package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/bench/specweb/model"
)

// EnvTask in the environment turns a start of our binary into one of the load's
// processes; see Main.
const EnvTask = "PAGEWARP_SPECWEB_TASK"

// task is what such a process is told.
type task struct {
	Role     string // "server" or "backend"
	Socket   string // of the back end
	Workload string
	Sessions int
	Scale    float64
	PoolMiB  int
	Share    float64 // incompressible
}

// Main is one of the load's processes, if this process was started as one, and
// then never returns; else it returns at once. The processes end with their
// parent.
func Main() {
	text := os.Getenv(EnvTask)
	if text == "" {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	// Standard input is a pipe from the parent, which ends with it, however it
	// ends. A parent-death signal would come when its thread ends.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // any end is the end
		cancel()
	}()
	var t task
	err := json.Unmarshal([]byte(text), &t)
	if err == nil {
		err = t.run(ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "SPECweb-style %s: %v\n", t.Role, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (t *task) run(ctx context.Context) error {
	switch t.Role {
	case "backend":
		l, err := net.Listen("unix", t.Socket)
		if err != nil {
			return err
		}
		return ServeBackEnd(ctx, l)
	case "server":
		return t.serve(ctx)
	}
	return fmt.Errorf("unknown role %q", t.Role)
}

// serve listens on two free ports of the loopback, plain and TLS, says them on
// standard output, and serves until ctx ends.
func (t *task) serve(ctx context.Context) error {
	w, err := model.ByName(t.Workload)
	if err != nil {
		return err
	}
	backEnd, err := StartBackEnd(t.Socket)
	if err != nil {
		return err
	}
	defer backEnd.Stop()
	s, err := New(Config{
		Workload: w, Sessions: t.Sessions, Scale: t.Scale, PoolMiB: t.PoolMiB, Incompressible: t.Share, DialBackEnd: backEnd.Dial,
		OnBad: func(n int, why string) { fmt.Fprintf(os.Stderr, "page %d of memory: %s\n", n, why) },
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	s.Register(mux)
	config, err := ServerTLS()
	if err != nil {
		return err
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, plain.Close())
	}
	fmt.Printf("%s %s\n", plain.Addr(), secure.Addr())
	// The memory goes with the process: a handler may still be at it.
	return Serve(ctx, mux, plain, tls.NewListener(secure, config))
}

// Serve serves h on the listeners until ctx ends; it closes them, and every
// connection, before it returns.
func Serve(ctx context.Context, h http.Handler, ls ...net.Listener) error {
	// Connections that a client gives up before their handshake is over are
	// the client's affair, and no news.
	quiet := log.New(io.Discard, "", 0)
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute, IdleTimeout: 5 * time.Minute, ErrorLog: quiet}
	done := make(chan error, len(ls))
	for _, l := range ls {
		go func() { done <- srv.Serve(l) }()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-done:
		done <- nil
	}
	// Close also ends the handlers' writes; what they still do, they do soon.
	closing, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if srv.Shutdown(closing) != nil {
		_ = srv.Close()
	}
	for range ls {
		<-done
	}
	return err
}

// Process is one of the load's processes.
type Process struct {
	cmd    *exec.Cmd
	alive  io.Closer // what the process's life hangs on
	done   chan struct{}
	err    error // valid once done is closed
	socket string
}

// StartBackEnd starts this binary anew as the back end, which listens on a unix
// socket at the path. The program must call Main.
func StartBackEnd(socket string) (*Process, error) {
	p, err := start(task{Role: "backend", Socket: socket}, nil)
	if err != nil {
		return nil, fmt.Errorf("start the back end: %w", err)
	}
	// A socket offers nothing to wait on before it is there.
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
			p.socket = socket
			return p, nil
		}
		if p.ended() || time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("start the back end: %w", err), p.Stop())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Dial connects to the back end.
func (p *Process) Dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", p.socket)
}

// Local is a server, with its back end, in processes of this machine.
type Local struct {
	*Process
	// Plain and Secure are the addresses, HOST:PORT, without and with TLS.
	Plain, Secure string
	dir           string
}

// StartLocal starts this binary anew as a server for the workload on the
// loopback, which starts its back end. The program must call Main.
func StartLocal(ctx context.Context, workload string, sessions int, scale float64) (*Local, error) {
	dir, err := os.MkdirTemp("", "pagewarp-specweb-")
	if err != nil {
		return nil, err
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	defer out.Close()
	p, err := start(task{
		Role: "server", Socket: filepath.Join(dir, "backend.sock"), Workload: workload, Sessions: sessions, Scale: scale, Share: 0.5,
	}, in)
	in.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the server: %w", err), os.RemoveAll(dir))
	}
	l := &Local{Process: p, dir: dir}
	stop := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Now()) })
	defer stop()
	buf := make([]byte, 200)
	n, err := out.Read(buf)
	if err == nil {
		_, err = fmt.Sscanf(string(buf[:n]), "%s %s\n", &l.Plain, &l.Secure)
	}
	if err != nil {
		stopErr := l.Stop()
		return nil, errors.Join(fmt.Errorf("start the server: it did not say where it listens: %w", err), ctx.Err(), stopErr)
	}
	return l, nil
}

// Stop ends the server and its back end.
func (l *Local) Stop() error {
	return errors.Join(l.Process.Stop(), os.RemoveAll(l.dir))
}

func start(t task, stdout *os.File) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, EnvTask+"=") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, EnvTask+"="+string(text))
	cmd.Stderr = os.Stderr
	if stdout != nil {
		cmd.Stdout = stdout
	}
	// A group of its own: Ctrl-C is the client's, which then stops us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	alive, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{cmd: cmd, alive: alive, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *Process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Stop ends the process, by force if it does not end within 5 s, and returns
// how it ended.
func (p *Process) Stop() error {
	if p.ended() {
		return p.err
	}
	_ = p.alive.Close() // it may just have ended
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	return p.err
}
