package qemu

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

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
	file     int   // guarded by mu: a descriptor that goes with the next command; 0: none
}

// reply is QEMU's answer to a command.
type reply struct {
	value []byte        // JSON, of "return"
	err   *CommandError // without its Command; nil if QEMU did as told
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
		if err := g.send(buf[:n]); err != nil {
			return // down sees the same end
		}
	}
}

// send gives QEMU a part of a command, with its first byte the descriptor that goes with it.
func (g *gate) send(b []byte) error {
	g.mu.Lock()
	fd := g.file
	g.file = 0
	g.mu.Unlock()
	if fd == 0 {
		_, err := g.qemu.Write(b)
		return err
	}
	defer unix.Close(fd)
	n, _, err := g.qemu.WriteMsgUnix(b, unix.UnixRights(fd), nil)
	if err == nil && n < len(b) {
		_, err = g.qemu.Write(b[n:])
	}
	return err
}

// attachFile has a copy of a file's descriptor go with the next command, of which the caller
// holds the slot; nil does nothing.
func (g *gate) attachFile(file *os.File) error {
	if file == nil {
		return nil
	}
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("copy descriptor: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.file != 0 {
		unix.Close(g.file) // of a command that the connection's end has kept
	}
	g.file = fd
	return nil
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
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.file != 0 {
			unix.Close(g.file)
			g.file = 0
		}
	})
}
