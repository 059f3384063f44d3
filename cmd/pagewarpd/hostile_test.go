package main

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/vmtest"
	"github.com/pagewarp/pagewarp/relocate"
	"github.com/pagewarp/pagewarp/transport"
)

// Whoever can reach the port can say anything. Here are peers of another
// version, of another kind, damaged and hostile ones, before the real daemons.

// talk is a connection on which the test says what it likes.
type talk struct {
	t *testing.T
	net.Conn
}

func newTalk(t *testing.T, c net.Conn) *talk {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &talk{t, c}
}

func (c *talk) say(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// hear reads one frame; an error is the end of the connection.
func (c *talk) hear() (h transport.Header, body []byte, err error) {
	b := make([]byte, transport.HeaderSize)
	if _, err := io.ReadFull(c, b); err != nil {
		return h, nil, err
	}
	if h, err = transport.ParseHeader(b, transport.MaxBodyLimit); err != nil {
		c.t.Fatal(err)
	}
	body = make([]byte, h.Length)
	_, err = io.ReadFull(c, body)
	return h, body, err
}

// hangsUp reads to the end, which must come from the daemon.
func (c *talk) hangsUp() {
	c.t.Helper()
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Error("the daemon does not hang up")
	}
}

// greeting is a good HELLO of a source, changed.
func greeting(change func(*transport.Hello)) []byte {
	h := transport.Hello{
		Low: 1, High: 1, Features: transport.AllFeatures, Kind: transport.Control, Role: transport.Source,
		MaxBody: transport.DefaultMaxBody, MaxCount: transport.DefaultMaxCount, Token: transport.NewToken(), Epoch: 1,
	}
	change(&h)
	body := make([]byte, transport.HelloSize)
	h.Put(body)
	return transport.AppendFrame(nil, transport.Header{Type: transport.TypeHello}, body)
}

// oversized is the head of a frame whose body is longer than is allowed.
func oversized(kind transport.Type, length uint32) []byte {
	b := make([]byte, transport.HeaderSize)
	h := transport.Header{Type: kind, Length: length}
	h.Put(b)
	transport.SetCRC(b, transport.HeaderCRC(b))
	return b
}

func same(*transport.Hello) {}

func damaged(b []byte) []byte {
	b[len(b)-1] ^= 1
	return b
}

