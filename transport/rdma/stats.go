package rdma

import "sync/atomic"

// Stats counts what the channels that share it did.
type Stats struct {
	Posted    atomic.Uint64 // READs given to the device
	Completed atomic.Uint64 // of those, without an error
	Bytes     atomic.Uint64 // that they brought
	InPlace   atomic.Uint64 // pages that were in place when their READ completed
	Retried   atomic.Uint64 // of those posted, the ones that did not: their pages are fetched again
	Beneath   atomic.Uint64 // fetches that the channel beneath answered
	// Answers by SEND, and the bytes of their frames; and fetches that might have had
	// one and were sent again after the end of RDMA.
	Messages     atomic.Uint64
	MessageBytes atomic.Uint64
	Recalled     atomic.Uint64

	Fallbacks atomic.Uint64 // times that a channel lost RDMA
	Up        atomic.Int64  // channels whose pages come by RDMA now
}

// SendStats counts what the source's ends of channels that share it sent.
type SendStats struct {
	Messages atomic.Uint64
	Bytes    atomic.Uint64 // of their frames
	// Building is the time that making them took, in ns: encoding, copying, checksums.
	Building atomic.Uint64
	// Waited is the time, in ns, for which answers waited for the link.
	Waited atomic.Uint64
}
