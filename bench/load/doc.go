// Package load is an HTTP client that keeps load on a VM and notes every
// answer, so that what a relocation did to the VM's users can be told
// afterwards: the longest gap between answers (the client's blackout), the
// throughput in bins of 100 ms, the latencies, and how long the warm-up took.
//
// A closed loop keeps a number of connections busy: each sends its next request
// when the last one is answered, so it slows down with the VM. An open loop
// sends at a fixed rate and counts each latency from the time at which the
// request was due, so that a stall shows in every request that it delayed
// (coordinated omission; Tene, "How NOT to measure latency", 2013).
//
// Every answer's checksum is verified. After an error a connection waits for
// Backoff before it goes on, so a cut network brings no storm of retries.
package load
