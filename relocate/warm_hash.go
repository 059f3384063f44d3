package relocate

import (
	"github.com/pagewarp/pagewarp/faultd"
	"github.com/pagewarp/pagewarp/internal/pagehash"
	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/transport"
)

// hashing notes candidates of one region, in one goroutine.
type hashing struct {
	hasher *pagehash.Hasher
	index  *pagehash.Index
}

func newHashing(w *faultd.Warm, region uint32) *hashing {
	return &hashing{hasher: w.Hasher(), index: w.Index(region)}
}

// note enters the pages of r, which stand in their memory, into the index. Pages
// of zeroes are no candidates: they are emptied. Nil pages are left out.
func (h *hashing) note(e *faultd.Engine, r transport.Range, pages [][]byte) error {
	for i, p := range pages {
		if p == nil {
			continue
		}
		if word, fill := sysmem.SameFill(p); fill && word == 0 {
			if err := e.Displace(transport.Range{Region: r.Region, First: r.First + uint64(i), Count: 1}); err != nil {
				return err
			}
			continue
		}
		h.index.Set(r.First+uint64(i), h.hasher.Sum(p))
	}
	return nil
}
