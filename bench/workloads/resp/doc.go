// Package resp is a client of Redis that keeps load on it and notes every
// answer, as bench/load does for HTTP: throughput in bins of 100 ms, latencies,
// the longest time without an answer, and the warm-up.
//
// It speaks what it needs of the Redis serialization protocol, version 2 (RESP;
// redis.io, "Redis serialization protocol specification"): GET and SET. Every
// value names its key and its version and carries a checksum, and each
// connection has keys of its own, so the client knows which version the server
// must have: a server whose memory went back in time is found out, as is one
// whose memory was damaged.
package resp
