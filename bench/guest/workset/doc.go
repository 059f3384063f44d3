// Package workset is the self-checking memory of the test guest: a mapping of
// 4 KiB pages, each of which carries its number, a generation and a checksum
// over a payload that follows from the two. A second table, outside of the
// pages, holds the generation that each page must have, so that an old copy of
// a page, which is whole in itself, is found out as well.
//
// Locks: a page's header and payload, and its entry in the table, are guarded
// by one of a fixed set of striped mutexes; the touch counter is atomic.
package workset
