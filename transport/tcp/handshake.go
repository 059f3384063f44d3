package tcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

// Dial connects to addr ("host:port" or "unix:/path") and shakes hands. ctx
// bounds connecting and the handshake. A REJECT of the peer comes back as a
// *transport.RemoteError.
func Dial(ctx context.Context, addr string, o Options) (*Conn, error) {
	nc, err := dialNet(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	if o.TLS != nil && o.TLS.ServerName == "" {
		if host, _, err := net.SplitHostPort(addr); err == nil {
			o.TLS = o.TLS.Clone()
			o.TLS.ServerName = host
		}
	}
	c, err := Client(ctx, nc, o)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return c, nil
}

// Client shakes hands as the dialling side on an open connection, which it
// owns from now on: a TCP or unix socket, or any net.Conn. With TLS,
// o.TLS.ServerName must be set.
func Client(ctx context.Context, nc net.Conn, o Options) (*Conn, error) {
	o.Tuning = o.Tuning.withDefaults()
	hello := o.hello()
	var welcome transport.Hello
	w, peer, err := shake(ctx, nc, o.TLS, true, o.Tuning, func(w *wire) error {
		body := make([]byte, transport.HelloSize)
		hello.Put(body)
		if err := w.write(transport.AppendFrame(nil, transport.Header{Type: transport.TypeHello}, body)); err != nil {
			return err
		}
		return readWelcome(w, &hello, &welcome)
	})
	if err != nil {
		return nil, err
	}
	return newConn(w, hello.Role, welcome, peer, o.Tuning)
}

func readWelcome(w *wire, hello, welcome *transport.Hello) error {
	h, crc, err := w.frame(0)
	if err != nil {
		return unexpected(err)
	}
	switch h.Type {
	case transport.TypeReject, transport.TypeWelcome:
	default:
		return fmt.Errorf("%w: %v in answer to HELLO", transport.ErrMalformed, h.Type)
	}
	body, err := w.small(&h, crc)
	if err != nil {
		return err
	}
	if h.Type == transport.TypeReject {
		return &transport.RemoteError{Code: transport.Code(h.Aux), Text: string(body)}
	}
	if *welcome, err = transport.ParseHello(body); err != nil {
		return err
	}
	return transport.CheckWelcome(hello, welcome)
}

// Server shakes hands as the listening side on an open connection, which it
// owns from now on.
func Server(ctx context.Context, nc net.Conn, o ListenOptions) (*Conn, error) {
	if o.Admit == nil {
		nc.Close()
		return nil, errors.New("ListenOptions.Admit is not set")
	}
	o.Tuning = o.Tuning.withDefaults()
	var welcome transport.Hello
	var peer string
	w, peer, err := shake(ctx, nc, o.TLS, false, o.Tuning, func(w *wire) (err error) {
		welcome, err = welcomePeer(w, identity(w), o.Admit)
		return err
	})
	if err != nil {
		return nil, err
	}
	return newConn(w, welcome.Role, welcome, peer, o.Tuning)
}

func welcomePeer(w *wire, peer string, admit Admit) (transport.Hello, error) {
	hello, err := readHello(w)
	var reject *transport.RemoteError
	var offer transport.Offer
	var welcome transport.Hello
	if err != nil {
		if !errors.Is(err, transport.ErrMalformed) {
			return welcome, err
		}
		reject = &transport.RemoteError{Code: transport.CodeMalformed, Text: err.Error()}
	} else if offer, reject = admit(hello, peer); reject == nil {
		welcome, reject = transport.Negotiate(&hello, offer)
	}
	if reject != nil {
		w.write(textFrame(transport.Header{Type: transport.TypeReject}, reject.Code, reject.Text))
		if err == nil {
			err = &rejectedError{hello, reject}
		}
		return welcome, err
	}
	body := make([]byte, transport.HelloSize)
	welcome.Put(body)
	return welcome, w.write(transport.AppendFrame(nil, transport.Header{Type: transport.TypeWelcome}, body))
}

// rejectedError is a HELLO that this side has refused.
type rejectedError struct {
	hello  transport.Hello
	reject *transport.RemoteError
}

func (e *rejectedError) Error() string {
	return fmt.Sprintf("rejected a %v channel of session %v (%v): %s", e.hello.Kind, e.hello.Token, e.reject.Code, e.reject.Text)
}

// Unwrap is what the peer was told.
func (e *rejectedError) Unwrap() error { return e.reject }

func readHello(w *wire) (transport.Hello, error) {
	h, crc, err := w.frame(0)
	if err != nil {
		return transport.Hello{}, unexpected(err)
	}
	if h.Type != transport.TypeHello {
		return transport.Hello{}, fmt.Errorf("%w: first frame is %v, want HELLO", transport.ErrMalformed, h.Type)
	}
	body, err := w.small(&h, crc)
	if err != nil {
		return transport.Hello{}, err
	}
	return transport.ParseHello(body)
}

// shake runs TLS, if there is any, and then greet, both bounded by ctx and by
// HandshakeTimeout. It closes nc on failure.
func shake(ctx context.Context, nc net.Conn, tc *tls.Config, client bool, tune Tuning, greet func(*wire) error) (*wire, string, error) {
	caller, began := ctx, time.Now()
	ctx, cancel := context.WithTimeout(ctx, tune.HandshakeTimeout)
	defer cancel()
	w, err := newWire(nc)
	if err != nil {
		nc.Close()
		return nil, "", err
	}
	// The deadline alone would not see a cancelled context.
	end, _ := ctx.Deadline()
	nc.SetDeadline(end)
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	err = secure(ctx, w, tc, client)
	stage := "TLS handshake"
	if err == nil {
		stage = "handshake"
		// In TLS 1.3 a client learns only now that its certificate was refused.
		if err = greet(w); err != nil && tc != nil {
			err = explainTLS(err, tc, client)
		}
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = nc.SetDeadline(time.Time{})
	}
	if err != nil {
		remote := nc.RemoteAddr()
		w.base.Close()
		late := errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
		cause := context.Cause(caller)
		switch {
		case late && cause != nil && !errors.Is(cause, context.DeadlineExceeded):
			err = fmt.Errorf("%s with %v: %w", stage, remote, cause)
		case late:
			err = fmt.Errorf("%s with %v: not finished within %v: %w", stage, remote, end.Sub(began).Round(time.Millisecond), os.ErrDeadlineExceeded)
		case errors.Is(err, io.ErrUnexpectedEOF):
			err = fmt.Errorf("%s with %v: peer hung up: %w", stage, remote, err)
		default:
			err = fmt.Errorf("%s with %v: %w", stage, remote, err)
		}
		return nil, "", err
	}
	return w, identity(w), nil
}
