package kmod

import "time"

// Flags of a fault.
const (
	FaultWrite  uint32 = 1 << 0 // the touch was a write
	FaultNoWait uint32 = 1 << 1 // nobody sleeps, a retry will come
	FaultAgain  uint32 = 1 << 2 // reported before; perhaps served meanwhile
)

// Fault is a touch of a missing page.
type Fault struct {
	Page  uint64
	Time  time.Duration // of CLOCK_MONOTONIC, when it was put into the ring
	TID   uint32        // thread, in the first PID namespace; 0 with FaultAgain
	Flags uint32        // Fault*
	// Source is the index of its daemon's end among those of the [Reader].
	Source int
}
