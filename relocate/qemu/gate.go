package qemu

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

// Why there is a gate between QEMU and the QMP library. qmp.SocketMonitor
//   - has no deadline on connecting, greeting or commands, and its Disconnect may
//     not run beside its Connect;
//   - returns replies in the scanner's buffer, which its reader goroutine
//     overwrites with what comes next (an event right after a reply, the usual
//     case at a switch-over, corrupts the reply);
//   - loses an event that arrives together with the answer to the handshake;
//   - ends silently at a line of 64 KiB (query-cpus-fast at some 400 vCPUs);
//   - drops the class of an error.
//
// The gate is the one who talks to QEMU's socket. It passes one line at a time
// to the library over a private socket, and the next only when the first has
// come out at the other end. A reply stays here, the library gets a token of it.
//
// The token is short for the sake of the race detector, which does not see that
// a byte written to a socket is read later (syscall.Read marks its buffer before
// it acquires): a bufio.Scanner writes behind the last line, or, past the middle
// of its 4 KiB, from the start; then a short line never lies where the next one
// goes, if that is short too. A long event is preceded by a short one.
const (
	maxLibraryLine = 60 << 10 // below the 64 KiB limit of bufio.Scanner
	maxReply       = 16 << 20
	shortLine      = 1 << 10
	greetingWait   = 2 * time.Second
	spacerEvent    = "_SPACER" // of ours, before a long event

	returnToken = "{\"return\": {}}\n"
	errorToken  = "{\"error\": {\"desc\": \"x\"}}\n"
	spacerLine  = "{\"event\": \"" + spacerEvent + "\"}\n"
)

// gate carries lines between QEMU and a qmp.SocketMonitor.
type gate struct {
	qemu *net.UnixConn // QEMU's monitor
	lib  *net.UnixConn // our end of the library's connection
	in   *bufio.Reader // of qemu; used by the handshake, then by down only

	taken chan struct{} // the line passed last has come out of the library
	quit  chan struct{} // closed by stop

	stopOnce sync.Once
	mu       sync.Mutex
	awaiting bool  // guarded by mu: a command is out, its reply has not passed
	reply    reply // guarded by mu: the last one
	cause    error // guarded by mu: why down ended
}

// reply is QEMU's answer to a command.
type reply struct {
	value []byte        // JSON, of "return"
	err   *CommandError // without its Command; nil if QEMU did as told
}

// dialGate connects to the monitor at path and waits for its greeting. The pid
// is the process that listens, as the kernel recorded it.
func dialGate(ctx context.Context, path string) (*gate, []byte, *unix.Ucred, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, nil, nil, dialError(path, err)
	}
	conn := c.(*net.UnixConn)
	cred, err := peerCred(conn)
	if err != nil {
		conn.Close()
		return nil, nil, nil, err
	}
	deadline := time.Now().Add(greetingWait)
	if t, ok := ctx.Deadline(); ok && t.Before(deadline) {
		deadline = t
	}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn.SetReadDeadline(deadline)
	g := &gate{
		qemu:  conn,
		in:    bufio.NewReaderSize(conn, maxLibraryLine),
		taken: make(chan struct{}, 1),
		quit:  make(chan struct{}),
	}
	line, err := g.readLine()
	if err != nil {
		conn.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != context.Canceled {
			return nil, nil, nil, detailed(ErrMonitorBusy,
				"%s accepted the connection and sent no greeting: QEMU (pid %d) serves one client at a time, another one (libvirt, a script) holds this socket, or its main loop is stuck; give QEMU a second -qmp unix:PATH,server=on,wait=off and name that", path, cred.Pid)
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, nil, nil, detailed(ErrDisconnected, "greeting of %s: %w", path, err)
	}
	if !bytes.Contains(line, []byte(`"QMP"`)) {
		conn.Close()
		return nil, nil, nil, fmt.Errorf("greeting of %s: %.80q is not QMP; is it an HMP monitor (-monitor) or a serial port? name the -qmp socket", path, line)
	}
	conn.SetReadDeadline(time.Time{})
	return g, line, cred, nil
}

