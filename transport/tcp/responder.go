package tcp

import (
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pagewarp/pagewarp/internal/sched"
	"github.com/pagewarp/pagewarp/transport"
)

// Responder is the source's end of a page channel over a socket. It implements
// [transport.Responder].
type Responder struct {
	c *Conn

	// amu is held through Answer; release takes it to free what follows.
	amu     sync.Mutex
	head    []byte // header and extent table
	vec     [][]byte
	chooser *transport.Chooser
	gather  scratch // data pages side by side, for the encoder
	encoded scratch
	wrote   time.Time // when the last answer was with the socket
	answers uint64
	place   []byte // where an encoded answer goes; nil: encoded
	beside  struct {
		chooser *transport.Chooser // of answers by message, whose link is another one
		wrote   time.Time
	}

	carrier atomic.Pointer[transport.Carrier]
	mu      sync.Mutex
	flagged []uint64 // ids that a message may answer; guarded by mu
}

// linkEvery is how many answers apart the link is looked at, and under a bound of the
// backlog, where answers take longer. The first ones fill the link's queue, and bounds of
// the backlog come from what is seen of it: over 1 Gbit/s each reading less is 2 ms less
// of a queue of up to 50 ms.
const (
	linkEvery    = 16
	boundEvery   = 4
	firstEvery   = 2
	firstAnswers = 32
)

var _ transport.Responder = (*Responder)(nil)

func newResponder(c *Conn) *Responder {
	mode := c.tune.Codec
	if c.Kind() == transport.Demand {
		mode = c.tune.DemandCodec
	}
	r := &Responder{c: c, chooser: transport.NewChooser(mode, c.Features()),
		head: make([]byte, 0, 4<<10), vec: make([][]byte, 0, maxIovecs)}
	if c.Features()&transport.FeatureSend != 0 {
		r.beside.chooser = transport.NewChooser(mode, c.Features())
	}
	return r
}

// Next waits for fetches, see [transport.Responder]. Ranges are for the caller
// to check against the image; the count is at least 1 and within max_count.
func (r *Responder) Next(buf []transport.Fetch) (int, error) {
	if len(buf) == 0 {
		return 0, nil
	}
	n := 0
	for n == 0 || n < len(buf) && r.c.w.buffered() >= transport.HeaderSize {
		ok, err := r.one(&buf[n])
		if err != nil {
			err = r.c.fail(err)
			if n > 0 {
				return n, nil // the next call meets the same error
			}
			if err == errOrderly {
				err = io.EOF
			}
			return 0, err
		}
		if ok {
			n++
		}
	}
	return n, nil
}

// one reads one frame and reports whether it was a fetch for the caller.
func (r *Responder) one(f *transport.Fetch) (bool, error) {
	c := r.c
	if c.closed.Load() {
		return false, c.Err()
	}
	h, crc, err := c.w.frame(0)
	if err != nil {
		return false, err
	}
	if h.Type != transport.TypeFetch {
		ok, err := c.common(&h, crc)
		if err == nil && !ok {
			err = c.wrong(&h)
		}
		return false, err
	}
	if err := h.CheckCRC(crc); err != nil {
		return false, err
	}
	if h.Flags&transport.FetchMessage != 0 {
		if err := r.allow(h.ID); err != nil {
			return false, err
		}
	}
	*f = h.Fetch()
	if f.Count == 0 || f.Count > c.MaxCount() || f.First > math.MaxUint64-uint64(f.Count) {
		return false, r.Refuse(f.ID, transport.CodeRange, fmt.Sprintf("%d pages at %d of region %d; max_count is %d", f.Count, f.First, f.Region, c.MaxCount()))
	}
	return true, nil
}

// Refuse answers one fetch with an error, see [transport.Responder].
func (r *Responder) Refuse(id uint64, code transport.Code, text string) error {
	c := r.c
	r.allowed(id)
	if err := c.lock(); err != nil {
		return err
	}
	defer c.unlock()
	if err := c.w.write(textFrame(transport.Header{Type: transport.TypeRefuse, ID: id}, code, text)); err != nil {
		return c.fail(err)
	}
	return nil
}

// Answer sends one answer, see [transport.Responder]. An answer that would be
// longer than max_body is refused with RANGE in its place.
func (r *Responder) Answer(a *transport.Answer) error {
	r.amu.Lock()
	defer r.amu.Unlock()
	defer r.forget()
	if by := r.carrier.Load(); r.allowed(a.ID) && by != nil {
		if done, err := r.carry(*by, a); done || err != nil {
			return err
		}
	}
	size, err := r.work(a)
	if err != nil {
		return err
	}
	if body := size - transport.HeaderSize; body > int(r.c.MaxBody()) {
		return r.tooLong(a, body)
	}
	if err := r.c.lock(); err != nil {
		return err
	}
	defer r.c.unlock()
	start := time.Now()
	if err := r.c.w.writeVec(r.vec); err != nil {
		return r.c.fail(err)
	}
	end := time.Now()
	every := uint64(linkEvery)
	switch {
	case r.answers < firstAnswers:
		every = firstEvery
	case r.c.w.backlog.bound > 0:
		every = boundEvery
	}
	if r.c.Kind() == transport.Precache && r.answers%every == every-1 { // each costs a system call
		r.chooser.Link(r.c.w.keepShort(end))
	}
	r.answers++
	r.sent(size, start, end)
	return nil
}

// tooLong refuses what an answer of that many bytes of body would answer.
func (r *Responder) tooLong(a *transport.Answer, body int) error {
	return r.Refuse(a.ID, transport.CodeRange, fmt.Sprintf("%d pages make an answer of %d bytes; max_body is %d", a.Count, body, r.c.MaxBody()))
}

