package relocate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/tcp"
)

// abortError is the peer's ABORT.
type abortError struct{ reason string }

func (e *abortError) Error() string { return "the peer gave up: " + e.reason }

// control is a control channel with a reader of its own. Its context ends, with
// the cause, when the connection is lost or the peer aborts, so that whoever
// waits for QEMU at that moment notices too.
type control struct {
	ch     *tcp.Control
	conn   *tcp.Conn
	ctx    context.Context
	cancel context.CancelCauseFunc
	msgs   chan tcp.Message
	done   chan struct{} // the reader has ended

	optional func(tcp.Message) // takes messages that may be ignored, in the reader; nil: ignores them
}

// newControl starts the reader; close must be called. On an error it has closed
// conn.
func newControl(parent context.Context, conn *tcp.Conn, optional func(tcp.Message)) (*control, error) {
	ch, err := conn.Control()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("control channel: %w", err)
	}
	c := &control{ch: ch, conn: conn, msgs: make(chan tcp.Message, 16), done: make(chan struct{}), optional: optional}
	c.ctx, c.cancel = context.WithCancelCause(parent)
	go c.read()
	return c, nil
}

func (c *control) read() {
	defer close(c.done)
	for {
		m, err := c.ch.Receive(c.ctx)
		if err != nil {
			c.cancel(fmt.Errorf("control channel: %w", err))
			return
		}
		switch {
		case m.Kind >= msgOptional:
			if c.optional != nil {
				c.optional(m)
			}
			continue
		case m.Kind == msgAbort:
			var a abortMsg
			if err := json.Unmarshal(m.Body, &a); err != nil {
				a.reason(err)
			}
			c.cancel(&abortError{a.Reason})
			return
		}
		select {
		case c.msgs <- m:
		case <-c.ctx.Done():
			return
		}
	}
}

func (a *abortMsg) reason(err error) { a.Reason = "unreadable reason: " + err.Error() }

// close ends the channel and its reader.
func (c *control) close() {
	c.cancel(io.EOF)
	c.conn.Close()
	<-c.done
}

// tellWait is how long the end of a channel waits for its last message to get out.
const tellWait = 250 * time.Millisecond

// end sends a last message and closes the channel. A peer that reads nothing, which a write
// under way may wait for much longer, holds it up no more than tellWait.
func (c *control) end(kind uint16, v any) {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		c.send(kind, v) // nothing depends on it: a peer that is gone gives up by itself
	}()
	t := time.NewTimer(tellWait)
	defer t.Stop()
	select {
	case <-sent:
	case <-t.C:
	}
	c.close() // ends the write, too
	<-sent
}

func (c *control) send(kind uint16, v any) error {
	if err := c.ch.Send(kind, v); err != nil {
		return fmt.Errorf("control channel: %w", err)
	}
	return nil
}

// sendState sends a piece of the device state; last ends it.
func (c *control) sendState(chunk []byte, last bool) error {
	if err := c.ch.SendState(chunk, last); err != nil {
		return fmt.Errorf("control channel: device state: %w", err)
	}
	return nil
}

// sendIndex sends the hashes of pages of r, transport.HashSize bytes for each.
func (c *control) sendIndex(r transport.Range, hashes []byte) error {
	if err := c.ch.SendIndex(r, hashes); err != nil {
		return fmt.Errorf("control channel: index of candidates: %w", err)
	}
	return nil
}

// next waits for any message. It does not outlast ctx, whatever the peer sends.
func (c *control) next(ctx context.Context) (tcp.Message, error) {
	if ctx.Err() != nil {
		return tcp.Message{}, context.Cause(ctx)
	}
	select { // what has arrived counts, even if the connection is gone by now
	case m := <-c.msgs:
		return m, nil
	default:
	}
	select {
	case m := <-c.msgs:
		return m, nil
	case <-c.ctx.Done():
		select {
		case m := <-c.msgs:
			return m, nil
		default:
		}
		return tcp.Message{}, context.Cause(c.ctx)
	case <-ctx.Done():
		return tcp.Message{}, context.Cause(ctx)
	}
}

// expect waits for one kind of message; another kind is the peer's mistake.
func (c *control) expect(ctx context.Context, kind uint16, what string, timeout time.Duration, v any) error {
	tctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no %s from the peer within %v", what, timeout))
	defer cancel()
	m, err := c.next(tctx)
	if err != nil {
		return err
	}
	if m.Kind != kind {
		return fmt.Errorf("peer sent message %d where %s (%d) was due", m.Kind, what, kind)
	}
	return decode(m, v)
}

func decode(m tcp.Message, v any) error {
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(m.Body, v); err != nil {
		return fmt.Errorf("message %d from the peer: %w", m.Kind, err)
	}
	return nil
}

// isCut reports whether err means that the connection, not the peer's will,
// ended the conversation.
func isCut(err error) bool {
	var a *abortError
	return err != nil && !errors.As(err, &a)
}
