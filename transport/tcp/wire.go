package tcp

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync/atomic"

	"github.com/pagewarp/pagewarp/transport"
	"golang.org/x/sys/unix"
)

const (
	readBuffer  = 32 << 10 // of the reader; a header and small bodies in one call
	copyBuffer  = 64 << 10 // of the writer, where it must gather by copying
	maxIovecs   = 64       // in one system call
	maxReadCall = 64 << 10 // bytes asked for by one call, so that the CRC finds them in the cache
	maxSendCall = 64 << 10 // bytes given to one call, so that progress can be seen
)

// wire moves bytes. The reading methods belong to one goroutine, the writing
// ones to whoever holds the Conn's write lock.
type wire struct {
	nc   net.Conn // what to read and write: a sock, a *tls.Conn, or any net.Conn
	base net.Conn // what to close: below TLS
	sk   *sock    // set when nc is a plain socket: vectored calls
	sock *sock    // set when a socket is at the bottom, with TLS or without

	in, out atomic.Int64 // bytes of frames
	// reads is odd while the reader waits for bytes; with in it tells the
	// keepalive whether silence is the peer's or our own doing.
	reads atomic.Uint64
	// writes is odd while a write is in progress.
	writes atomic.Uint64

	buf    []byte // reader's; bytes [r,w) are not consumed
	r, w   int
	ahead  int // how much to ask for at once when filling buf
	riov   []unix.Iovec
	wiov   []unix.Iovec
	gather []byte // writer's

	sendCall int     // bytes given to one call, writer's
	backlog  backlog // writer's
}

func newWire(nc net.Conn) (*wire, error) {
	w := &wire{nc: nc, base: nc, buf: make([]byte, readBuffer), ahead: readBuffer, sendCall: maxSendCall,
		riov: make([]unix.Iovec, 0, maxIovecs), wiov: make([]unix.Iovec, 0, maxIovecs)}
	s, err := newSock(nc)
	if err != nil {
		return nil, err
	}
	if s != nil {
		w.nc, w.base, w.sk, w.sock = s, s, s, s
	}
	return w, nil
}

// secure puts TLS on top.
func (w *wire) secure(t *tls.Conn) { w.nc, w.sk = t, nil }

