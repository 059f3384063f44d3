// Package tcp carries pagewarp channels over TCP, TLS 1.3 and unix sockets.
//
// [Dial] and [Listener.Accept] give a [Conn] whose handshake is done. What it
// is for follows from its kind and role: a control channel has [Conn.Control],
// a page channel has [Conn.Fetcher] at the destination and [Conn.Responder] at
// the source.
//
// Pages are read by recvmsg straight into the memory that the sink reserved and
// written by sendmsg straight from the image; with TLS, or over a net.Conn that
// is not a socket, one copy is made. One goroutine reads a channel, writers take
// turns, and a third goroutine per channel watches over it: it sends PING, and
// closes the channel when the peer has gone silent.
package tcp
