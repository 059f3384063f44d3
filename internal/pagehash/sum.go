package pagehash

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// Size is the length of a hash, in bytes.
const Size = 16

// Sum is the hash of a page, as two words. The zero value is no hash.
type Sum struct{ Low, High uint64 }

// gone marks a page whose candidate was found not to hold what was offered. A
// page that really hashes to it is no candidate, as one that hashes to zero.
var gone = Sum{Low: 1}

func (s Sum) real() bool { return s != Sum{} && s != gone }

// Put writes the 16 bytes of s, as they stand on the wire, to b.
func (s Sum) Put(b []byte) {
	binary.LittleEndian.PutUint64(b, s.Low)
	binary.LittleEndian.PutUint64(b[8:], s.High)
}

// Parse reads what Put has written.
func Parse(b []byte) Sum {
	return Sum{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
}

// Key makes the hashes of one session unlike those of any other.
type Key [sha256.Size]byte

// SessionKey derives a session's key from its token, which both sides have and
// nobody else.
func SessionKey(token [32]byte) Key {
	return sha256.Sum256(append([]byte("pagewarp warm start\n"), token[:]...))
}

// Hasher hashes pages. It is for one goroutine at a time; it does not allocate.
type Hasher struct {
	h     hash.Hash
	block [sha256.BlockSize]byte // the key, filled up with zeroes
	out   [sha256.Size]byte
}

// NewHasher returns a hasher for the key of a session.
func NewHasher(key Key) *Hasher {
	h := &Hasher{h: sha256.New()}
	copy(h.block[:], key[:])
	return h
}

// Sum hashes one page.
func (h *Hasher) Sum(page []byte) Sum {
	h.h.Reset()
	h.h.Write(h.block[:]) // never fails
	h.h.Write(page)
	return Parse(h.h.Sum(h.out[:0]))
}
