package transport

// MessageFetcher is a [Fetcher] over a connection whose answers may come by messages
// beside it as well, one PAGES frame each. Whoever receives those hands them over.
type MessageFetcher interface {
	Fetcher
	// Invite says that n more messages can be received: as many of the fetches that
	// follow may be answered by one. An answer over the connection gives its message
	// back by itself.
	Invite(n int)
	// Invited is how many messages can come that no fetch has asked for yet.
	Invited() int
	// Awaited is how many fetches are outstanding that may be answered by a message.
	Awaited() int
	// Deliver takes one message in, as Receive does an answer on the connection, which
	// may go on in another goroutine; the sink must bear that. msg is not kept. With an
	// error nothing of it is installed, and its fetch is outstanding still; one that
	// wraps ErrMalformed or ErrDecode is the message's, any other is fatal to the channel.
	Deliver(msg []byte, sink Sink, c *Completion) error
	// Recall says that no message comes any more, and fetches over the connection
	// what may have been answered by one, n fetches. They are not outstanding twice.
	Recall() (n int, err error)
}

// Carrier brings answers to the destination by messages beside a channel's connection.
// Its methods are called by one goroutine at a time.
type Carrier interface {
	// Room returns memory for the frame of one message, and the most bytes that the
	// message may have, which are fewer. It waits until there is room, for a bounded
	// time; false says that there is none, and the answer is to go by the connection.
	// After true comes Leave, when that memory is of no interest any more.
	Room() (mem []byte, most int, ok bool)
	// Send sends the first n bytes of Room's memory. false says that they did not go.
	Send(n int) bool
	// Rate is what the way of the messages carries, in bytes a second; 0: not known. It
	// comes between Room and Leave.
	Rate() float64
	Leave()
}
