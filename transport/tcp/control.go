package tcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/pagewarp/pagewarp/transport"
)

const (
	// messageQueue bounds the messages that have come and not been received.
	messageQueue = 64
	// stateBuffer bounds the bytes of device state that have come and not been
	// read. At either bound the channel is not read any further, so that TCP
	// holds the peer back; a message behind the state then waits too.
	stateBuffer = 4 << 20
)

// Message is one control message.
type Message struct {
	Kind uint16
	Body json.RawMessage
}

// Control is a control channel.
type Control struct {
	c        *Conn
	messages chan Message
	state    *statePipe
	wbuf     [transport.HeaderSize]byte // guarded by the Conn's write lock
	wvec     [2][]byte                  // the same
	index    atomic.Pointer[func(transport.Range, []byte) error]
}

func newControl(c *Conn) *Control {
	return &Control{c: c, messages: make(chan Message, messageQueue), state: newStatePipe(stateBuffer)}
}

// Send sends v as the JSON of a MESSAGE. It is safe for concurrent use. A
// message over 1 MiB is the caller's mistake; other errors are fatal to the
// channel.
func (m *Control) Send(kind uint16, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode control message %d: %w", kind, err)
	}
	if len(b) > transport.MaxMessage {
		return fmt.Errorf("control message %d has %d bytes, limit %d", kind, len(b), transport.MaxMessage)
	}
	return m.send(transport.Header{Type: transport.TypeMessage, Aux: kind}, b)
}

// SendState sends bytes of the device state; end says that they are the last.
// Messages may overtake between its frames of 256 KiB.
func (m *Control) SendState(p []byte, end bool) error {
	for {
		n := min(len(p), transport.MaxState)
		h := transport.Header{Type: transport.TypeState}
		if end && n == len(p) {
			h.Flags = transport.StateEnd
		}
		if n > 0 || h.Flags != 0 {
			if err := m.send(h, p[:n]); err != nil {
				return err
			}
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
	}
}

func (m *Control) send(h transport.Header, body []byte) error {
	if err := m.c.lock(); err != nil {
		return err
	}
	defer m.c.unlock()
	h.Length = uint32(len(body))
	h.Put(m.wbuf[:])
	transport.SetCRC(m.wbuf[:], transport.UpdateCRC(transport.HeaderCRC(m.wbuf[:]), body))
	m.wvec = [2][]byte{m.wbuf[:], body}
	err := m.c.w.writeVec(m.wvec[:])
	m.wvec = [2][]byte{}
	if err != nil {
		return m.c.fail(err)
	}
	return nil
}

// SendIndex sends the hashes of candidates, transport.HashSize bytes a page, as
// many as r has pages. The warm feature must be in force.
func (m *Control) SendIndex(r transport.Range, hashes []byte) error {
	if len(hashes) != int(r.Count)*transport.HashSize {
		return fmt.Errorf("index of %d pages has %d bytes of hashes, want %d each", r.Count, len(hashes), transport.HashSize)
	}
	const most = transport.MaxIndex / transport.HashSize
	for r.Count > 0 {
		n := min(r.Count, most)
		h := transport.Header{Type: transport.TypeIndex, Region: r.Region, Count: n, First: r.First}
		if err := m.send(h, hashes[:n*transport.HashSize]); err != nil {
			return err
		}
		hashes = hashes[n*transport.HashSize:]
		r.Count -= n
		r.First += uint64(n)
	}
	return nil
}

// OnIndex has f called, by the channel's reader, with the hashes that the peer
// sends; f does not keep them, and must not close the channel: an error of its
// ends it. Without a handler INDEX is an error of the peer's.
func (m *Control) OnIndex(f func(r transport.Range, hashes []byte) error) {
	if f == nil {
		m.index.Store(nil)
		return
	}
	m.index.Store(&f)
}

// Receive waits for the next message. After an orderly close by the peer, and
// once all messages have been received, it returns io.EOF.
func (m *Control) Receive(ctx context.Context) (Message, error) {
	select {
	case msg, ok := <-m.messages:
		if ok {
			return msg, nil
		}
		return Message{}, m.end()
	case <-ctx.Done():
		return Message{}, ctx.Err()
	}
}

// end is why the channel ended, as a reader sees it.
func (m *Control) end() error {
	err := m.c.Err()
	if errors.Is(err, errOrderly) {
		return io.EOF
	}
	return err
}

// StateReader gives the peer's device state. It returns io.EOF after the frame
// marked as the end, and the channel's error if that ends first. At most 4 MiB
// wait to be read; whoever expects state must read it, or messages stop too.
func (m *Control) StateReader() io.Reader { return m.state }

// Close ends the channel, see [Conn.Close].
func (m *Control) Close() error { return m.c.Close() }

// run reads the channel until it ends.
func (m *Control) run() {
	defer m.c.ended.Done()
	m.c.fail(m.read())
	<-m.c.done
	close(m.messages)
	m.state.fail(m.end())
}

// read returns why the channel cannot be read any further.
func (m *Control) read() error {
	c := m.c
	for {
		h, crc, err := c.w.frame(0)
		if err != nil {
			return err
		}
		switch h.Type {
		case transport.TypeMessage:
			err = m.message(&h, crc)
		case transport.TypeState:
			err = m.stateFrame(&h, crc)
		case transport.TypeIndex:
			err = m.indexFrame(&h, crc)
		default:
			var ok bool
			if ok, err = c.common(&h, crc); err == nil && !ok {
				err = c.wrong(&h)
			}
		}
		if err != nil {
			return err
		}
	}
}

// body reads the rest of a frame into b, which has its length.
func (m *Control) body(h *transport.Header, crc uint32, b []byte) ([]byte, error) {
	if err := m.c.w.readFull(b); err != nil {
		return nil, err
	}
	return b, h.CheckCRC(transport.UpdateCRC(crc, b))
}

func (m *Control) message(h *transport.Header, crc uint32) error {
	b, err := m.body(h, crc, make([]byte, h.Length))
	if err != nil {
		return err
	}
	if !json.Valid(b) {
		return fmt.Errorf("%w: MESSAGE %d is not JSON", transport.ErrMalformed, h.Aux)
	}
	select {
	case m.messages <- Message{Kind: h.Aux, Body: b}:
		return nil
	case <-m.c.done:
		return m.c.Err()
	}
}

func (m *Control) indexFrame(h *transport.Header, crc uint32) error {
	f := m.index.Load()
	if f == nil || m.c.role != transport.Source || m.c.Features()&transport.FeatureWarm == 0 {
		return m.c.wrong(h)
	}
	if uint64(h.Length) != uint64(h.Count)*transport.HashSize || h.Count == 0 {
		return fmt.Errorf("%w: INDEX of %d pages has %d bytes", transport.ErrMalformed, h.Count, h.Length)
	}
	b, err := m.body(h, crc, make([]byte, h.Length))
	if err != nil {
		return err
	}
	return (*f)(transport.Range{Region: h.Region, Count: h.Count, First: h.First}, b)
}

func (m *Control) stateFrame(h *transport.Header, crc uint32) error {
	if m.c.role != transport.Destination {
		return m.c.wrong(h)
	}
	b, err := m.body(h, crc, m.state.buffer(int(h.Length)))
	if err != nil {
		return err
	}
	if !m.state.put(b, h.Flags&transport.StateEnd != 0, m.c.done) {
		if m.c.closed.Load() {
			return m.c.Err()
		}
		return fmt.Errorf("%w: STATE after the end of the stream", transport.ErrMalformed)
	}
	return nil
}
