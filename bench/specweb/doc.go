// Package specweb puts a SPECweb-style load on a web server and notes what its
// visitors saw: requests per second, pages that were good, tolerable or failed
// per 100 ms, and latencies per type of page. bench/specweb/model has the
// workloads, bench/specweb/server what answers them.
//
// Closed loop: a number of simultaneous sessions, each of which requests a page,
// fetches its images over two connections, thinks, and goes on along the chain
// until it ends or is left to time out; then a new session takes its place. It
// slows down with the server, so a stall costs it few requests. A page that is under
// way when the load ends counts as failed if its time was over. Open loop: pages
// are due at a fixed rate, whether or not earlier ones have been answered, each
// session takes the next that is due, without thinking, and a page's time counts
// from when it was due: a stalled server cannot hide its stall.
//
// Every answer is verified: its checksum, and the page, user and request count
// that the server must have in its memory for the session.
//
// Scale multiplies think times and data sizes, not the limits on page times; it
// is in every report. Results are SPECweb-style and no SPEC metric.
package specweb
