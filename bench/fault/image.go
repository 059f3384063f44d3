package fault

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/pagewarp/pagewarp/internal/sysmem"
	"github.com/pagewarp/pagewarp/internal/touch"
)

// Image is the memory that the page server has.
type Image struct {
	file *os.File
	// data are the pages that are no holes, ascending, and sums their checksums;
	// immutable after they were made.
	data []uint64
	sums []uint32

	Pages    uint64 // immutable
	PageSize uint32 // bytes; immutable
}

// ImageOptions say what an image is like.
type ImageOptions struct {
	Pages uint64
	// PageSize is 4096 or 2 MiB. Default 4096.
	PageSize uint32
	// Half leaves the second half of each page zero, which makes it compressible
	// two to one.
	Half bool
	// Data, if not 0, is how many of the pages are no holes, at random places.
	Data uint64
}

// NewImage makes an image of random bytes.
func NewImage(o ImageOptions) (*Image, error) {
	if o.PageSize == 0 {
		o.PageSize = pageSize
	}
	if o.Pages == 0 || o.Pages > maxRegion/uint64(o.PageSize) || o.Data > o.Pages {
		return nil, fmt.Errorf("image of %d pages of %d bytes, %d of them data: want at most 1 TiB, with no more data than pages", o.Pages, o.PageSize, o.Data)
	}
	size := int64(o.Pages) * int64(o.PageSize)
	// Ordinary pages at the source, whatever the region's are.
	fd, err := sysmem.CreateMemfd("bench-image", size, 0)
	if err != nil {
		return nil, err
	}
	im := &Image{file: os.NewFile(uintptr(fd), "image"), Pages: o.Pages, PageSize: o.PageSize, data: places(o.Pages, o.Data)}
	im.sums = make([]uint32, len(im.data))
	b, err := sysmem.MapShared(fd, 0, size, true)
	if err != nil {
		im.Close()
		return nil, err
	}
	defer sysmem.Unmap(b)
	n := uint64(o.PageSize)
	if o.Half {
		n /= 2
	}
	random := rand.NewChaCha8([32]byte{7})
	for i, number := range im.data {
		page := b[number*uint64(o.PageSize):][:o.PageSize]
		random.Read(page[:n]) // never fails
		im.sums[i] = touch.Sum(page)
	}
	return im, nil
}

// places returns data of the numbers below pages, ascending; 0 is all.
func places(pages, data uint64) []uint64 {
	if data == 0 || data == pages {
		all := make([]uint64, pages)
		for i := range all {
			all[i] = uint64(i)
		}
		return all
	}
	random := rand.New(rand.NewChaCha8([32]byte{8}))
	seen := make(map[uint64]bool, data)
	chosen := make([]uint64, 0, data)
	for uint64(len(chosen)) < data {
		if n := random.Uint64N(pages); !seen[n] {
			seen[n] = true
			chosen = append(chosen, n)
		}
	}
	slices.Sort(chosen)
	return chosen
}

// size is in bytes.
func (im *Image) size() int64 { return int64(im.Pages) * int64(im.PageSize) }

// shuffled returns the pages that are no holes in a random order.
func (im *Image) shuffled() []uint64 {
	order := slices.Clone(im.data)
	rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	return order
}

// Close frees the image.
func (im *Image) Close() error { return im.file.Close() }
