//go:build !amd64

package touch

import "sync/atomic"

// writeBack writes the word at addr back unchanged, atomically. The page may be
// read first, so that a fault event need not have the write flag.
//
// SAFETY: as access.
//
//go:nocheckptr
func writeBack(addr uint64) { atomic.AddUint64((*uint64)(pointer(addr)), 0) }
