// Package model is what a SPECweb-style load consists of, apart from doing it:
// the pages of the three workloads and the Markov chains that lead from one to
// the next, think times, page limits, padding, images, and the file set of
// Support. Client and server share it, so the guest's init imports it.
//
// The model follows the published design of SPECweb2005 (simultaneous sessions,
// a chain of dynamic pages, embedded images over two connections, truncated
// exponential think times, a back-end simulator). Results made with it are
// SPECweb-style; they are no SPEC metric and not to be compared with one.
//
// A chain is written as flows, in visits per 10,000 requests, from page to
// page. What flows into a page is what flows out of it, so the mix is the
// chain's stationary distribution by construction; the tests compute it from
// the transition probabilities anew. The mix is the published one; how a visitor
// gets from page to page, the numbers of images and their sizes are ours.
//
// All randomness comes from seeded generators that the caller passes in.
package model
