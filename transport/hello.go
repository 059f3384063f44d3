package transport

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// The protocol versions that this package speaks.
const (
	MinVersion uint16 = 1
	MaxVersion uint16 = 1
)

// Defaults of the handshake's limits.
const (
	DefaultMaxBody  uint32 = 4 << 20 // bytes
	DefaultMaxCount uint32 = 512     // pages: 2 MiB of 4 KiB pages
)

const magic = "PAGEWARP"

// Role is what a side does in a session.
type Role uint8

// The roles of PROTOCOL section 4.
const (
	Source      Role = 1 // answers fetches
	Destination Role = 2 // sends them
)

// String returns the role's name.
func (r Role) String() string {
	switch r {
	case Source:
		return "source"
	case Destination:
		return "destination"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// Peer returns the role of the other side.
func (r Role) Peer() Role { return Source + Destination - r }

// Features is a set of optional parts of the protocol.
type Features uint32

// The features of PROTOCOL section 4.
const (
	FeatureFill   Features = 1 << iota // fill elision: extents
	FeatureS2                          // codec S2
	FeatureZstd                        // codec zstd
	FeatureAhead                       // zero pages after the range
	FeatureWarm                        // candidates: INDEX, Same, plain fetches (PROTOCOL section 12)
	FeatureRDMA                        // pages by RDMA READ, beside the channel (PROTOCOL section 13)
	FeatureRepeat                      // repeated pages of an answer once; only with FeatureFill
	FeatureMoved                       // candidates of other pages: Moved; only with FeatureWarm
	FeatureSend                        // answers by RDMA SEND; only with FeatureRDMA (PROTOCOL section 13)

	// AllFeatures are those that need nothing beside the connection.
	AllFeatures = FeatureFill | FeatureS2 | FeatureZstd | FeatureAhead | FeatureWarm | FeatureRepeat | FeatureMoved
)

// String lists the set bits by name.
func (f Features) String() string {
	if f == 0 {
		return "none"
	}
	s, rest := "", f
	for i, n := range []string{"fill", "s2", "zstd", "ahead", "warm", "rdma", "repeat", "moved", "send"} {
		if b := Features(1) << i; f&b != 0 {
			s, rest = s+"+"+n, rest&^b
		}
	}
	if rest != 0 {
		s += fmt.Sprintf("+%#x", uint32(rest))
	}
	return s[1:]
}

// Codec says whether c may be used with these features.
func (f Features) Codec(c Codec) bool {
	switch c {
	case CodecNone:
		return true
	case CodecS2:
		return f&FeatureS2 != 0
	case CodecZstd:
		return f&FeatureZstd != 0
	}
	return false
}

// Token names a session. It is a capability: log only String.
type Token [32]byte

// NewToken draws a token from the system's cryptographic generator.
func NewToken() Token {
	var t Token
	rand.Read(t[:]) // never fails: crypto/rand crashes the program instead
	return t
}

// String returns the first four bytes in hex: enough to tell sessions apart in
// a log, too little to join one.
func (t Token) String() string { return hex.EncodeToString(t[:4]) + "…" }

// Hello is the body of HELLO and of WELCOME.
type Hello struct {
	Low, High uint16   // versions; WELCOME: both the chosen one
	Features  Features // offered; WELCOME: in force
	Required  Features // HELLO only
	Kind      Kind
	Role      Role   // of the sender
	Index     uint16 // of the channel within its kind
	MaxBody   uint32 // bytes
	MaxCount  uint32 // pages
	Token     Token
	Epoch     uint64 // counts the connections of this channel
}

// Put encodes h into the first HelloSize bytes of b.
func (h *Hello) Put(b []byte) {
	clear(b[:HelloSize])
	copy(b, magic)
	le := binary.LittleEndian
	le.PutUint16(b[8:], h.Low)
	le.PutUint16(b[10:], h.High)
	le.PutUint32(b[12:], uint32(h.Features))
	le.PutUint32(b[16:], uint32(h.Required))
	b[20], b[21] = byte(h.Kind), byte(h.Role)
	le.PutUint16(b[22:], h.Index)
	le.PutUint32(b[24:], h.MaxBody)
	le.PutUint32(b[28:], h.MaxCount)
	copy(b[32:64], h.Token[:])
	le.PutUint64(b[64:], h.Epoch)
}

// ParseHello decodes the body of a HELLO or WELCOME and checks what does not
// depend on the receiver.
func ParseHello(b []byte) (Hello, error) {
	if len(b) != HelloSize {
		return Hello{}, fmt.Errorf("%w: hello has %d bytes, want %d", ErrMalformed, len(b), HelloSize)
	}
	if string(b[:8]) != magic {
		return Hello{}, fmt.Errorf("%w: magic is %q, want %q: the peer does not speak pagewarp", ErrMalformed, b[:8], magic)
	}
	le := binary.LittleEndian
	h := Hello{
		Low: le.Uint16(b[8:]), High: le.Uint16(b[10:]),
		Features: Features(le.Uint32(b[12:])), Required: Features(le.Uint32(b[16:])),
		Kind: Kind(b[20]), Role: Role(b[21]), Index: le.Uint16(b[22:]),
		MaxBody: le.Uint32(b[24:]), MaxCount: le.Uint32(b[28:]),
		Token: Token(b[32:64]), Epoch: le.Uint64(b[64:]),
	}
	for _, c := range b[72:] {
		if c != 0 {
			return Hello{}, fmt.Errorf("%w: hello has non-zero reserved bytes", ErrMalformed)
		}
	}
	switch {
	case h.Low == 0 || h.Low > h.High:
		return Hello{}, fmt.Errorf("%w: hello offers versions %d to %d", ErrMalformed, h.Low, h.High)
	case h.Kind < Control || h.Kind > Precache:
		return Hello{}, fmt.Errorf("%w: hello has unknown channel kind %d", ErrMalformed, h.Kind)
	case h.Role != Source && h.Role != Destination:
		return Hello{}, fmt.Errorf("%w: hello has unknown role %d", ErrMalformed, h.Role)
	case h.MaxBody == 0 || h.MaxCount == 0:
		return Hello{}, fmt.Errorf("%w: hello has max_body %d, max_count %d; neither may be 0", ErrMalformed, h.MaxBody, h.MaxCount)
	}
	return h, nil
}

// Offer is what a listening side is ready to agree on.
type Offer struct {
	Role     Role     // its own
	Features Features // it knows
	Required Features // it cannot do without
	MaxBody  uint32   // bytes; 0: DefaultMaxBody
	MaxCount uint32   // pages; 0: DefaultMaxCount
}

// Negotiate answers a HELLO: the WELCOME to send, or why there is none.
func Negotiate(h *Hello, o Offer) (Hello, *RemoteError) {
	if h.Low > MaxVersion || h.High < MinVersion {
		return Hello{}, &RemoteError{CodeVersion, fmt.Sprintf("versions %d to %d offered, this side speaks %d to %d; upgrade the older side", h.Low, h.High, MinVersion, MaxVersion)}
	}
	if h.Role != o.Role.Peer() {
		return Hello{}, &RemoteError{CodeMalformed, fmt.Sprintf("both sides claim to be the %v", h.Role)}
	}
	w := *h
	w.Low = min(h.High, MaxVersion)
	w.High = w.Low
	w.Role = o.Role
	w.Features = h.Features & o.Features
	w.Required = 0
	if miss := h.Required &^ w.Features; miss != 0 {
		return Hello{}, &RemoteError{CodeFeature, fmt.Sprintf("features required but not offered by the listening side: %v", miss)}
	}
	if miss := o.Required &^ w.Features; miss != 0 {
		return Hello{}, &RemoteError{CodeFeature, fmt.Sprintf("features the listening side requires but were not offered: %v", miss)}
	}
	w.MaxBody = min(h.MaxBody, orDefault(o.MaxBody, DefaultMaxBody), MaxBodyLimit)
	w.MaxCount = min(h.MaxCount, orDefault(o.MaxCount, DefaultMaxCount), MaxCountLimit)
	return w, nil
}

// CheckWelcome verifies that w is a possible answer to h.
func CheckWelcome(h, w *Hello) error {
	bad := func(what string, got, want any) error {
		return fmt.Errorf("%w: WELCOME has %s %v, want %v", ErrMalformed, what, got, want)
	}
	switch {
	case w.Low != w.High || w.Low < h.Low || w.High > h.High:
		return bad("version", w.High, fmt.Sprintf("one of %d to %d", h.Low, h.High))
	case w.Features&^h.Features != 0:
		return bad("features", w.Features, fmt.Sprintf("a part of %v", h.Features))
	case h.Required&^w.Features != 0:
		return bad("features", w.Features, fmt.Sprintf("at least %v", h.Required))
	case w.Required != 0:
		return bad("required features", w.Required, "none")
	case w.Role != h.Role.Peer():
		return bad("role", w.Role, h.Role.Peer())
	case w.Kind != h.Kind || w.Index != h.Index:
		return bad("channel", fmt.Sprintf("%v %d", w.Kind, w.Index), fmt.Sprintf("%v %d", h.Kind, h.Index))
	case w.Token != h.Token:
		return bad("token", w.Token, h.Token)
	case w.Epoch != h.Epoch:
		return bad("epoch", w.Epoch, h.Epoch)
	case w.MaxBody > h.MaxBody || w.MaxBody > MaxBodyLimit:
		return bad("max_body", w.MaxBody, fmt.Sprintf("at most %d", min(h.MaxBody, MaxBodyLimit)))
	case w.MaxCount > h.MaxCount || w.MaxCount > MaxCountLimit:
		return bad("max_count", w.MaxCount, fmt.Sprintf("at most %d", min(h.MaxCount, MaxCountLimit)))
	}
	return nil
}

func orDefault[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}
