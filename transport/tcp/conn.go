package tcp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// ErrDead is the cause of a channel that was closed because its peer had gone
// silent or left a fetch unanswered. The dialling side dials again.
var ErrDead = errors.New("channel is dead")

// ErrClosed is what calls on a channel return after its own side closed it.
var ErrClosed = errors.New("channel is closed")

// closeWait bounds how long closing waits to get its CLOSE frame out.
const closeWait = 250 * time.Millisecond

// Conn is one channel after its handshake.
type Conn struct {
	w       *wire
	welcome transport.Hello // what was agreed; immutable
	role    transport.Role  // our own; immutable
	peer    string          // subject of the peer's certificate; immutable
	tune    Tuning          // immutable
	regions atomic.Pointer[[]transport.Region]
	side    atomic.Pointer[transport.Side]

	carried atomic.Int64

	wlock chan struct{} // holds one element while somebody writes

	mu     sync.Mutex
	cause  error // why the channel ended; guarded by mu
	closed atomic.Bool
	done   chan struct{} // closed with the channel

	kick   chan struct{} // wakes the keepalive
	pong   atomic.Bool   // a PONG is owed
	pongID atomic.Uint64
	pinged atomic.Int64 // when the last PING went out, ns since base
	rtt    atomic.Int64 // ns
	ended  sync.WaitGroup

	fetcher   *Fetcher
	responder *Responder
	control   *Control
}

// newConn takes over w after a handshake that agreed on welcome.
func newConn(w *wire, role transport.Role, welcome transport.Hello, peer string, tune Tuning) (*Conn, error) {
	c := &Conn{w: w, welcome: welcome, role: role, peer: peer, tune: tune,
		wlock: make(chan struct{}, 1), done: make(chan struct{}), kick: make(chan struct{}, 1)}
	if err := c.tuneSocket(); err != nil {
		w.base.Close()
		return nil, err
	}
	switch {
	case welcome.Kind == transport.Control:
		c.control = newControl(c)
	case role == transport.Destination:
		// A demand answer comes whole in one call and is copied once; of a
		// large answer little more than its head, the rest goes into place.
		w.ahead = 8 << 10
		c.fetcher = newFetcher(c)
	default:
		c.responder = newResponder(c)
	}
	c.ended.Add(1)
	go c.keepalive()
	if c.control != nil {
		c.ended.Add(1)
		go c.control.run()
	}
	return c, nil
}

// Kind returns what the channel is for.
func (c *Conn) Kind() transport.Kind { return c.welcome.Kind }

// Index returns the number of the channel within its kind.
func (c *Conn) Index() int { return int(c.welcome.Index) }

// Role returns the role of this side.
func (c *Conn) Role() transport.Role { return c.role }

// Token returns the session's token.
func (c *Conn) Token() transport.Token { return c.welcome.Token }

// Epoch counts the connections of this channel.
func (c *Conn) Epoch() uint64 { return c.welcome.Epoch }

// Version returns the protocol version agreed on.
func (c *Conn) Version() uint16 { return c.welcome.High }

// Features returns the features in force.
func (c *Conn) Features() transport.Features { return c.welcome.Features }

// MaxCount returns the most pages of one fetch.
func (c *Conn) MaxCount() uint32 { return c.welcome.MaxCount }

// MaxBody returns the longest body of an answer, in bytes.
func (c *Conn) MaxBody() uint32 { return c.welcome.MaxBody }

// MaxPages returns the most pages of pageSize bytes that one fetch may ask for,
// by MaxCount and by MaxBody. It is 0 if a page does not fit into an answer.
func (c *Conn) MaxPages(pageSize uint32) uint32 {
	return min(c.welcome.MaxCount, c.welcome.MaxBody/pageSize)
}

// Peer returns the subject of the peer's certificate: its common name, or its
// first DNS name if it has none; "" without TLS.
func (c *Conn) Peer() string { return c.peer }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.w.base.RemoteAddr() }

// LocalAddr returns this side's address.
func (c *Conn) LocalAddr() net.Addr { return c.w.base.LocalAddr() }

// Bytes returns the bytes of frames received and sent so far, on the connection.
func (c *Conn) Bytes() (in, out int64) { return c.w.in.Load(), c.w.out.Load() }

// Carried returns the bytes of frames that went by messages beside the connection.
func (c *Conn) Carried() int64 { return c.carried.Load() }

// RTT returns the round trip of the last PING; 0 before the first.
func (c *Conn) RTT() time.Duration { return time.Duration(c.rtt.Load()) }

// Done is closed when the channel has ended; Err tells why.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the channel ended, nil while it lives.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// SetRegions tells a page channel the region table, which it needs to know the
// page size and the end of each region. A destination calls it before its first
// Fetch; the table is not copied and must not change.
func (c *Conn) SetRegions(rs []transport.Region) { c.regions.Store(&rs) }

func (c *Conn) region(id uint32) (transport.Region, bool) {
	if rs := c.regions.Load(); rs != nil {
		for i := range *rs {
			if (*rs)[i].ID == id {
				return (*rs)[i], true
			}
		}
	}
	return transport.Region{}, false
}

