// Package engine moves the same guest, under the same load and over the same
// link, with pagewarp and with each of QEMU's own ways to migrate, in
// alternation, and tells what each did to the guest and what it cost.
//
// An [Engine] is an adapter behind a small interface. Each gets its best
// settings, which the result states; one that cannot run on this machine is
// listed with the reason, and one that fails is a row that says so. Every
// relocation has a pair of hosts of its own, so that none inherits the state, or
// the ruins, of the one before.
//
// What is measured, and against what: throughput is the guest's own count of its
// operations, or for loads with a client the client's count of right answers, in
// bins of 100 ms. What it was before is the mean of the three seconds before the
// command, not before the switch-over: a precopy slows its guest down long before
// that.
package engine
