package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// ErrMalformed marks every error about bytes that break PROTOCOL. It is fatal
// to the channel: nothing after such a frame can be trusted.
var ErrMalformed = errors.New("malformed frame")

// Type is the kind of a frame.
type Type uint8

// The frame types of PROTOCOL section 3.
const (
	TypeHello   Type = 0x01
	TypeWelcome Type = 0x02
	TypeReject  Type = 0x03
	TypeFetch   Type = 0x10
	TypePages   Type = 0x11
	TypeRefuse  Type = 0x12
	TypeRDMA    Type = 0x14
	TypePing    Type = 0x20
	TypePong    Type = 0x21
	TypeMessage Type = 0x30
	TypeState   Type = 0x31
	TypeIndex   Type = 0x32
	TypeClose   Type = 0x3f
)

// Sizes and limits of PROTOCOL sections 2 to 4, in bytes unless said otherwise.
const (
	HeaderSize    = 40
	HelloSize     = 112
	ExtentSize    = 16
	MaxText       = 1 << 10   // body of REJECT, REFUSE and CLOSE
	MaxRDMA       = 16 << 10  // body of RDMA
	MaxMessage    = 1 << 20   // body of MESSAGE
	MaxState      = 256 << 10 // body of STATE
	MaxIndex      = 256 << 10 // body of INDEX
	HashSize      = 16        // of a page, in INDEX
	MaxBodyLimit  = 8 << 20   // largest max_body that a handshake may agree on
	MaxCountLimit = 1<<16 - 1 // largest max_count, in pages: aux counts extents in 16 bits
)

// StateEnd is the flag of the last STATE frame of a stream.
const StateEnd uint8 = 1

// fetchPlain is the flag of a FETCH that wants no Same extents.
const fetchPlain uint8 = 1

// FetchMessage is the flag of a FETCH that may be answered by a message (PROTOCOL
// section 13, SEND).
const FetchMessage uint8 = 2

// codecMask is the part of a PAGES frame's flags that names the codec.
const codecMask uint8 = 0x0f

// field bits say which header fields a type uses; the others must be zero.
type field uint8

const (
	useAux field = 1 << iota
	useID
	useRange
	useAhead
)

type typeInfo struct {
	name  string
	limit uint32 // longest body; PAGES: replaced by the negotiated max_body
	exact bool   // the body has exactly limit bytes
	flags uint8  // flag bits in use
	use   field
}

var types = [256]typeInfo{
	TypeHello:   {name: "HELLO", limit: HelloSize, exact: true},
	TypeWelcome: {name: "WELCOME", limit: HelloSize, exact: true},
	TypeReject:  {name: "REJECT", limit: MaxText, use: useAux},
	TypeFetch:   {name: "FETCH", exact: true, flags: fetchPlain | FetchMessage, use: useID | useRange},
	TypePages:   {name: "PAGES", limit: MaxBodyLimit, flags: codecMask, use: useAux | useID | useRange | useAhead},
	TypeRefuse:  {name: "REFUSE", limit: MaxText, use: useAux | useID},
	TypeRDMA:    {name: "RDMA", limit: MaxRDMA, use: useAux | useRange},
	TypePing:    {name: "PING", exact: true, use: useID},
	TypePong:    {name: "PONG", exact: true, use: useID},
	TypeMessage: {name: "MESSAGE", limit: MaxMessage, use: useAux},
	TypeState:   {name: "STATE", limit: MaxState, flags: StateEnd},
	TypeIndex:   {name: "INDEX", limit: MaxIndex, use: useRange},
	TypeClose:   {name: "CLOSE", limit: MaxText, use: useAux},
}

// String returns the type's name in PROTOCOL.
func (t Type) String() string {
	if n := types[t].name; n != "" {
		return n
	}
	return fmt.Sprintf("type %#02x", uint8(t))
}

// Header is the 40-byte head of a frame.
type Header struct {
	Type   Type
	Flags  uint8
	Aux    uint16
	Length uint32 // bytes of body
	ID     uint64
	Region uint32
	Count  uint32 // pages
	First  uint64 // page number
	Ahead  uint32 // pages
	CRC    uint32
}

// Codec returns the codec of a PAGES frame.
func (h *Header) Codec() Codec { return Codec(h.Flags & codecMask) }

