package transport

import (
	"encoding/binary"
	"fmt"
)

// AppendExtents appends the encoded extent table of es to b.
func AppendExtents(b []byte, es []Extent) []byte {
	for i := range es {
		var e [ExtentSize]byte
		binary.LittleEndian.PutUint32(e[0:], es[i].Count)
		e[4] = byte(es[i].Kind)
		binary.LittleEndian.PutUint64(e[8:], es[i].Word)
		b = append(b, e[:]...)
	}
	return b
}

// ParseExtents decodes a whole extent table into dst (its old content is
// dropped, its memory reused) and checks that the extents cover count pages
// exactly. It also returns how many pages are data.
func ParseExtents(dst []Extent, table []byte, count uint32) (es []Extent, data uint32, err error) {
	if len(table)%ExtentSize != 0 {
		return nil, 0, fmt.Errorf("%w: extent table of %d bytes is not a multiple of %d", ErrMalformed, len(table), ExtentSize)
	}
	es = dst[:0]
	left := count
	for i := 0; len(table) > 0; i++ {
		e := Extent{
			Count: binary.LittleEndian.Uint32(table),
			Kind:  ExtentKind(table[4]),
			Word:  binary.LittleEndian.Uint64(table[8:]),
		}
		switch {
		case e.Count == 0:
			return nil, 0, fmt.Errorf("%w: extent %d has no pages", ErrMalformed, i)
		case e.Count > left:
			return nil, 0, fmt.Errorf("%w: extents reach past the %d pages of the range", ErrMalformed, count)
		case e.Kind > Moved:
			return nil, 0, fmt.Errorf("%w: extent %d has unknown kind %d", ErrMalformed, i, e.Kind)
		case table[5]|table[6]|table[7] != 0:
			return nil, 0, fmt.Errorf("%w: extent %d has non-zero reserved bytes", ErrMalformed, i)
		case e.Kind == Repeat && e.Word >= uint64(data):
			return nil, 0, fmt.Errorf("%w: extent %d repeats data page %d, of %d before it", ErrMalformed, i, e.Word, data)
		case (e.Kind == Data || e.Kind == Same) && e.Word != 0:
			return nil, 0, fmt.Errorf("%w: extent %d of kind %d has a fill word", ErrMalformed, i, e.Kind)
		}
		if e.Kind == Data {
			data += e.Count
		}
		left -= e.Count
		es = append(es, e)
		table = table[ExtentSize:]
	}
	if left != 0 {
		return nil, 0, fmt.Errorf("%w: extents leave %d of %d pages uncovered", ErrMalformed, left, count)
	}
	return es, data, nil
}
