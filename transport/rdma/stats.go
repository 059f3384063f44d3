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
	Fallbacks atomic.Uint64 // times that a channel lost RDMA
	Up        atomic.Int64  // channels whose pages come by RDMA now
}
