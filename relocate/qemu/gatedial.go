package qemu

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

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
		if fi, err := os.Stat(path); err == nil && fi.Mode().Type() != os.ModeSocket {
			return fmt.Errorf("%s is no socket; name what stands after -qmp unix: on QEMU's command line", path)
		}
		return detailed(ErrMonitorDead, "%s: nobody listens, its QEMU has ended; start the machine, or forget it", path)
	case errors.Is(err, unix.EAGAIN):
		return detailed(ErrMonitorBusy, "%s: other clients hold and await this monitor; give QEMU a second -qmp unix:PATH,server=on,wait=off and name that", path)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return detailed(ErrTimeout, "connect to QMP socket %s: %w", path, err)
	}
	if errors.Is(err, unix.EACCES) {
		return fmt.Errorf("connect to QMP socket %s: %w: this daemon runs as uid %d; run it as root, or as QEMU's user", path, err, os.Geteuid())
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
		if bytes.Contains(line, []byte(`"QMP"`)) {
			// A QEMU that is connected to while it starts may greet twice: as the socket
			// is, and as the monitor behind it. The command is still to be answered.
			continue
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
