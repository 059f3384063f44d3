package transport

import (
	"bytes"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

func FuzzParseHeader(f *testing.F) {
	f.Add(AppendFrame(nil, Header{Type: TypeFetch, ID: 1, Region: 2, Count: 3, First: 4}, nil))
	f.Add(AppendFrame(nil, Header{Type: TypePages, Flags: 2, Aux: 3, ID: 1, Region: 2, Count: 3, First: 4, Ahead: 5}, []byte("body")))
	f.Add(AppendFrame(nil, Header{Type: TypeClose, Aux: 10}, []byte("bye")))
	f.Add(AppendFrame(nil, Header{Type: TypeFetch, Flags: 1, ID: 1, Count: 1}, nil))
	f.Add(AppendFrame(nil, Header{Type: TypeIndex, Region: 1, Count: 1, First: 9}, make([]byte, 16)))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b, 1<<20)
		if err != nil {
			return
		}
		if h.Length > 1<<20 {
			t.Fatalf("body of %d bytes accepted", h.Length)
		}
		var out [HeaderSize]byte
		h.Put(out[:])
		if !bytes.Equal(out[:], b[:HeaderSize]) {
			t.Fatalf("%x was read as %+v, which is written as %x", b[:HeaderSize], h, out)
		}
	})
}

func FuzzParseExtents(f *testing.F) {
	f.Add(AppendExtents(nil, []Extent{{Count: 3}, {Count: 1, Kind: Fill, Word: 7}}), uint32(4))
	f.Add(AppendExtents(nil, []Extent{{Count: 2, Kind: Same}, {Count: 1}}), uint32(3))
	f.Add(AppendExtents(nil, []Extent{{Count: 2}, {Count: 3, Kind: Repeat, Word: 1}, {Count: 1, Kind: Fill}}), uint32(6))
	f.Add(AppendExtents(nil, []Extent{{Count: 1}, {Count: 1 << 31, Kind: Repeat}}), uint32(2))
	f.Add(AppendExtents(nil, []Extent{{Count: 1}, {Count: 1, Kind: Repeat, Word: 1}}), uint32(2))
	f.Add([]byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, count uint32) {
		es, data, err := ParseExtents(nil, b, count)
		if err != nil {
			return
		}
		var sum, d uint64
		for _, e := range es {
			sum += uint64(e.Count)
			if e.Kind == Data {
				d += uint64(e.Count)
			}
			if e.Kind == Repeat && e.Word >= d {
				t.Fatalf("a repeat of data page %d, of %d before it, accepted", e.Word, d)
			}
		}
		if sum != uint64(count) || d != uint64(data) {
			t.Fatalf("%d pages, %d of data, accepted for %d, %d", sum, d, count, data)
		}
		if !bytes.Equal(AppendExtents(nil, es), b) {
			t.Fatalf("%x does not survive", b)
		}
	})
}

func FuzzParseHello(f *testing.F) {
	h := Hello{Low: 1, High: 1, Features: AllFeatures, Kind: Demand, Role: Source, MaxBody: 1, MaxCount: 1, Token: Token{1}, Epoch: 9}
	b := make([]byte, HelloSize)
	h.Put(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHello(b)
		if err != nil {
			return
		}
		out := make([]byte, HelloSize)
		h.Put(out)
		if !bytes.Equal(out, b) {
			t.Fatalf("%x is written as %x", b, out)
		}
		w, reject := Negotiate(&h, Offer{Role: h.Role.Peer(), Features: AllFeatures})
		if reject == nil {
			if err := CheckWelcome(&h, &w); err != nil {
				t.Fatalf("our own WELCOME is refused: %v", err)
			}
		}
	})
}

// guard surrounds a destination so that a write outside it shows.
func guard(n int) (whole, dst []byte) {
	whole = bytes.Repeat([]byte{0x5a}, n+128)
	return whole, whole[64 : 64+n]
}

func FuzzDecode(f *testing.F) {
	page := bytes.Repeat([]byte("pagewarp "), 500)[:4096]
	f.Add(uint8(CodecS2), s2.Encode(nil, page), uint16(4096))
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		f.Fatal(err)
	}
	defer e.Close()
	f.Add(uint8(CodecZstd), e.EncodeAll(page, nil), uint16(4096))
	f.Add(uint8(CodecNone), page, uint16(4096))
	f.Fuzz(func(t *testing.T, c uint8, src []byte, n uint16) {
		whole, dst := guard(int(n))
		Decode(Codec(c), dst, src)
		for i, b := range whole {
			if (i < 64 || i >= 64+int(n)) && b != 0x5a {
				t.Fatalf("byte %d outside the %d of dst was written", i-64, n)
			}
		}
	})
}
