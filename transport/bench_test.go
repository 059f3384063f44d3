package transport

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// benchPages is memory of which the second half of each page is zero.
func benchPages(n int) []byte {
	b := make([]byte, n)
	random := rand.NewChaCha8([32]byte{5})
	for at := 0; at < n; at += 4096 {
		random.Read(b[at : at+2048]) // never fails
	}
	return b
}

// The head of an answer, written and read, with its checksum.
func BenchmarkHeader(b *testing.B) {
	h := Header{Type: TypePages, Length: 4096, ID: 7, Region: 1, Count: 1, First: 99}
	var head [HeaderSize]byte
	b.ReportAllocs()
	for b.Loop() {
		h.Put(head[:])
		SetCRC(head[:], HeaderCRC(head[:]))
		got, err := ParseHeader(head[:], MaxBodyLimit)
		if err != nil || got.First != h.First {
			b.Fatal(got, err)
		}
	}
}

func BenchmarkCRC(b *testing.B) {
	for _, n := range []int{4 << 10, 256 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := benchPages(n)
			b.SetBytes(int64(n))
			var crc uint32
			for b.Loop() {
				crc = UpdateCRC(crc, p)
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	eachCodec(b, func(b *testing.B, c Codec, src []byte) {
		dst := make([]byte, MaxEncoded(len(src)))
		for b.Loop() {
			if _, err := Encode(c, dst, src); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	eachCodec(b, func(b *testing.B, c Codec, src []byte) {
		encoded, err := Encode(c, make([]byte, MaxEncoded(len(src))), src)
		if err != nil {
			b.Fatal(err)
		}
		dst := make([]byte, len(src))
		for b.Loop() {
			if err := Decode(c, dst, encoded); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func eachCodec(b *testing.B, f func(b *testing.B, c Codec, src []byte)) {
	for _, c := range []Codec{CodecS2, CodecZstd} {
		for _, n := range []int{4 << 10, 256 << 10} {
			b.Run(fmt.Sprintf("%v/%d", c, n), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.ReportAllocs()
				f(b, c, benchPages(n))
			})
		}
	}
}

// Choosing a codec, with the samples that takes.
func BenchmarkChoose(b *testing.B) {
	ch := NewChooser(ModeAuto, AllFeatures)
	ch.Link(125e6)
	src := benchPages(256 << 10)
	b.ReportAllocs()
	for b.Loop() {
		ch.Choose(src)
	}
}
