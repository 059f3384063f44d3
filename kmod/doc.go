// Package kmod is the client of the pagewarp character device: guest memory
// whose missing pages a daemon brings when they are touched. docs/UAPI.md
// describes the device; kmod/driver holds the kernel module.
//
// [Open] opens /dev/pagewarp-control, which makes and lists objects. [Control.Attach]
// makes the calling process the daemon of one: a [Daemon] has the fault ring, the
// resident and waiter bits, and the memory itself (the alias). A [Reader] waits
// for the faults of several daemons' ends.
//
// What the kernel shares is read once and checked: no page number that leaves
// this package is outside its object, whatever the ring held.
package kmod