func TestHostileSource(t *testing.T) {
	t.Parallel()
	m := newMatrix(t, "", "")
	dial := func(t *testing.T) *talk {
		c, err := net.Dial("tcp", m.b.addr)
		if err != nil {
			t.Fatal(err)
		}
		return newTalk(t, c)
	}
	for _, tt := range []struct {
		name, says string
		code       transport.Code
		first      []byte
	}{
		{"version", "upgrade the older side", transport.CodeVersion, greeting(func(h *transport.Hello) { h.Low, h.High = 7, 9 })},
		{"feature", "features required", transport.CodeFeature, greeting(func(h *transport.Hello) { h.Required = 1 << 31 })},
		{"role", "dialled by sources only", transport.CodeMalformed, greeting(func(h *transport.Hello) { h.Role = transport.Destination })},
		{"unknown session", "no such session", transport.CodeToken, greeting(func(h *transport.Hello) { h.Kind = transport.Demand })},
		{"resumes what never was", "journal is gone", transport.CodeToken, greeting(func(h *transport.Hello) { h.Epoch = 2 })},
		{"damaged", "damaged on the way", transport.CodeMalformed, damaged(greeting(same))},
		{"oversized", "limit 112", transport.CodeMalformed, oversized(transport.TypeHello, 1<<32-1)},
		{"of another kind", "unknown frame type", transport.CodeMalformed, []byte("GET / HTTP/1.1\r\nHost: pagewarp\r\nAccept: */*\r\n\r\n")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t)
			c.say(tt.first)
			h, text, err := c.hear()
			if err != nil || h.Type != transport.TypeReject || transport.Code(h.Aux) != tt.code || !strings.Contains(string(text), tt.says) {
				t.Errorf("%v %v %q, %v; want REJECT %v %q", h.Type, transport.Code(h.Aux), text, err, tt.code, tt.says)
			}
			c.hangsUp()
		})
	}
	for _, tt := range []struct {
		name string
		then []byte
	}{
		{"oversized message", oversized(transport.TypeMessage, transport.MaxMessage+1)},
		{"oversized state", oversized(transport.TypeState, transport.MaxState+1)},
		{"damaged message", damaged(transport.AppendFrame(nil, transport.Header{Type: transport.TypeMessage, Aux: 16}, []byte(`{"vm":"web1"}`)))},
		{"pages on a control channel", oversized(transport.TypePages, 0)},
		{"an offer that is no JSON", transport.AppendFrame(nil, transport.Header{Type: transport.TypeMessage, Aux: 16}, []byte("]["))},
		{"an offer of nothing", transport.AppendFrame(nil, transport.Header{Type: transport.TypeMessage, Aux: 16}, []byte(`{"vm":"web1"}`))},
		{"an offer of a path", transport.AppendFrame(nil, transport.Header{Type: transport.TypeMessage, Aux: 16}, []byte(`{"vm":"../../etc/x"}`))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t)
			c.say(greeting(same))
			if h, text, err := c.hear(); err != nil || h.Type != transport.TypeWelcome {
				t.Fatalf("%v %q, %v; want WELCOME", h.Type, text, err)
			}
			c.say(tt.then)
			c.hangsUp()
		})
	}
	// All of that is over, nothing of it is left, and the daemon is well.
	vmtest.Wait(t, "the hostile sessions to end", func() bool {
		r, err := m.b.client.Status(t.Context(), "")
		return err == nil && len(r.Relocations) > 0 &&
			!slices.ContainsFunc(r.Relocations, func(s relocate.Status) bool { return s.Phase != relocate.PhaseRolledBack })
	})
	vmtest.NoTrace(t, m.b.dir, "*.json", "*.sock", "*.lock", "lock")
	m.relocate(relocate.Options{})
	m.arrived()
}

func TestHostileDestination(t *testing.T) {
	t.Parallel()
	welcome := func(change func(*transport.Hello)) func(*talk) {
		return func(c *talk) {
			h, body, err := c.hear()
			if err != nil || h.Type != transport.TypeHello {
				c.t.Errorf("%v, %v; want HELLO", h.Type, err)
				return
			}
			w, err := transport.ParseHello(body)
			if err != nil {
				c.t.Error(err)
				return
			}
			w.Role, w.Required = transport.Destination, 0
			change(&w)
			b := make([]byte, transport.HelloSize)
			w.Put(b)
			c.say(transport.AppendFrame(nil, transport.Header{Type: transport.TypeWelcome}, b))
		}
	}
	then := func(b []byte) func(*talk) {
		return func(c *talk) {
			welcome(same)(c)
			c.say(b)
		}
	}
	for _, tt := range []struct {
		name, says string
		play       func(*talk)
	}{
		{"never answers", "not finished within", func(*talk) {}},
		{"falls silent", "nothing came from", welcome(same)},
		{"version", "WELCOME has version 7", welcome(func(h *transport.Hello) { h.Low, h.High = 7, 7 })},
		{"feature", "WELCOME has features", welcome(func(h *transport.Hello) { h.Features |= 1 << 31 })},
		{"of another kind", "unknown frame type", func(c *talk) { c.say([]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")) }},
		{"oversized", "limit 112", func(c *talk) { c.say(oversized(transport.TypeWelcome, 1<<31)) }},
		{"oversized message", "limit 1048576", then(oversized(transport.TypeMessage, transport.MaxMessage+1))},
		{"damaged message", "damaged on the way", then(damaged(transport.AppendFrame(nil, transport.Header{Type: transport.TypeMessage, Aux: 17}, []byte("{}"))))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newMatrix(t, "", "")
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			m.to = l.Addr().String()
			c := pagewarp(t, m.a, "relocate", "web1", "--to", m.to)
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			tt.play(newTalk(t, conn))
			c.exits(3, tt.says)
			m.stayed()
		})
	}
}