// Fetcher returns the destination's end of a page channel.
func (c *Conn) Fetcher() (*Fetcher, error) {
	if c.fetcher == nil {
		return nil, fmt.Errorf("%v channel at the %v has no fetcher", c.Kind(), c.role)
	}
	return c.fetcher, nil
}

// Responder returns the source's end of a page channel.
func (c *Conn) Responder() (*Responder, error) {
	if c.responder == nil {
		return nil, fmt.Errorf("%v channel at the %v has no responder", c.Kind(), c.role)
	}
	return c.responder, nil
}

// Control returns the control channel.
func (c *Conn) Control() (*Control, error) {
	if c.control == nil {
		return nil, fmt.Errorf("%v channel is not a control channel", c.Kind())
	}
	return c.control, nil
}

// Close ends the channel in an orderly way: the peer sees [io.EOF].
func (c *Conn) Close() error { return c.CloseWith(transport.CodeDone, "") }

// CloseWith tells the peer why the channel ends. It waits a quarter of a second
// at most for the CLOSE to get out, and for the channel's own goroutines.
func (c *Conn) CloseWith(code transport.Code, text string) error {
	c.shut(ErrClosed, code, text)
	c.ended.Wait()
	if c.fetcher != nil {
		c.fetcher.release()
	}
	if c.responder != nil {
		c.responder.release()
	}
	return nil
}

// shut ends the channel once; later calls change nothing. code 0 sends no CLOSE.
func (c *Conn) shut(cause error, code transport.Code, text string) {
	c.mu.Lock()
	if c.cause != nil {
		c.mu.Unlock()
		<-c.done
		return
	}
	c.cause = cause
	c.mu.Unlock()
	c.closed.Store(true)
	if code != 0 {
		c.sayClose(code, text)
	}
	c.w.base.Close()
	close(c.done)
}

func (c *Conn) sayClose(code transport.Code, text string) {
	c.w.base.SetWriteDeadline(time.Now().Add(closeWait))
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case c.wlock <- struct{}{}:
	case <-t.C:
		return
	}
	defer c.unlock()
	c.w.write(textFrame(transport.Header{Type: transport.TypeClose}, code, text))
}

func textFrame(h transport.Header, code transport.Code, text string) []byte {
	h.Aux = uint16(code)
	return transport.AppendFrame(nil, h, []byte(text[:min(len(text), transport.MaxText)]))
}

// lock takes the write lock, or fails because the channel has ended.
func (c *Conn) lock() error {
	select {
	case c.wlock <- struct{}{}:
	default:
		select {
		case c.wlock <- struct{}{}:
		case <-c.done:
			return c.Err()
		}
	}
	if c.closed.Load() {
		c.unlock()
		return c.Err()
	}
	return nil
}

func (c *Conn) unlock() { <-c.wlock }

// fail ends the channel for err, which I/O or a peer's bytes have caused, and
// returns what the caller is to see.
func (c *Conn) fail(err error) error {
	if c.closed.Load() {
		return c.Err()
	}
	var remote *transport.RemoteError
	switch {
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("peer %v closed the connection without CLOSE: %w", c.RemoteAddr(), io.ErrUnexpectedEOF)
		c.shut(err, 0, "")
	case errors.Is(err, transport.ErrMalformed) || errors.Is(err, transport.ErrDecode):
		c.shut(err, transport.CodeMalformed, err.Error())
	case errors.As(err, &remote), errors.Is(err, errOrderly):
		c.shut(err, 0, "")
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed):
		c.shut(fmt.Errorf("%w: %w", ErrClosed, err), 0, "")
	default:
		err = fmt.Errorf("%v channel to %v: %w", c.Kind(), c.RemoteAddr(), err)
		c.shut(err, 0, "")
	}
	return c.Err()
}

// errOrderly marks the end by a CLOSE with DONE; readers return io.EOF for it.
var errOrderly = fmt.Errorf("peer closed the channel: %w", io.EOF)

// common handles the frames that every channel may carry. It reports whether h
// was one of them.
func (c *Conn) common(h *transport.Header, crc uint32) (bool, error) {
	switch h.Type {
	case transport.TypePing, transport.TypePong, transport.TypeClose:
	case transport.TypeRDMA:
		return c.sideFrame(h, crc)
	default:
		return false, nil
	}
	body, err := c.w.small(h, crc)
	if err != nil {
		return true, err
	}
	switch h.Type {
	case transport.TypePing:
		c.pongID.Store(h.ID)
		c.pong.Store(true)
		c.wake()
	case transport.TypePong:
		if p := c.pinged.Load(); p != 0 && h.ID == uint64(p) {
			c.rtt.Store(now() - p)
		}
	case transport.TypeClose:
		if code := transport.Code(h.Aux); code != transport.CodeDone {
			return true, fmt.Errorf("peer closed the channel: %w", &transport.RemoteError{Code: code, Text: string(body)})
		}
		return true, errOrderly
	}
	return true, nil
}

func (c *Conn) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// wrong is the error for a frame that does not belong on this channel.
func (c *Conn) wrong(h *transport.Header) error {
	return fmt.Errorf("%w: %v on a %v channel at the %v", transport.ErrMalformed, h.Type, c.Kind(), c.role)
}

var base = time.Now()

// now is the monotonic clock in ns; never 0.
func now() int64 { return int64(time.Since(base)) + 1 }
