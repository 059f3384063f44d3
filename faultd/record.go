package faultd

import "time"

// FaultClass says what a fault met.
type FaultClass uint8

// The classes; their numbers are those of a fault log.
const (
	FaultFetched    FaultClass = 0 // an absent page: it is fetched
	FaultJoined     FaultClass = 1 // a page whose fetch was under way
	FaultInstalling FaultClass = 2 // a page on its way in
	FaultResident   FaultClass = 3 // a page that was there and had to be shown
	FaultZero       FaultClass = 4 // a page that reads as zero
)

// Recorder is told of the faults of a session, for a trace of them. Its methods
// are called on the fault path, by several threads: they must not block, and
// should not allocate.
type Recorder interface {
	// Fault says that a fault on a page was read at that time.
	Fault(region uint32, page uint64, class FaultClass, read time.Time)
	// Served says that a fetched page was shown to who waited for it.
	Served(region uint32, page uint64, at time.Time)
}
