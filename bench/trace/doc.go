// Package trace has the faults of real relocations, synthetic ones, and a
// discrete-event simulation that replays them through the planner of precache
// ([pagecache.Planner], the real one, with the real window and limiter), over a
// link and at a source that are models. So a policy is judged in seconds, at
// round trips and bandwidths that this machine does not have.
//
// # Traces
//
// A [Trace] is the order in which a machine touched its pages and how long it
// computed before each touch. It is recorded on demand only, with precache off
// ([faultd.Recorder]): then every first touch of a page is a fault, and what the
// guest would have done under another policy can be told from it. A trace that
// was recorded with precache on would lack the touches of all pages that came in
// time.
//
// # What is simulated
//
// The guest is a closed loop: each of its vCPUs takes the next touch, computes
// for the time before it, and stands still while the page is missing. Demand
// fetches and precache channels are as in faultd: gate, window, cap, batches,
// read-around. Each answer is cut into pieces that queue for the link, which
// serves all connections in the order of arrival, or by turns, as it does wherever
// segments are lost. A lost segment holds its connection up for a round trip, or for two where nothing follows it
// that would tell of the loss (RFC 8985, section 7), and a connection is never
// faster than a loss rate permits (Mathis, Semke, Mahdavi and Ott, "The
// Macroscopic Behavior of the TCP Congestion Avoidance Algorithm", CCR 27(3),
// 1997).
//
// CPUs are not simulated: source and destination take a set time for a page,
// but never compete for a core with the guest. On a machine whose cores are full
// the real run is slower; bench/trace/record tells by how much.
package trace
