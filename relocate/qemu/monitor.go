package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

// CommandTimeout bounds a QMP command whose context has no nearer deadline. A
// QEMU that does not answer for so long has a stuck main loop.
const CommandTimeout = 5 * time.Second

// monitor is a QMP connection: commands with deadlines, events to subscribers.
//
// Goroutines: gate.down and gate.up carry lines, the library's reader parses
// them, fan hands out events and ends last. One more exists per command.
type monitor struct {
	gate    *gate
	lib     *qmp.SocketMonitor
	version qmp.Version // immutable

	slot chan struct{} // holds the one right to have a command in flight
	done chan struct{} // closed when the connection has ended and err is set
	idle sync.WaitGroup

	mu   sync.Mutex
	subs []*Subscription // guarded by mu
	err  error           // guarded by mu: set before done closes
}

// newMonitor takes over the gate: on error it is stopped.
func newMonitor(ctx context.Context, g *gate, greeting []byte) (*monitor, error) {
	lib, err := g.attach(ctx, greeting)
	if err != nil {
		g.stop()
		return nil, err
	}
	m := &monitor{
		gate:    g,
		lib:     lib,
		version: *lib.Version,
		slot:    make(chan struct{}, 1),
		done:    make(chan struct{}),
	}
	events, err := lib.Events(context.Background())
	if err != nil {
		g.stop()
		lib.Disconnect()
		return nil, fmt.Errorf("QMP events: %w", err)
	}
	m.idle.Add(3)
	go func() { defer m.idle.Done(); g.down() }()
	go func() { defer m.idle.Done(); g.up() }()
	go func() { defer m.idle.Done(); m.fan(events) }()
	return m, nil
}

// fan hands every event to every subscriber and, when the library's reader has
// ended, ends the connection.
func (m *monitor) fan(events <-chan qmp.Event) {
	for e := range events {
		if e.Event == spacerEvent {
			m.gate.took()
			continue
		}
		ev := Event{Name: e.Event, Data: e.Data}
		if e.Timestamp.Seconds > 0 { // QEMU writes -1 when it cannot tell
			ev.Time = time.UnixMicro(e.Timestamp.Seconds*1e6 + e.Timestamp.Microseconds)
		}
		m.mu.Lock()
		for _, s := range m.subs {
			s.push(ev)
		}
		m.mu.Unlock()
		m.gate.took()
	}
	cause := m.gate.ended()
	if cause == nil || errors.Is(cause, io.EOF) || errors.Is(cause, unix.ECONNRESET) {
		cause = errors.New("QEMU closed the monitor: the process ended or was killed")
	}
	m.gate.stop()
	m.lib.Disconnect() // cannot block: its reader has ended
	m.mu.Lock()
	m.err = detailed(ErrDisconnected, "%w", cause)
	subs := slices.Clone(m.subs)
	m.mu.Unlock()
	close(m.done)
	for _, s := range subs {
		s.end(m.err)
	}
}

func (m *monitor) close() {
	m.gate.stop()
	m.lib.Disconnect() // drains the reader, should a reply be stuck in it
	m.idle.Wait()
}

// closed is the reason for the end; call only after done is closed.
func (m *monitor) closed() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *monitor) subscribe(names ...string) *Subscription {
	s := &Subscription{names: names, from: m, signal: make(chan struct{}, 1)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		s.err = m.err
		return s
	}
	m.subs = append(m.subs, s)
	return s
}

func (m *monitor) unsubscribe(s *Subscription) {
	m.mu.Lock()
	if i := slices.Index(m.subs, s); i >= 0 {
		m.subs = slices.Delete(m.subs, i, i+1)
	}
	m.mu.Unlock()
	s.mu.Lock()
	s.queue = nil
	s.mu.Unlock()
	s.end(net.ErrClosed)
}

// execute runs one command and decodes its return value into out unless nil.
// A command that timed out keeps its place until QEMU answers or dies, so that
// its late reply is never taken for another's.
func (m *monitor) execute(ctx context.Context, name string, args, out any) error {
	return m.executeWith(ctx, name, args, nil, out)
}

// executeWith is execute for a command that a file's descriptor goes with, unless that is
// nil.
func (m *monitor) executeWith(ctx context.Context, name string, args any, file *os.File, out any) error {
	ctx, cancel := context.WithTimeout(ctx, CommandTimeout)
	defer cancel()
	cmd, err := json.Marshal(qmp.Command{Execute: name, Args: args})
	if err != nil {
		return fmt.Errorf("QMP %s: encode: %w", name, err)
	}
	select {
	case m.slot <- struct{}{}:
	case <-ctx.Done():
		return unanswered(ctx, name, "has not answered an earlier command")
	case <-m.done:
		return fmt.Errorf("QMP %s: %w", name, m.closed())
	}
	type result struct {
		reply reply
		err   error
	}
	res := make(chan result, 1)
	if err := m.gate.attachFile(file); err != nil {
		<-m.slot
		return fmt.Errorf("QMP %s: %w", name, err)
	}
	m.gate.expect()
	go func() {
		_, err := m.lib.Run(append(cmd, '\n'))
		r := result{err: err}
		if reply, ok := m.gate.settled(); ok { // else the connection has ended
			r = result{reply: reply}
			m.gate.took()
		}
		<-m.slot
		res <- r
	}()
	select {
	case r := <-res:
		return m.finish(name, r.reply, r.err, out)
	case <-ctx.Done():
		return unanswered(ctx, name, "does not answer")
	}
}

// unanswered says what ended the wait for a command's answer: QEMU's time was
// over, or the caller gave up for a cause that QEMU has nothing to do with.
func unanswered(ctx context.Context, name, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("QMP %s: QEMU %s: %w", name, what, contextError(ctx))
	}
	return fmt.Errorf("QMP %s: given up: %w", name, context.Cause(ctx))
}

func (m *monitor) finish(name string, r reply, err error, out any) error {
	if err != nil {
		// The library's own errors at the end of a connection (such as an empty
		// reply) say nothing; the gate knows the cause.
		select {
		case <-m.done:
			return fmt.Errorf("QMP %s: %w", name, m.closed())
		case <-time.After(time.Second):
			return fmt.Errorf("QMP %s: %w", name, err)
		}
	}
	if r.err != nil {
		r.err.Command = name
		return r.err
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(r.value, out); err != nil {
		return fmt.Errorf("QMP %s: decode reply: %w", name, err)
	}
	return nil
}
