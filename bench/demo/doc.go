// Package demo relocates a real virtual machine under web load between two
// hosts on one machine, and checks that every byte arrived.
//
// A [Pair] is two hosts, each a network namespace with a pagewarpd of its own,
// mutual TLS between them, and a third namespace for the client. [Run] is the
// demonstration: host A to host B live, under load; then back with the guest
// paused, so that the two memory files can be compared bit for bit; then the
// guest runs again and checks itself. The benchmarks of whole relocations use
// the same Pair.
package demo
