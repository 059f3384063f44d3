// Package micro measures single stages of the engine in one process, each
// against a floor of the same pass, so that a change can be judged in seconds
// without a guest and without a network:
//
//   - [Queue]: the lock-free queue between the threads that read faults and the
//     one that asks for pages, against a Go channel of the same capacity;
//   - [Codec]: encoding and decoding of answers, against a copy and a CRC32C;
//   - [Planner]: a decision of precache, against the scan of the residency alone.
//
// Every figure is the median and the range over the passes. Nothing in a timed
// loop takes memory; what prepares or checks is outside the clock.
package micro
