package tcp

import (
	"crypto/tls"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// Tuning is what both ends of a connection can choose on their own. The zero
// value of each field means its default.
type Tuning struct {
	// Codec is how a source encodes precache answers; DemandCodec does the same
	// for demand answers, where compressing rarely pays. Default: none.
	Codec       transport.CodecMode
	DemandCodec transport.CodecMode
	// HandshakeTimeout bounds TLS and HELLO/WELCOME together. Default 5 s.
	HandshakeTimeout time.Duration
	// PingAfter is the idle time after which a PING is sent. Default 1 s, and at
	// most a third of DeadAfter, which the peer is taken to share.
	PingAfter time.Duration
	// DeadAfter is the silence after which a channel is closed. Default 5 s.
	DeadAfter time.Duration
	// BlockingIO makes page channels wait in the system call rather than in Go's
	// poller: the goroutine that reads, locked to a thread, is woken directly and
	// not by the thread that polls. Each such channel occupies an OS thread.
	BlockingIO bool
	// Spin is how long a blocking demand channel polls its socket before it
	// sleeps. It burns a core for that time after every answer. Default 0.
	Spin time.Duration
	// SocketBuffer sets SO_SNDBUF and SO_RCVBUF of demand channels, in bytes.
	// Default: the kernel's own choice.
	SocketBuffer int
}

func (t Tuning) withDefaults() Tuning {
	t.HandshakeTimeout = pick(t.HandshakeTimeout, 5*time.Second)
	t.DeadAfter = pick(t.DeadAfter, 5*time.Second)
	t.PingAfter = min(pick(t.PingAfter, time.Second), t.DeadAfter/3)
	return t
}

func pick(v, d time.Duration) time.Duration {
	if v <= 0 {
		return d
	}
	return v
}

// Options describes a channel to dial.
type Options struct {
	// TLS protects the channel; nil means plain, which is for trusted links.
	// Certificates are presented and demanded on both sides, TLS 1.3 only.
	TLS *tls.Config
	// Hello is what is offered. Kind, Role and Token must be set; versions,
	// MaxBody and MaxCount default to this package's. Features are as given.
	Hello transport.Hello
	Tuning
}

func (o *Options) hello() transport.Hello {
	h := o.Hello
	if h.Low == 0 && h.High == 0 {
		h.Low, h.High = transport.MinVersion, transport.MaxVersion
	}
	if h.MaxBody == 0 {
		h.MaxBody = transport.DefaultMaxBody
	}
	if h.MaxCount == 0 {
		h.MaxCount = transport.DefaultMaxCount
	}
	return h
}

// Admit decides on a HELLO at the listening side. peer is the subject of the
// client's certificate, "" without TLS. It returns what to agree on, or an error
// that becomes a REJECT. It runs in the connection's own goroutine, several at
// a time, and must not block.
type Admit func(h transport.Hello, peer string) (transport.Offer, *transport.RemoteError)

// ListenOptions describes a listener.
type ListenOptions struct {
	// TLS as in [Options].
	TLS *tls.Config
	// Admit decides on each HELLO. It must be set.
	Admit Admit
	// Failed is told of each connection that did not become a channel, by its own
	// goroutine; nil: nobody is. A REJECT of Admit's is in the error.
	Failed func(error)
	// HalfOpen bounds the connections whose handshake is not done or that have
	// not been accepted. At the bound, new connections wait in the kernel's
	// backlog, until one is done or, after a second, gives way. Default 64.
	HalfOpen int
	Tuning
}
