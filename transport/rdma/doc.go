// Package rdma brings pages by RDMA READ (PROTOCOL section 13): an [Export] at the
// source registers the frozen image for remote reading, a [Fetcher] at the
// destination reads from it, with no work of the source's CPU per page. Both ride
// on a page channel of transport/tcp, over which they are set up and which goes on
// by FETCH where a READ cannot, or not yet, or not any more.
//
// The verbs are a thin C layer (verbs_shim.c) behind the build tag rdma, which
// `make build` sets for a second daemon where libibverbs' headers are installed.
// Without the tag or without cgo the package builds, lists devices and says
// [ErrNotBuilt] where one would be opened.
//
// A [BatchFetcher] has precache come by SEND instead: PAGES frames, which the source's
// page server makes and may compress, each one message into a buffer that the
// destination posted for it. It is for links that are slower than the CPUs.
//
// # Landing
//
// READs land in the guest's memory itself where that is registered ([Landing]) and the
// sink lends the page ([transport.LendSink]): it is claimed when the READ is posted, and
// in place when it completes. What a precache channel has lent at a time is bounded, since
// whoever wants such a page waits for it. If the READ fails, the queue pair is destroyed
// before the page is given back, to be emptied.
//
// All others land in a staging buffer of the channel's own, and a page is copied from
// there (or, where the sink can, written by a system call: [transport.TakeSink])
// once its READ has completed, under a claim taken then. So a READ that
// fails half-way has touched nothing of the guest's; a demand fetch overtakes a
// precache READ of the same page; and nothing of the guest's is pinned. Either way zero
// pages are noticed and stay, or become, holes.
//
// # Locks
//
// Fetcher.recvMu (Receive, Close) before Fetcher.pollMu (whoever lands pages) before
// Fetcher.mu; the lock of the late sink orders calls of the sink, under pollMu or
// none. Nothing is sent to the peer under Fetcher.mu, and no queue pair is connected, which
// can take a second; sleeper.ringMu is taken last of all. At the source Attachment.mu comes
// before sender.mu, under which OFF may be sent.
package rdma