// sent tells the chooser that size bytes went, for which it had to wait from start to
// end.
func (r *Responder) sent(size int, start, end time.Time) {
	if !r.wrote.IsZero() {
		r.chooser.Wrote(size, end.Sub(start), end.Sub(r.wrote))
	}
	r.wrote = end
}

// forget lets go of the caller's memory.
func (r *Responder) forget() { clear(r.vec[:cap(r.vec)]) }

// movedFeatures are what Moved extents need.
const movedFeatures = transport.FeatureWarm | transport.FeatureMoved

// work is build, and tells the chooser whether a CPU was there for it.
func (r *Responder) work(a *transport.Answer) (size int, err error) {
	if !r.chooser.Measures() || r.c.Kind() != transport.Precache {
		return r.build(a)
	}
	wall, cpu := time.Now(), sched.ThreadCPU()
	size, err = r.build(a)
	r.chooser.Worked(time.Since(wall), sched.ThreadCPU()-cpu)
	return size, err
}

// build puts the whole frame into vec, the head, then the data, and returns its size
// in bytes. One whose body is longer than max_body has no header yet.
func (r *Responder) build(a *transport.Answer) (int, error) {
	r.vec = r.vec[:0]
	feat := r.c.Features()
	if a.Count == 0 || len(a.Memory)%int(a.Count) != 0 {
		return 0, fmt.Errorf("answer fetch %d: %d bytes of memory for %d pages", a.ID, len(a.Memory), a.Count)
	}
	ps := len(a.Memory) / int(a.Count)
	h := transport.Header{Type: transport.TypePages, ID: a.ID, Region: a.Region, Count: a.Count, First: a.First}
	if feat&transport.FeatureAhead != 0 {
		h.Ahead = a.Ahead
	}
	es := a.Extents
	// Without elision in force, and where the table would not fit, the fill
	// pages are sent as what they are in memory.
	if feat&transport.FeatureFill == 0 || len(es) > math.MaxUint16 || len(es) == 1 && es[0].Kind == transport.Data ||
		has(es, transport.Same) && (a.Plain || feat&transport.FeatureWarm == 0) ||
		has(es, transport.Moved) && (a.Plain || feat&movedFeatures != movedFeatures) ||
		feat&transport.FeatureRepeat == 0 && has(es, transport.Repeat) {
		es = nil
	}
	var zero [transport.HeaderSize]byte
	r.head = transport.AppendExtents(append(r.head[:0], zero[:]...), es)
	h.Aux = uint16(len(es))
	r.vec = append(r.vec, r.head)
	size := 0
	if es == nil {
		r.vec, size = append(r.vec, a.Memory), len(a.Memory)
	} else {
		at := 0
		for i := range es {
			n := int(es[i].Count) * ps
			if n > len(a.Memory)-at {
				return 0, fmt.Errorf("answer fetch %d: extents reach past its %d pages", a.ID, a.Count)
			}
			if es[i].Kind == transport.Data && n > 0 {
				r.vec = append(r.vec, a.Memory[at:at+n])
				size += n
			}
			at += n
		}
		if at != len(a.Memory) {
			return 0, fmt.Errorf("answer fetch %d: extents do not cover its %d pages", a.ID, a.Count)
		}
	}
	if size > 0 && size <= transport.MaxBodyLimit {
		codec, err := r.encode(size)
		if err != nil {
			return 0, fmt.Errorf("answer fetch %d: %w", a.ID, err)
		}
		h.Flags = uint8(codec)
	}
	body := len(r.head) - transport.HeaderSize
	for _, p := range r.vec[1:] {
		body += len(p)
	}
	if body > int(r.c.MaxBody()) {
		return transport.HeaderSize + body, nil // refused by the caller
	}
	h.Length = uint32(body)
	h.Put(r.head)
	crc := transport.UpdateCRC(transport.HeaderCRC(r.head), r.head[transport.HeaderSize:])
	for _, p := range r.vec[1:] {
		crc = transport.UpdateCRC(crc, p)
	}
	transport.SetCRC(r.head, crc)
	return transport.HeaderSize + body, nil
}

func has(es []transport.Extent, kind transport.ExtentKind) bool {
	for i := range es {
		if es[i].Kind == kind {
			return true
		}
	}
	return false
}

// encode replaces the data in vec, size bytes, by its encoded form if that pays.
func (r *Responder) encode(size int) (codec transport.Codec, err error) {
	if r.chooser.Raw() {
		return transport.CodecNone, nil
	}
	data := r.vec[1]
	if len(r.vec) > 2 {
		g, err := r.gather.get(size)
		if err != nil {
			return 0, err
		}
		n := 0
		for _, p := range r.vec[1:] {
			n += copy(g[n:], p)
		}
		data = g
	}
	codec = r.chooser.Choose(data)
	if codec == transport.CodecNone {
		return codec, nil
	}
	need := transport.MaxEncoded(size)
	out := r.place
	if len(r.head)+need <= len(out) {
		out = out[len(r.head):]
	} else if out, err = r.encoded.get(need); err != nil {
		return 0, err
	}
	start := time.Now()
	enc, err := transport.Encode(codec, out, data)
	if err != nil {
		return 0, err
	}
	r.chooser.Encoded(codec, size, len(enc), time.Since(start))
	if len(enc) >= size {
		return transport.CodecNone, nil
	}
	r.vec = append(r.vec[:1], enc)
	return codec, nil
}

// Close ends the channel, see [Conn.Close].
func (r *Responder) Close() error { return r.c.Close() }

// release frees the scratch memory once the channel has ended. An Answer that
// is still at it keeps the lock only until its write fails.
func (r *Responder) release() {
	r.amu.Lock()
	r.gather.free()
	r.encoded.free()
	r.amu.Unlock()
}
