package relocate

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pagewarp/pagewarp/pagecache"
)

// A list of runs on the wire (PROTOCOL section 6) is a sequence of sections, the
// most recently touched first. A section is one region's: its id, the number of
// its runs, then for each run the distance of its first page from the end of the
// run before (from 0 for the first), zigzag-coded, and its pages. All are varints
// as of encoding/binary.

// maxHotBytes bounds an encoded list; as base64 it must fit into a MESSAGE.
const maxHotBytes = 512 << 10

// appendRuns encodes runs, and leaves out those at the end for which there is no
// room in maxHotBytes or that exceed what a planner takes.
func appendRuns(b []byte, runs []pagecache.Run) []byte {
	runs = runs[:min(len(runs), pagecache.MaxListed)]
	const most = 3 * binary.MaxVarintLen64 // of one run
	for len(runs) > 0 && len(b)+2*most < maxHotBytes {
		// The section ends with the region, or with the room: runs are encoded
		// apart, since their number comes first.
		var body []byte
		n, end := 0, uint64(0)
		for n < len(runs) && runs[n].Region == runs[0].Region && len(b)+len(body)+2*most < maxHotBytes {
			body = binary.AppendVarint(body, int64(runs[n].First-end))
			body = binary.AppendUvarint(body, uint64(runs[n].Count))
			end = runs[n].First + uint64(runs[n].Count)
			n++
		}
		b = binary.AppendUvarint(b, uint64(runs[0].Region))
		b = binary.AppendUvarint(b, uint64(n))
		b = append(b, body...)
		runs = runs[n:]
	}
	return b
}

var errHotCut = errors.New("it ends in the middle of a number")

// parseRuns decodes a list. The runs are for pagecache to check.
func parseRuns(b []byte) ([]pagecache.Run, error) {
	if len(b) > maxHotBytes {
		return nil, fmt.Errorf("list of %d bytes: at most %d are possible", len(b), maxHotBytes)
	}
	var bad error
	unsigned := func(what string, most uint64) uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			bad, b = errHotCut, nil
			return 0
		}
		b = b[n:]
		if v > most && bad == nil {
			bad = fmt.Errorf("%s %d: at most %d is possible", what, v, most)
		}
		return v
	}
	var runs []pagecache.Run
	for len(b) > 0 {
		region := unsigned("region", 1<<32-1)
		n := unsigned("number of runs", uint64(pagecache.MaxListed-len(runs)))
		at := uint64(0)
		for ; n > 0 && bad == nil; n-- {
			d, k := binary.Varint(b)
			if k <= 0 {
				return nil, errHotCut
			}
			b = b[k:]
			count := unsigned("pages", 1<<32-1)
			// Wraps for a hostile list, to a page that is in no region or is.
			at += uint64(d)
			runs = append(runs, pagecache.Run{Region: uint32(region), First: at, Count: uint32(count)})
			at += count
		}
		if bad != nil {
			return nil, bad
		}
	}
	return runs, nil
}
