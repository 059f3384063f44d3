package rdma

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/pagewarp/pagewarp/transport"
)

// Kinds of RDMA frames (PROTOCOL section 13).
const (
	kindConnect  uint16 = 1
	kindAccept   uint16 = 2
	kindMap      uint16 = 3
	kindMapped   uint16 = 4
	kindUnmapped uint16 = 5
	kindOff      uint16 = 6
)

const (
	endpointSize = 64
	windowSize   = 32
	maxWindows   = transport.MaxRDMA / windowSize
	// chunkBytes is the unit of registration: large enough that the messages about
	// it are few (16 for 1 GiB), small enough that registering one does not hold
	// the first READ of it up for long.
	chunkBytes    = 64 << 20
	minChunkBytes = 1 << 20
	maxChunkBytes = 1 << 30
)

// Limits of what a peer may say of messages.
const (
	maxSlots     = 1024
	minSlotBytes = transport.HeaderSize + 4096
	maxSlotBytes = transport.HeaderSize + transport.MaxBodyLimit
)

// ErrNotBuilt says that this program was built without RDMA.
var ErrNotBuilt = errors.New("this program was built without RDMA: install libibverbs-dev and run 'make build', which then makes pagewarpd-rdma as well")

// caps is what a device and port can do.
type caps struct {
	gid           [16]byte
	depth         int // work requests of a queue
	maxMessage    uint32
	lid           uint16
	mtu           uint8
	link          uint8
	active        bool
	odp           bool  // memory that peers READ need not be pinned
	reads, served uint8 // outstanding READs, as initiator and as responder
}

// access is what memory is registered for, as in the shim.
type access int

const (
	landing     access = iota // our READs land in it
	readable                  // a peer READs it
	readableODP               // likewise; it is not pinned
)

// endpoint is what a peer must know of a queue pair.
type endpoint struct {
	qpn, psn uint32
	lid      uint16
	mtu      uint8 // enum ibv_mtu: 1 is 256 bytes, 5 is 4096
	link     uint8 // 1 InfiniBand, 2 Ethernet
	reads    uint8
	gid      [16]byte
	chunk    uint32 // bytes; ACCEPT only
	// Messages: how many the destination has room for, and the most bytes of one. Both
	// are zero for pages by READ.
	slots     uint32
	slotBytes uint32
}

func (e *endpoint) append(b []byte) []byte {
	var p [endpointSize]byte
	le := binary.LittleEndian
	le.PutUint32(p[0:], e.qpn)
	le.PutUint32(p[4:], e.psn)
	le.PutUint16(p[8:], e.lid)
	p[10], p[11], p[12] = e.mtu, e.link, e.reads
	copy(p[16:], e.gid[:])
	le.PutUint32(p[32:], e.chunk)
	le.PutUint32(p[36:], e.slots)
	le.PutUint32(p[40:], e.slotBytes)
	return append(b, p[:]...)
}

