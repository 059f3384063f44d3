package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// StateStream carries QEMU's device state over a unix socket. Every Read and
// Write fails with ErrTimeout when nothing moves for the idle time. Close may be
// called at any time, more than once, and ends a Read or Write under way.
type StateStream struct {
	conn *net.UnixConn
	idle time.Duration
}

// Read reads what QEMU writes; io.EOF is the end of its stream.
func (s *StateStream) Read(p []byte) (int, error) {
	s.conn.SetReadDeadline(time.Now().Add(s.idle))
	n, err := s.conn.Read(p)
	return n, s.explain("read", err)
}

// Write gives QEMU a part of the stream.
func (s *StateStream) Write(p []byte) (int, error) {
	s.conn.SetWriteDeadline(time.Now().Add(s.idle))
	n, err := s.conn.Write(p)
	return n, s.explain("write", err)
}

func (s *StateStream) explain(verb string, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return detailed(ErrTimeout, "%s device state: nothing moved for %v", verb, s.idle)
	}
	return err // io.EOF must stay itself
}

// Close ends the stream. On the source this makes an unfinished migration fail.
func (s *StateStream) Close() error {
	if err := s.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close device state: %w", err)
	}
	return nil
}

// NewStatePair makes a stream and the other end of it, for [Outgoing.StartMigrateTo] and
// [Inbound.IncomingFrom]. The stream's reads and writes fail when nothing moves for the idle
// time.
func NewStatePair(idle time.Duration) (*StateStream, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket for device state: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "state"), os.NewFile(uintptr(fds[1]), "state of QEMU")
	defer ours.Close() // FileConn has its own
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socket for device state: %w", err)
	}
	return &StateStream{conn: c.(*net.UnixConn), idle: idle}, theirs, nil
}

// executeOn runs a command of a migration on a socket that QEMU is handed, which is closed
// here.
func (v *VM) executeOn(ctx context.Context, command string, end *os.File) error {
	defer end.Close()
	const name = "pagewarp-state"
	if err := v.mon.executeWith(ctx, "getfd", map[string]string{"fdname": name}, end, nil); err != nil {
		return err
	}
	err := v.Execute(ctx, command, map[string]string{"uri": "fd:" + name}, nil)
	if err != nil {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), CommandTimeout)
		defer cancel()
		v.Execute(back, "closefd", map[string]string{"fdname": name}, nil) // it may have been used
	}
	return err
}

// StateListener is a private socket to which the source's QEMU connects.
type StateListener struct {
	ln   *net.UnixListener
	dir  string
	path string
	once sync.Once
}

// ListenState makes a directory of mode 0700 in dir, owned by uid (QEMU's), and
// in it a socket of mode 0600.
func ListenState(dir string, uid int) (*StateListener, error) {
	d, err := os.MkdirTemp(dir, statePlaces)
	if err != nil {
		return nil, fmt.Errorf("socket for device state: %w", err)
	}
	l := &StateListener{dir: d, path: filepath.Join(d, "s")}
	if err = checkSocketPath(l.path); err == nil {
		l.ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: l.path, Net: "unix"})
	}
	if err == nil {
		err = os.Chmod(l.path, 0o600)
	}
	if err == nil && uid != os.Geteuid() {
		err = errors.Join(os.Lchown(l.path, uid, -1), os.Lchown(d, uid, -1))
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("socket for device state: %w", err)
	}
	return l, nil
}

// statePlaces is the pattern of the directories that are made for device state.
const statePlaces = "state-*"

// RemoveStatePlaces removes what ListenState and NewStateDialer have made in dir and a
// process that was killed has left.
func RemoveStatePlaces(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, statePlaces))
	for _, d := range left {
		err = errors.Join(err, os.RemoveAll(d))
	}
	if err != nil {
		return fmt.Errorf("remove old sockets for device state: %w", err)
	}
	return nil
}

// URI is the argument of StartMigrate.
func (l *StateListener) URI() string { return "unix:" + l.path }

// Accept waits for the QEMU of that pid, and removes the socket. The stream's
// reads fail when nothing comes for the idle time.
func (l *StateListener) Accept(ctx context.Context, pid int, idle time.Duration) (*StateStream, error) {
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.ln.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c, err := l.ln.AcceptUnix()
	if err != nil {
		if ctx.Err() != nil {
			err = contextError(ctx)
		}
		return nil, fmt.Errorf("accept device state of QEMU pid %d: %w", pid, err)
	}
	cred, err := peerCred(c)
	if err == nil && int(cred.Pid) != pid {
		err = fmt.Errorf("pid %d connected", cred.Pid)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("accept device state of QEMU pid %d: %w", pid, err)
	}
	return &StateStream{conn: c, idle: idle}, nil
}

// Close removes the socket and its directory; a stream accepted lives on.
func (l *StateListener) Close() error {
	var err error
	l.once.Do(func() {
		if l.ln != nil {
			err = l.ln.Close() // unlinks the socket
		}
		err = errors.Join(err, os.RemoveAll(l.dir))
	})
	if err != nil {
		return fmt.Errorf("remove socket for device state: %w", err)
	}
	return nil
}

// StateDialer is a private place where the destination's QEMU listens.
type StateDialer struct {
	dir  string
	path string
	once sync.Once
}

// NewStateDialer makes a directory of mode 0700 in dir, owned by uid (QEMU's).
func NewStateDialer(dir string, uid int) (*StateDialer, error) {
	d, err := os.MkdirTemp(dir, statePlaces)
	if err != nil {
		return nil, fmt.Errorf("socket for device state: %w", err)
	}
	s := &StateDialer{dir: d, path: filepath.Join(d, "s")}
	err = checkSocketPath(s.path)
	if err == nil && uid != os.Geteuid() {
		err = os.Lchown(d, uid, -1)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("socket for device state: %w", err)
	}
	return s, nil
}

// URI is the argument of Incoming.
func (s *StateDialer) URI() string { return "unix:" + s.path }

// Dial connects to the QEMU of that pid after Incoming, and removes the socket.
func (s *StateDialer) Dial(ctx context.Context, pid int, idle time.Duration) (*StateStream, error) {
	defer s.Close()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", s.path)
	if err != nil {
		return nil, fmt.Errorf("connect to QEMU pid %d for device state: %w", pid, err)
	}
	conn := c.(*net.UnixConn)
	cred, err := peerCred(conn)
	if err == nil && int(cred.Pid) != pid {
		err = fmt.Errorf("pid %d listens at %s", cred.Pid, s.path)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to QEMU pid %d for device state: %w", pid, err)
	}
	return &StateStream{conn: conn, idle: idle}, nil
}

// Close removes the socket and its directory; a stream connected lives on.
func (s *StateDialer) Close() error {
	var err error
	s.once.Do(func() { err = os.RemoveAll(s.dir) })
	if err != nil {
		return fmt.Errorf("remove socket for device state: %w", err)
	}
	return nil
}

// checkSocketPath refuses what does not fit into a socket address (unix(7)).
func checkSocketPath(path string) error {
	if most := len(unix.RawSockaddrUnix{}.Path) - 1; len(path) > most {
		return fmt.Errorf("socket path %s has %d bytes, at most %d are possible: use a shorter directory", path, len(path), most)
	}
	return nil
}
