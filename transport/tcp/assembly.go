package tcp

import (
	"sync/atomic"

	"github.com/pagewarp/pagewarp/transport"
)

// feed is where the bytes of a frame come from, after its header.
type feed interface {
	readFull(p []byte) error
	// readVec fills the slices of vec, which it consumes, and continues the CRC.
	readVec(vec [][]byte, crc uint32) (uint32, error)
	// here takes the next n bytes if they are in memory already and stay there
	// until the answer has been taken; else it is nil, and nothing is taken.
	here(n int) []byte
}

// assembly takes answers in: it checks them, and brings their pages to a sink. It
// serves one answer at a time; Fetcher has one for each way that answers come.
type assembly struct {
	c        *Conn
	in       feed
	progress *atomic.Uint64 // counts pieces of answers

	ext     []transport.Extent
	dst     [][]byte
	land    [][]byte // where the bytes of each page go: dst, with room for dropped pages that others repeat
	own     [][]byte // the memory of land where it is not dst
	data    [][]byte // with repeats: of land, the data pages
	runs    []run
	vec     [][]byte
	encoded scratch // an encoded body
	plain   scratch // a decoded one, where it cannot go into place
	drop    scratch // bytes of pages that are not wanted
	spare   scratch // pages that are not wanted, but repeated
}

func (f *assembly) free() {
	f.encoded.free()
	f.plain.free()
	f.drop.free()
	f.spare.free()
}