// parseEndpoint decodes the body of CONNECT, or of ACCEPT; messages says whether they
// may be asked for on the channel.
func parseEndpoint(b []byte, accept, messages bool) (endpoint, error) {
	var e endpoint
	if len(b) != endpointSize {
		return e, fmt.Errorf("%w: RDMA endpoint has %d bytes, want %d", transport.ErrMalformed, len(b), endpointSize)
	}
	le := binary.LittleEndian
	e = endpoint{qpn: le.Uint32(b), psn: le.Uint32(b[4:]), lid: le.Uint16(b[8:]), mtu: b[10], link: b[11], reads: b[12],
		gid: [16]byte(b[16:32]), chunk: le.Uint32(b[32:]), slots: le.Uint32(b[36:]), slotBytes: le.Uint32(b[40:])}
	bad := func(format string, args ...any) (endpoint, error) {
		return endpoint{}, fmt.Errorf("%w: RDMA endpoint has "+format, append([]any{transport.ErrMalformed}, args...)...)
	}
	for _, i := range []int{13, 14, 15} {
		if b[i] != 0 {
			return bad("non-zero reserved bytes")
		}
	}
	for _, c := range b[44:] {
		if c != 0 {
			return bad("non-zero reserved bytes")
		}
	}
	switch {
	case e.qpn >= 1<<24 || e.psn >= 1<<24:
		return bad("queue pair %#x and sequence number %#x, which have 24 bits", e.qpn, e.psn)
	case e.mtu < 1 || e.mtu > 5:
		return bad("MTU code %d, want 1 to 5", e.mtu)
	case e.link != 1 && e.link != 2:
		return bad("link layer %d, want 1 or 2", e.link)
	case e.reads == 0:
		return bad("no outstanding READs")
	case !messages && (e.slots != 0 || e.slotBytes != 0):
		return bad("room for messages, which are not agreed on")
	case (e.slots == 0) != (e.slotBytes == 0) || e.slots > maxSlots || e.slotBytes != 0 && (e.slotBytes < minSlotBytes || e.slotBytes > maxSlotBytes):
		return bad("room for %d messages of %d bytes, want 1 to %d of %d to %d", e.slots, e.slotBytes, maxSlots, minSlotBytes, maxSlotBytes)
	case e.slots != 0 && e.chunk != 0:
		return bad("chunks for READs and room for messages")
	case e.slots != 0:
	case !accept && e.chunk != 0:
		return bad("a chunk size in CONNECT")
	case accept && (e.chunk < minChunkBytes || e.chunk > maxChunkBytes || bits.OnesCount32(e.chunk) != 1):
		return bad("chunks of %d bytes, want a power of two from 1 MiB to 1 GiB", e.chunk)
	}
	return e, nil
}

// window is a stretch of pages that can be read.
type window struct {
	first uint64 // page
	count uint32
	rkey  uint32
	addr  uint64 // of the first page, at the source
}

func appendWindow(b []byte, w window) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, w.first)
	b = le.AppendUint32(b, w.count)
	b = le.AppendUint32(b, w.rkey)
	b = le.AppendUint64(b, w.addr)
	return le.AppendUint64(b, 0)
}

// parseWindows decodes the body of a MAPPED that describes count pages from
// first of a region with pages of ps bytes.
func parseWindows(b []byte, first uint64, count, ps uint32) ([]window, error) {
	if len(b)%windowSize != 0 {
		return nil, fmt.Errorf("%w: MAPPED has %d bytes, no multiple of %d", transport.ErrMalformed, len(b), windowSize)
	}
	ws := make([]window, 0, len(b)/windowSize)
	next, end := first, first+uint64(count)
	le := binary.LittleEndian
	for ; len(b) > 0; b = b[windowSize:] {
		w := window{first: le.Uint64(b), count: le.Uint32(b[8:]), rkey: le.Uint32(b[12:]), addr: le.Uint64(b[16:])}
		switch {
		case le.Uint64(b[24:]) != 0:
			return nil, fmt.Errorf("%w: RDMA window has non-zero reserved bytes", transport.ErrMalformed)
		case w.first < next || w.first >= end || w.count == 0 || uint64(w.count) > end-w.first:
			return nil, fmt.Errorf("%w: RDMA window of pages %d+%d is out of order, or outside of %d+%d", transport.ErrMalformed, w.first, w.count, first, count)
		case w.addr+uint64(w.count)*uint64(ps) < w.addr:
			return nil, fmt.Errorf("%w: RDMA window at address %#x wraps round", transport.ErrMalformed, w.addr)
		}
		next = w.first + uint64(w.count)
		ws = append(ws, w)
	}
	return ws, nil
}

// read is a READ to post; it has the layout of struct pw_read.
type read struct {
	id, local, remote     uint64
	length, lkey, rkey, _ uint32
}

// done is a completion; it has the layout of struct pw_done.
type done struct {
	id             uint64
	status, vendor uint32
	bytes, _       uint32 // of a message
}

// slot is memory for one message; it has the layout of struct pw_slot.
type slot struct {
	id, local    uint64
	length, lkey uint32
}

// maxPost is the most work requests of one call of the shim, and completions.
const maxPost = 64