// readSome reads at least one byte into p.
func (w *wire) readSome(p []byte) (int, error) {
	w.reads.Add(1)
	n, err := w.nc.Read(p)
	w.reads.Add(1)
	w.in.Add(int64(n))
	if n > 0 {
		return n, nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return 0, err
}

// need makes at least n ≤ readBuffer bytes available in buf.
func (w *wire) need(n int) error {
	if w.w-w.r >= n {
		return nil
	}
	if w.r == w.w {
		w.r, w.w = 0, 0
	} else if len(w.buf)-w.r < max(n, w.ahead) {
		w.w = copy(w.buf, w.buf[w.r:w.w])
		w.r = 0
	}
	for w.w-w.r < n {
		end := min(len(w.buf), w.r+max(n, w.ahead))
		m, err := w.readSome(w.buf[w.w:end])
		if err != nil {
			if err == io.EOF && w.w > w.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		w.w += m
	}
	return nil
}

// buffered returns how many bytes can be had without a system call.
func (w *wire) buffered() int { return w.w - w.r }

// peek returns the next n bytes, valid until the next reading call.
func (w *wire) peek(n int) ([]byte, error) {
	if err := w.need(n); err != nil {
		return nil, err
	}
	return w.buf[w.r : w.r+n], nil
}

func (w *wire) skip(n int) { w.r += n }

// readFull fills p.
func (w *wire) readFull(p []byte) error {
	n := copy(p, w.buf[w.r:w.w])
	w.r += n
	for p = p[n:]; len(p) > 0; {
		n, err := w.readSome(p)
		if err != nil {
			return unexpected(err)
		}
		p = p[n:]
	}
	return nil
}

// readVec fills the slices of vec, at most maxIovecs, and returns the CRC
// continued over them. It consumes vec.
func (w *wire) readVec(vec [][]byte, crc uint32) (uint32, error) {
	for len(vec) > 0 && w.r < w.w {
		n := copy(vec[0], w.buf[w.r:w.w])
		w.r += n
		crc, vec = eat(vec, n, crc)
	}
	for len(vec) > 0 {
		var n int
		var err error
		if w.sk == nil {
			n, err = w.readSome(vec[0])
		} else {
			iov := w.riov[:0]
			for _, p := range vec {
				iov = appendIovec(iov, p)
			}
			w.reads.Add(1)
			n, err = w.sk.recv(iov)
			w.reads.Add(1)
			w.in.Add(int64(n))
		}
		if err != nil {
			return crc, unexpected(err)
		}
		crc, vec = eat(vec, n, crc)
	}
	return crc, nil
}

// here implements feed: nothing of a socket is in memory for long enough.
func (*wire) here(int) []byte { return nil }

// eat takes n bytes off the front of vec, through the CRC.
func eat(vec [][]byte, n int, crc uint32) (uint32, [][]byte) {
	for n > 0 {
		m := min(n, len(vec[0]))
		crc = transport.UpdateCRC(crc, vec[0][:m])
		vec[0] = vec[0][m:]
		n -= m
		if len(vec[0]) == 0 {
			vec = vec[1:]
		}
	}
	return crc, vec
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// write writes p.
func (w *wire) write(p []byte) error {
	w.writes.Add(1)
	defer w.writes.Add(1)
	for len(p) > 0 {
		n, err := w.nc.Write(p[:min(len(p), w.sendCall)])
		w.out.Add(int64(n))
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// writeVec writes the slices of vec in order.
func (w *wire) writeVec(vec [][]byte) error {
	if w.sk == nil {
		return w.writeGathered(vec)
	}
	w.writes.Add(1)
	defer w.writes.Add(1)
	off := 0 // into vec[0]
	for {
		iov, total := w.wiov[:0], 0
		for i, p := range vec {
			if i == 0 {
				p = p[off:]
			}
			if len(iov) == maxIovecs || total == w.sendCall {
				break
			}
			p = p[:min(len(p), w.sendCall-total)]
			iov = appendIovec(iov, p)
			total += len(p)
		}
		if total == 0 {
			return nil
		}
		n, err := w.sk.send(iov)
		w.out.Add(int64(n))
		if err != nil {
			return err
		}
		for n += off; len(vec) > 0 && n >= len(vec[0]); vec = vec[1:] {
			n -= len(vec[0])
		}
		off = n
	}
}

// writeGathered copies vec through a buffer: TLS wants few and large writes.
func (w *wire) writeGathered(vec [][]byte) error {
	if w.gather == nil {
		w.gather = make([]byte, 0, copyBuffer)
	}
	g := w.gather[:0]
	for _, p := range vec {
		for len(p) > 0 {
			n := min(len(p), copyBuffer-len(g))
			g, p = append(g, p[:n]...), p[n:]
			if len(g) == copyBuffer {
				if err := w.write(g); err != nil {
					return err
				}
				g = g[:0]
			}
		}
	}
	return w.write(g)
}

// frame reads the next header, checked but for its CRC.
func (w *wire) frame(maxBody uint32) (h transport.Header, crc uint32, err error) {
	b, err := w.peek(transport.HeaderSize)
	if err != nil {
		return h, 0, err
	}
	if h, err = transport.ParseHeader(b, maxBody); err != nil {
		return h, 0, err
	}
	crc = transport.HeaderCRC(b)
	w.skip(transport.HeaderSize)
	return h, crc, nil
}

// small reads the body of h, which must not exceed readBuffer, and checks the
// frame's CRC. The body is valid until the next reading call.
func (w *wire) small(h *transport.Header, crc uint32) ([]byte, error) {
	if h.Length > readBuffer {
		return nil, fmt.Errorf("%w: %v has a body of %d bytes where at most %d are expected", transport.ErrMalformed, h.Type, h.Length, readBuffer)
	}
	b, err := w.peek(int(h.Length))
	if err != nil {
		return nil, unexpected(err)
	}
	w.skip(len(b))
	return b, h.CheckCRC(transport.UpdateCRC(crc, b))
}