func dialError(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return detailed(ErrMonitorMissing, "%s: start QEMU with -qmp unix:%s,server=on,wait=off, or correct the path", path, path)
	case errors.Is(err, unix.ECONNREFUSED):
		return detailed(ErrMonitorDead, "%s: nobody listens, its QEMU has ended; start the machine, or forget it", path)
	case errors.Is(err, unix.EAGAIN):
		return detailed(ErrMonitorBusy, "%s: other clients hold and await this monitor; give QEMU a second -qmp unix:PATH,server=on,wait=off and name that", path)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return detailed(ErrTimeout, "connect to QMP socket %s: %w", path, err)
	}
	return fmt.Errorf("connect to QMP socket %s: %w", path, err)
}

// attach makes a library monitor behind the gate and performs the handshake.
func (g *gate) attach(ctx context.Context, greeting []byte) (*qmp.SocketMonitor, error) {
	// The library can only dial an address. An abstract name leaves no file, and
	// listening and dialling in one goroutine stays in one network namespace.
	var name [16]byte
	rand.Read(name[:])
	addr := "@pagewarp-qmp-" + hex.EncodeToString(name[:])
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: addr, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the QMP library: %w", err)
	}
	defer ln.Close()
	mon, err := qmp.NewSocketMonitor("unix", addr, time.Second)
	if err != nil {
		return nil, fmt.Errorf("dial the QMP gate: %w", err)
	}
	ln.SetDeadline(time.Now().Add(time.Second))
	for g.lib == nil {
		c, err := ln.AcceptUnix()
		if err != nil {
			mon.Disconnect()
			return nil, fmt.Errorf("accept the QMP library: %w", err)
		}
		// Abstract names have no permissions: only this process may come in.
		if cred, err := peerCred(c); err == nil && int(cred.Pid) == os.Getpid() {
			g.lib = c
		} else {
			c.Close()
		}
	}
	// Handshake: the library's Connect has no deadline, ours ends it by closing
	// our end, never by calling Disconnect beside it.
	deadline := time.Now().Add(CommandTimeout)
	if t, ok := ctx.Deadline(); ok && t.Before(deadline) {
		deadline = t
	}
	g.qemu.SetDeadline(deadline)
	g.lib.SetDeadline(deadline)
	connected := make(chan error, 1)
	go func() { connected <- mon.Connect() }()
	err = g.handshake(greeting)
	if err != nil {
		g.lib.Close()
		<-connected
		mon.Disconnect()
		return nil, err
	}
	if err := <-connected; err != nil {
		g.lib.Close()
		mon.Disconnect()
		return nil, fmt.Errorf("QMP handshake: %w", err)
	}
	g.qemu.SetDeadline(time.Time{})
	g.lib.SetDeadline(time.Time{})
	return mon, nil
}

// handshake passes the greeting, the library's one command and its answer.
func (g *gate) handshake(greeting []byte) error {
	if _, err := g.lib.Write(greeting); err != nil {
		return fmt.Errorf("pass QMP greeting: %w", err)
	}
	cmd, err := bufio.NewReaderSize(g.lib, 4096).ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("read the QMP library's handshake: %w", err)
	}
	if _, err := g.qemu.Write(cmd); err != nil {
		return detailed(ErrDisconnected, "QMP handshake: %w", err)
	}
	for {
		line, err := g.readLine()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return detailed(ErrTimeout, "QMP handshake: QEMU greeted and then did not answer")
		}
		if err != nil {
			return detailed(ErrDisconnected, "QMP handshake: %w", err)
		}
		if event, _, err := classify(line); err != nil {
			return fmt.Errorf("QMP handshake: %w", err)
		} else if event {
			continue // nobody can have subscribed yet
		}
		if _, err := g.lib.Write(line); err != nil {
			return fmt.Errorf("pass QMP handshake: %w", err)
		}
		return nil
	}
}

