// Package transport is pagewarp's wire: channels between the page server on the
// source and the fault daemon on the destination.
//
// docs/PROTOCOL.md is its specification. The package declares what a channel
// does ([Fetcher] at the destination, [Responder] at the source, [Sink] where
// pages land) and holds what all implementations share: frames, the handshake,
// codecs. transport/tcp carries it over TCP and unix sockets; an implementation
// over RDMA READ satisfies the same interfaces, since a page is reserved before
// it is written and committed after. transporttest is the suite that each passes. The
// example of package faultd shows a whole session.
package transport
