package relocate

import (
	"time"

	"github.com/pagewarp/pagewarp/relocate/qemu"
	"github.com/pagewarp/pagewarp/transport"
)

// Kinds of control messages (PROTOCOL section 6).
const (
	msgRegions  uint16 = 1
	msgDrained  uint16 = 2
	msgReleased uint16 = 3
	msgOffer    uint16 = 16
	msgReady    uint16 = 17
	msgLoaded   uint16 = 18
	msgGo       uint16 = 19
	msgRunning  uint16 = 20
	msgProgress uint16 = 21
	msgAbort    uint16 = 22
	msgSync     uint16 = 23
	msgFailed   uint16 = 24
	msgLimit    uint16 = 25
	msgPrepared uint16 = 26
	// msgOptional and above are ignored by a peer that does not know them.
	msgOptional uint16 = 0x8000
	msgHot      uint16 = 0x8001
)

// offer is what the destination needs to start the same machine.
type offer struct {
	VM          string             `json:"vm"`
	Description qemu.Description   `json:"description"`
	Regions     []transport.Region `json:"regions"` // index-parallel to Description's backends
	// Allocated is the memory that the image really takes, in bytes: what the
	// destination must have free.
	Allocated int64 `json:"allocated"`
	// Data lists where the image is no hole, see appendRuns: what the destination may
	// reserve. Older peers send none.
	Data    []byte  `json:"data,omitempty"`
	Options Options `json:"options"`
}

// readyMsg says that the VMM is up and its faults are caught.
type readyMsg struct {
	// PreTransfer: memory is fetched now, and the state waits for PREPARED.
	PreTransfer bool `json:"pre_transfer,omitempty"`
}

// regionsMsg announces the frozen image.
type regionsMsg struct {
	Regions []transport.Region `json:"regions"`
	Stopped time.Time          `json:"stopped"` // when the guest stopped, by the source VMM's clock
}

// hotMsg lists pages that the guest touched lately, see appendRuns.
type hotMsg struct {
	Method string `json:"method"` // how the source found out
	Runs   []byte `json:"runs"`
}

// goMsg hands the machine over.
type goMsg struct {
	Run bool `json:"run"` // false: leave it paused
}

// runningMsg says that the machine belongs to the destination now.
type runningMsg struct {
	Run     bool      `json:"run"`
	Resumed time.Time `json:"resumed"` // by the destination VMM's clock; zero if left paused
}

// progressMsg carries the destination's counters to the source.
type progressMsg struct {
	Status Status `json:"status"`
}

// abortMsg gives up before GO; failedMsg (same form) after it.
type abortMsg struct {
	Reason string `json:"reason"`
}

// drainedMsg says that nothing more is needed of the source.
type drainedMsg struct {
	Ended string `json:"ended,omitempty"` // the machine is no more, in good order: how
}

// limitMsg passes an operator's wish on to the destination.
type limitMsg struct {
	Bandwidth int64 `json:"bandwidth"` // bytes per second, 0 for no cap
}

// syncMsg opens the conversation on a resumed control channel.
type syncMsg struct {
	Phase   Phase     `json:"phase"`
	Reason  string    `json:"reason,omitempty"`
	Resumed time.Time `json:"resumed,omitzero"`
}
