// Package pagehash says which pages a destination has candidates for: a keyed
// hash of pages and a sparse table of them. docs/PROTOCOL.md, section 12, is
// its specification.
//
// The hash is SHA-256 behind a key of the session's, cut to 128 bits. Why so:
// a match that is wrong is a damaged guest, so it has to be a cryptographic hash;
// 128 bits suffice where nobody can search for a collision in advance, and
// nobody can without the key, which a guest never sees. A page of 4 KiB takes
// about 3 µs on one core with the SHA extensions (1.4 GB/s); BLAKE3 by its Go
// implementations was no faster on a page of that size (2.9 µs and 18 µs), as
// its four chunks do not fill the vectors (BenchmarkSum).
package pagehash
