package pagecache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The header of a residency that outlives its daemon, little-endian:
//
//	 0  8  magic "PWRESID\x00"
//	 8  4  version
//	12  4  bytes of the header, the table starts there
//	16  8  pages
//	24  8  tag, the caller's
//	32  4  CRC32C of bytes 0 to 31
//
// The rest of the header is zero. The table is words in host byte order: a
// residency does not leave its host.
const (
	headerMagic   = "PWRESID\x00"
	headerVersion = 1
	headerSize    = 4096
	headerCRCAt   = 32
	headerUsed    = 36
)

// ErrDamaged is wrapped by every refusal of [Attach] to believe a table: the
// memory must not be used, since a page that is taken for absent though the
// guest has changed it would be overwritten.
var ErrDamaged = errors.New("damaged residency")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// MaxPages is the largest region, in pages.
const MaxPages = 1 << 44

// Size returns the bytes of memory that [Create] and [Attach] need for a region
// of so many pages: a header and two bits a page.
func Size(pages uint64) uint64 {
	return headerSize + wordsFor(pages)*8
}

func wordsFor(pages uint64) uint64 {
	return (pages + pagesPerWord - 1) / pagesPerWord
}

func putHeader(h []byte, pages, tag uint64) {
	le := binary.LittleEndian
	copy(h, headerMagic)
	le.PutUint32(h[8:], headerVersion)
	le.PutUint32(h[12:], headerSize)
	le.PutUint64(h[16:], pages)
	le.PutUint64(h[24:], tag)
	le.PutUint32(h[headerCRCAt:], crc32.Checksum(h[:headerCRCAt], castagnoli))
}

func checkHeader(h []byte, pages, tag uint64) error {
	le := binary.LittleEndian
	if got := string(h[:8]); got != headerMagic {
		return fmt.Errorf("%w: magic is %q, not %q", ErrDamaged, got, headerMagic)
	}
	if got, want := le.Uint32(h[headerCRCAt:]), crc32.Checksum(h[:headerCRCAt], castagnoli); got != want {
		return fmt.Errorf("%w: header checksum is %#08x, should be %#08x", ErrDamaged, got, want)
	}
	if got := le.Uint32(h[8:]); got != headerVersion {
		return fmt.Errorf("%w: version %d, this program reads %d", ErrDamaged, got, headerVersion)
	}
	if got := le.Uint32(h[12:]); got != headerSize {
		return fmt.Errorf("%w: header of %d bytes, not %d", ErrDamaged, got, headerSize)
	}
	if got := le.Uint64(h[16:]); got != pages {
		return fmt.Errorf("%w: it is of %d pages, the region has %d", ErrDamaged, got, pages)
	}
	if got := le.Uint64(h[24:]); got != tag {
		return fmt.Errorf("%w: its tag is %#x, not %#x: it belongs to another region or session", ErrDamaged, got, tag)
	}
	for i, b := range h[headerUsed:headerSize] {
		if b != 0 {
			return fmt.Errorf("%w: header byte %d is %#02x, not 0", ErrDamaged, headerUsed+i, b)
		}
	}
	return nil
}

func checkMemory(mem []byte, pages uint64) error {
	if pages == 0 || pages > MaxPages {
		return fmt.Errorf("residency of %d pages: a region has 1 to %d", pages, uint64(MaxPages))
	}
	if uint64(len(mem)) < Size(pages) {
		return fmt.Errorf("residency memory of %d bytes: %d pages need %d", len(mem), pages, Size(pages))
	}
	return nil
}
