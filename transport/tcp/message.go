package tcp

import (
	"fmt"
	"io"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// Answers by message: PAGES frames that come whole, beside the connection (PROTOCOL
// section 13, SEND). The channel says by a flag of FETCH which answers may, as many
// as it was told that there is room for.

var _ transport.MessageFetcher = (*Fetcher)(nil)

// memory feeds an assembly from a message.
type memory struct{ b []byte }

func (m *memory) readFull(p []byte) error {
	n := copy(p, m.b)
	m.b = m.b[n:]
	if n < len(p) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

func (m *memory) readVec(vec [][]byte, crc uint32) (uint32, error) {
	for _, p := range vec {
		if err := m.readFull(p); err != nil {
			return crc, err
		}
		crc = transport.UpdateCRC(crc, p)
	}
	return crc, nil
}

func (m *memory) here(n int) []byte {
	if n == 0 || n > len(m.b) {
		return nil
	}
	b := m.b[:n:n]
	m.b = m.b[n:]
	return b
}

// Invite implements [transport.MessageFetcher].
func (f *Fetcher) Invite(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.beside.Store(true)
	if !f.over {
		f.credits += n
	}
}

// Invited implements [transport.MessageFetcher].
func (f *Fetcher) Invited() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.credits
}

// Awaited implements [transport.MessageFetcher].
func (f *Fetcher) Awaited() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.out {
		if p := &f.out[i]; p.invited && !p.lapsed {
			n++
		}
	}
	return n
}

// Deliver implements [transport.MessageFetcher].
func (f *Fetcher) Deliver(msg []byte, sink transport.Sink, c *transport.Completion) error {
	f.mmu.Lock()
	defer f.mmu.Unlock()
	if f.c.closed.Load() {
		f.message.free()
		return f.c.Err()
	}
	if f.message.c == nil {
		f.message = assembly{c: f.c, in: &f.from, progress: &f.progress, vec: make([][]byte, 0, maxIovecs)}
	}
	h, err := transport.ParseHeader(msg, f.c.MaxBody())
	switch {
	case err != nil:
		return err
	case h.Type != transport.TypePages:
		return fmt.Errorf("%w: a message with %v, want PAGES", transport.ErrMalformed, h.Type)
	case int(h.Length) != len(msg)-transport.HeaderSize:
		return fmt.Errorf("%w: a message of %d bytes has PAGES with a body of %d", transport.ErrMalformed, len(msg), h.Length)
	}
	f.from.b = msg[transport.HeaderSize:]
	_, err = f.pages(&f.message, &h, transport.HeaderCRC(msg), sink, c)
	f.from.b = nil
	f.progress.Add(1)
	return err
}

// address gives the header of a FETCH what the channel knows of it, and notes that it
// goes out.
func (f *Fetcher) address(h *transport.Header) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.out {
		if p := &f.out[i]; p.ID == h.ID && !p.written {
			p.written = true
			h.ID = p.wire
			if p.invited {
				h.Flags |= transport.FetchMessage
			}
			return
		}
	}
}

// wireID is the id of a fetch on the wire: the caller's, unless an answer to one with
// that id may come still. mu is held.
func (f *Fetcher) wireID(id uint64) uint64 {
	if !f.over {
		return id // known to be free
	}
	for f.find(id) >= 0 {
		f.fresh--
		id = f.fresh
	}
	return id
}

// settle has the other one of two fetches for the same pages count as answered. mu is
// held.
func (f *Fetcher) settle(p *pending) {
	if p.done {
		return
	}
	for i := range f.out {
		if q := &f.out[i]; q.ID == p.ID && q.lapsed != p.lapsed && !q.done {
			q.done = true
			return
		}
	}
}

// Recall implements [transport.MessageFetcher].
func (f *Fetcher) Recall() (n int, err error) {
	f.mu.Lock()
	f.over, f.credits = true, 0
	var again []transport.Fetch
	for i := range f.out {
		p := &f.out[i]
		if !p.invited || p.lapsed {
			continue
		}
		if !p.written { // whoever is about to send it does so without the flag
			p.invited = false
			continue
		}
		p.lapsed = true
		again = append(again, p.Fetch)
	}
	for _, x := range again {
		q := pending{Fetch: x, sent: time.Now(), wire: f.wireID(x.ID)}
		f.out = append(f.out, q)
	}
	f.mu.Unlock()
	return len(again), f.send(again)
}
