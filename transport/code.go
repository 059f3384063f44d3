package transport

import "fmt"

// Code is the reason in REJECT, REFUSE and CLOSE frames (PROTOCOL section 8).
type Code uint16

// The codes of PROTOCOL section 8.
const (
	CodeVersion   Code = 1
	CodeFeature   Code = 2
	CodeToken     Code = 3
	CodeIdentity  Code = 4
	CodeBusy      Code = 5
	CodeMalformed Code = 6
	CodeRange     Code = 7
	CodeNotFrozen Code = 8
	CodeIO        Code = 9
	CodeShutdown  Code = 10
	CodeDone      Code = 11
)

var codeNames = [...]string{
	CodeVersion: "version", CodeFeature: "feature", CodeToken: "token", CodeIdentity: "identity",
	CodeBusy: "busy", CodeMalformed: "malformed", CodeRange: "range", CodeNotFrozen: "not frozen",
	CodeIO: "i/o", CodeShutdown: "shutdown", CodeDone: "done",
}

// String returns the code's name.
func (c Code) String() string {
	if int(c) < len(codeNames) && codeNames[c] != "" {
		return codeNames[c]
	}
	return fmt.Sprintf("code %d", uint16(c))
}

// RemoteError is what the peer said in REJECT, REFUSE or CLOSE.
type RemoteError struct {
	Code Code
	Text string
}

func (e *RemoteError) Error() string {
	return fmt.Sprintf("peer refused (%v): %s", e.Code, e.Text)
}

// Codec is the encoding of an answer's data (PROTOCOL section 5).
type Codec uint8

// The codecs of PROTOCOL section 5.
const (
	CodecNone Codec = 0
	CodecS2   Codec = 1
	CodecZstd Codec = 2
)

// String returns the codec's name as flags and metrics have it.
func (c Codec) String() string {
	switch c {
	case CodecNone:
		return "none"
	case CodecS2:
		return "s2"
	case CodecZstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", uint8(c))
}
