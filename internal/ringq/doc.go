// Package ringq is a bounded, lock-free queue for several producers and several
// consumers, batch first on both ends.
//
// It follows Dmitry Vyukov's bounded MPMC queue: each slot carries a sequence
// number that says whose turn it is, so a producer and a consumer meet only at
// the slot they share. A batch claims a run of slots with one compare-and-swap.
//
// The queue never waits. What happens at the bound is the caller's policy: Push
// returns how many values it took.
package ringq
