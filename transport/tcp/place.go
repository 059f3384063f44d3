package tcp

import (
	"encoding/binary"

	"github.com/pagewarp/pagewarp/transport"
)

// dropBuffer takes the bytes of unwanted pages, by one system call's worth.
const dropBuffer = maxReadCall

// place decides where the bytes of each page go: what was reserved for it, or
// nowhere. A page that is not wanted is kept aside if others repeat it.
func (f *assembly) place(a *answer, ps int) error {
	f.land = f.dst
	if a.again == 0 {
		return nil
	}
	f.own = append(f.own[:0], f.dst...)
	f.land, f.data = f.own, f.data[:0]
	at := 0
	for i := range f.ext {
		end := at + int(f.ext[i].Count)
		if f.ext[i].Kind == transport.Data {
			f.data = append(f.data, f.land[at:end]...)
		}
		at = end
	}
	lost := 0
	for i := range f.ext {
		if f.lost(&f.ext[i]) {
			lost++
		}
	}
	if lost == 0 {
		return nil
	}
	spare, err := f.spare.get(lost * ps)
	if err != nil {
		return err
	}
	for i := range f.ext {
		if e := &f.ext[i]; f.lost(e) {
			f.data[e.Word], spare = spare[:ps:ps], spare[ps:]
		}
	}
	at, n := 0, 0 // and where they land
	for i := range f.ext {
		end := at + int(f.ext[i].Count)
		if f.ext[i].Kind == transport.Data {
			n += copy(f.land[at:end], f.data[n:])
		}
		at = end
	}
	return nil
}

// lost says that e repeats a page that has no place to land.
func (f *assembly) lost(e *transport.Extent) bool {
	return e.Kind == transport.Repeat && f.data[e.Word] == nil
}

// readPages reads raw data pages into place.
func (f *assembly) readPages(ps int, crc uint32) (uint32, error) {
	vec, total, dropped := f.vec[:0], 0, 0
	flush := func() (err error) {
		if total > 0 {
			crc, err = f.in.readVec(vec, crc)
			f.progress.Add(1)
			vec, total, dropped = f.vec[:0], 0, 0
		}
		return err
	}
	i := 0
	for k := range f.ext {
		e := &f.ext[k]
		end := i + int(e.Count)
		if e.Kind != transport.Data {
			i = end
			continue
		}
		for ; i < end; i++ {
			for off := 0; off < ps; {
				if total == maxReadCall {
					if err := flush(); err != nil {
						return crc, err
					}
				}
				n := min(ps-off, maxReadCall-total)
				var p []byte
				if m := f.land[i]; m != nil {
					p = m[off : off+n]
				} else {
					d, err := f.drop.get(dropBuffer)
					if err != nil {
						return crc, err
					}
					p = d[dropped : dropped+n]
					dropped += n
				}
				if l := len(vec) - 1; l >= 0 && adjacent(vec[l], p) {
					vec[l] = join(vec[l], len(vec[l])+n)
				} else if len(vec) < maxIovecs {
					vec = append(vec, p)
				} else {
					if err := flush(); err != nil {
						return crc, err
					}
					continue
				}
				total += n
				off += n
			}
		}
	}
	return crc, flush()
}

func (f *assembly) readEncoded(n int, crc uint32) ([]byte, uint32, error) {
	if body := f.in.here(n); body != nil {
		return body, transport.UpdateCRC(crc, body), nil
	}
	body, err := f.encoded.get(n)
	if err != nil {
		return nil, crc, err
	}
	for off := 0; off < n; off += maxReadCall {
		vec := append(f.vec[:0], body[off:min(n, off+maxReadCall)])
		if crc, err = f.in.readVec(vec, crc); err != nil {
			return nil, crc, err
		}
		f.progress.Add(1)
	}
	return body, crc, nil
}

// decode decodes body, which holds size bytes of data pages, into place.
func (f *assembly) decode(codec transport.Codec, body []byte, size, ps int) error {
	whole := f.contiguous(ps)
	if whole != nil {
		return transport.Decode(codec, whole, body)
	}
	plain, err := f.plain.get(size)
	if err != nil {
		return err
	}
	if err := transport.Decode(codec, plain, body); err != nil {
		return err
	}
	i := 0
	for k := range f.ext {
		e := &f.ext[k]
		end := i + int(e.Count)
		if e.Kind == transport.Data {
			for _, m := range f.land[i:end] {
				copy(m, plain[:ps])
				plain = plain[ps:]
			}
		}
		i = end
	}
	return nil
}

// contiguous returns the memory of all data pages, if all are wanted and follow
// each other there.
func (f *assembly) contiguous(ps int) []byte {
	var first, last []byte
	n, i := 0, 0
	for k := range f.ext {
		e := &f.ext[k]
		end := i + int(e.Count)
		if e.Kind == transport.Data {
			for _, m := range f.land[i:end] {
				if m == nil || last != nil && !adjacent(last, m) {
					return nil
				}
				if first == nil {
					first = m
				}
				last = m
				n += ps
			}
		}
		i = end
	}
	return join(first, n)
}

// fill writes fill words, zero pages that were reserved, and repeats.
func (f *assembly) fill(ps int) {
	i := 0
	for k := range f.ext {
		e := &f.ext[k]
		end := i + int(e.Count)
		switch e.Kind {
		case transport.Fill:
			for _, m := range f.dst[i:end] {
				fillPage(m, e.Word)
			}
		case transport.Repeat:
			for _, m := range f.dst[i:end] {
				copy(m, f.data[e.Word])
			}
		}
		i = end
	}
}

// fillPage repeats word over p, which may be nil.
func fillPage(p []byte, word uint64) {
	if word == 0 {
		clear(p)
		return
	}
	if len(p) < 8 {
		return
	}
	binary.LittleEndian.PutUint64(p, word)
	for n := 8; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
}