// readLine returns one line with its newline, in memory of its own. Empty lines
// are passed over.
func (g *gate) readLine() ([]byte, error) {
	for {
		var line []byte
		for {
			part, err := g.in.ReadSlice('\n')
			line = append(line, part...)
			if err == nil {
				break
			}
			if err != bufio.ErrBufferFull {
				return nil, err
			}
			if len(line) > maxReply {
				return nil, fmt.Errorf("QMP line exceeds %d bytes", maxReply)
			}
		}
		if len(bytes.TrimSpace(line)) > 0 {
			return line, nil
		}
	}
}

// classify tells an event from a reply.
func classify(line []byte) (event bool, r reply, err error) {
	var m struct {
		Event string          `json:"event"`
		Ret   json.RawMessage `json:"return"`
		Error *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return false, reply{}, fmt.Errorf("QMP sent %.80q: %w", line, err)
	}
	switch {
	case m.Event != "":
		return true, reply{}, nil
	case m.Error != nil:
		return false, reply{err: &CommandError{Class: m.Error.Class, Desc: m.Error.Desc}}, nil
	case m.Ret == nil:
		return false, reply{}, fmt.Errorf("QMP sent %.80q, neither event nor reply", line)
	}
	return false, reply{value: m.Ret}, nil
}

// down passes QEMU's lines to the library until QEMU or stop ends it. Then the
// library reads end-of-file, behind every line already passed.
func (g *gate) down() {
	err := g.pass()
	g.mu.Lock()
	g.cause = err
	g.mu.Unlock()
	g.lib.CloseWrite()
}

func (g *gate) pass() error {
	for {
		line, err := g.readLine()
		if err != nil {
			return err
		}
		event, r, err := classify(line)
		switch {
		case err != nil:
			return err
		case event && len(line) > maxLibraryLine:
			return fmt.Errorf("QMP event of %d bytes exceeds %d", len(line), maxLibraryLine)
		case event && len(line) > shortLine:
			if err := g.hand(spacerLine); err != nil {
				return err
			}
			err = g.hand(string(line))
		case event:
			err = g.hand(string(line))
		case !g.settle(r):
			return fmt.Errorf("QMP sent %.80q without a command", line)
		default:
			token := returnToken
			if r.err != nil {
				token = errorToken
			}
			err = g.hand(token)
		}
		if err != nil {
			return err
		}
	}
}

// hand gives the library one line and waits until it has come out.
func (g *gate) hand(line string) error {
	if _, err := io.WriteString(g.lib, line); err != nil {
		return fmt.Errorf("pass to the QMP library: %w", err)
	}
	select {
	case <-g.taken:
		return nil
	case <-g.quit:
		return net.ErrClosed
	}
}

// took lets the next line pass.
func (g *gate) took() {
	select {
	case g.taken <- struct{}{}:
	default: // the connection is ending, nobody waits
	}
}

// up passes the library's commands to QEMU.
func (g *gate) up() {
	buf := make([]byte, 32<<10)
	for {
		n, err := g.lib.Read(buf)
		if err != nil {
			return
		}
		if _, err := g.qemu.Write(buf[:n]); err != nil {
			return // down sees the same end
		}
	}
}

// expect announces one command, whose reply may then pass.
func (g *gate) expect() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.awaiting = true
}

// settle keeps the reply; false if no command awaits one.
func (g *gate) settle(r reply) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.awaiting {
		return false
	}
	g.awaiting, g.reply = false, r
	return true
}

// settled is the reply to the command announced last, if it has passed.
func (g *gate) settled() (reply, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reply, !g.awaiting
}

// ended is why the connection has ended, if it has.
func (g *gate) ended() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cause
}

// stop ends both directions.
func (g *gate) stop() {
	g.stopOnce.Do(func() {
		close(g.quit)
		g.qemu.Close()
		if g.lib != nil {
			g.lib.Close()
		}
	})
}

// peerCred is SO_PEERCRED: who listened, or who connected (unix(7)).
func peerCred(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var serr error
	if err := raw.Control(func(fd uintptr) {
		cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, fmt.Errorf("peer credentials: %w", err)
	}
	if serr != nil {
		return nil, fmt.Errorf("peer credentials: %w", serr)
	}
	return cred, nil
}