// Fetch returns the request that a FETCH or PAGES frame names.
func (h *Header) Fetch() Fetch {
	return Fetch{ID: h.ID, Range: Range{Region: h.Region, Count: h.Count, First: h.First},
		Plain: h.Type == TypeFetch && h.Flags&fetchPlain != 0}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// UpdateCRC continues a frame's CRC32C with more of its body.
func UpdateCRC(crc uint32, p []byte) uint32 { return crc32.Update(crc, castagnoli, p) }

var zeroCRC [4]byte

// HeaderCRC returns the CRC32C of an encoded header with its crc field taken as
// zero; the body continues it with [UpdateCRC]. b has at least HeaderSize bytes.
func HeaderCRC(b []byte) uint32 {
	return UpdateCRC(UpdateCRC(0, b[:36]), zeroCRC[:])
}

// Put encodes h, with its CRC field as it stands, into the first HeaderSize
// bytes of b.
func (h *Header) Put(b []byte) {
	_ = b[HeaderSize-1]
	b[0], b[1] = byte(h.Type), h.Flags
	le := binary.LittleEndian
	le.PutUint16(b[2:], h.Aux)
	le.PutUint32(b[4:], h.Length)
	le.PutUint64(b[8:], h.ID)
	le.PutUint32(b[16:], h.Region)
	le.PutUint32(b[20:], h.Count)
	le.PutUint64(b[24:], h.First)
	le.PutUint32(b[32:], h.Ahead)
	le.PutUint32(b[36:], h.CRC)
}

// SetCRC writes crc into an encoded header.
func SetCRC(b []byte, crc uint32) { binary.LittleEndian.PutUint32(b[36:], crc) }

// AppendFrame appends a whole frame to b: h with Length and CRC set to fit body,
// then body. It is for frames that are built in memory; PAGES are written in
// place by the channels.
func AppendFrame(b []byte, h Header, body []byte) []byte {
	n := len(b)
	h.Length, h.CRC = uint32(len(body)), 0
	b = append(b, make([]byte, HeaderSize)...)
	h.Put(b[n:])
	SetCRC(b[n:], UpdateCRC(HeaderCRC(b[n:]), body))
	return append(b, body...)
}

// ParseHeader decodes the first HeaderSize bytes of b and checks type, length
// and unused fields, in this order. maxBody bounds PAGES. The CRC is the
// caller's to check once it has the body.
func ParseHeader(b []byte, maxBody uint32) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("%w: header has %d bytes, want %d", ErrMalformed, len(b), HeaderSize)
	}
	le := binary.LittleEndian
	h := Header{
		Type: Type(b[0]), Flags: b[1], Aux: le.Uint16(b[2:]), Length: le.Uint32(b[4:]),
		ID: le.Uint64(b[8:]), Region: le.Uint32(b[16:]), Count: le.Uint32(b[20:]),
		First: le.Uint64(b[24:]), Ahead: le.Uint32(b[32:]), CRC: le.Uint32(b[36:]),
	}
	t := &types[h.Type]
	if t.name == "" {
		return Header{}, fmt.Errorf("%w: unknown frame type %#02x; is the peer pagewarp, with TLS on both sides or on neither?", ErrMalformed, b[0])
	}
	limit := t.limit
	if h.Type == TypePages {
		limit = min(maxBody, MaxBodyLimit)
	}
	if h.Length > limit || t.exact && h.Length != limit {
		return Header{}, fmt.Errorf("%w: %v has a body of %d bytes, limit %d", ErrMalformed, h.Type, h.Length, limit)
	}
	if name := unusedSet(&h, t); name != "" {
		return Header{}, fmt.Errorf("%w: %v with non-zero %s, which it does not use", ErrMalformed, h.Type, name)
	}
	return h, nil
}

// unusedSet names the first field of h that its type does not use and that is
// not zero.
func unusedSet(h *Header, t *typeInfo) string {
	switch {
	case h.Flags&^t.flags != 0:
		return "flags"
	case t.use&useAux == 0 && h.Aux != 0:
		return "aux"
	case t.use&useID == 0 && h.ID != 0:
		return "id"
	case t.use&useRange == 0 && h.Region != 0:
		return "region"
	case t.use&useRange == 0 && h.Count != 0:
		return "count"
	case t.use&useRange == 0 && h.First != 0:
		return "first"
	case t.use&useAhead == 0 && h.Ahead != 0:
		return "ahead"
	}
	return ""
}

// CheckCRC compares the CRC of a received frame with the one its header holds.
func (h *Header) CheckCRC(crc uint32) error {
	if crc != h.CRC {
		return fmt.Errorf("%w: %v id %d has CRC %#08x, computed %#08x: damaged on the way", ErrMalformed, h.Type, h.ID, h.CRC, crc)
	}
	return nil
}

// Header returns the FETCH frame's header.
func (f *Fetch) Header() Header {
	h := Header{Type: TypeFetch, ID: f.ID, Region: f.Region, Count: f.Count, First: f.First}
	if f.Plain {
		h.Flags = fetchPlain
	}
	return h
}
