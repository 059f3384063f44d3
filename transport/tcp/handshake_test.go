package tcp

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/transport"
)

var known = transport.Token{1, 2, 3}

// admitKnown serves one token, as a source.
func admitKnown(h transport.Hello, _ string) (transport.Offer, *transport.RemoteError) {
	if h.Token != known {
		return transport.Offer{}, &transport.RemoteError{Code: transport.CodeToken, Text: "session " + h.Token.String() + " is not known here"}
	}
	return transport.Offer{Role: transport.Source, Features: transport.FeatureFill}, nil
}

func listen(t *testing.T, addr string, o ListenOptions) *Listener {
	t.Helper()
	if o.Admit == nil {
		o.Admit = admitKnown
	}
	l, err := Listen(addr, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func demandHello() transport.Hello {
	return transport.Hello{Kind: transport.Demand, Role: transport.Destination, Token: known, Epoch: 1}
}

// accept takes one channel in the background and closes it when the test ends.
func accept(t *testing.T, l *Listener) <-chan *Conn {
	ch := make(chan *Conn, 1)
	ctx := t.Context()
	go func() {
		c, err := l.Accept(ctx)
		if err != nil {
			close(ch)
			return
		}
		ch <- c
	}()
	return ch
}

func TestFacts(t *testing.T) {
	h := tlsHarness(t, Tuning{})
	l := listen(t, "127.0.0.1:0", ListenOptions{TLS: h.server, Admit: func(hello transport.Hello, peer string) (transport.Offer, *transport.RemoteError) {
		if peer != "destination" {
			return transport.Offer{}, &transport.RemoteError{Code: transport.CodeIdentity, Text: peer}
		}
		return admitKnown(hello, peer)
	}})
	got := accept(t, l)
	hello := demandHello()
	hello.Index, hello.Epoch, hello.Features, hello.MaxCount = 3, 9, transport.AllFeatures, 77
	c, err := Dial(t.Context(), l.Addr().String(), Options{TLS: h.client, Hello: hello})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := <-got
	defer s.Close()
	for _, x := range []*Conn{c, s} {
		if x.Kind() != transport.Demand || x.Index() != 3 || x.Epoch() != 9 || x.Token() != known || x.Version() != 1 ||
			x.Features() != transport.FeatureFill || x.MaxCount() != 77 || x.MaxBody() != transport.DefaultMaxBody || x.MaxPages(2<<20) != 2 {
			t.Errorf("wrong facts: %+v", x.welcome)
		}
	}
	if c.Peer() != "source" || s.Peer() != "destination" || c.Role() != transport.Destination || s.Role() != transport.Source {
		t.Errorf("peers %q and %q, roles %v and %v", c.Peer(), s.Peer(), c.Role(), s.Role())
	}
	if _, err := c.Responder(); err == nil {
		t.Error("a destination has a responder")
	}
	if _, err := s.Control(); err == nil {
		t.Error("a demand channel has a control")
	}
}

func TestRejects(t *testing.T) {
	l := listen(t, "127.0.0.1:0", ListenOptions{})
	for _, c := range []struct {
		name string
		edit func(*transport.Hello)
		code transport.Code
		want string
	}{
		{"token", func(h *transport.Hello) { h.Token[0] = 9 }, transport.CodeToken, "session 09020300… is not known"},
		{"version", func(h *transport.Hello) { h.Low, h.High = 7, 8 }, transport.CodeVersion, "versions 7 to 8 offered, this side speaks 1 to 1"},
		{"feature", func(h *transport.Hello) {
			h.Features, h.Required = transport.AllFeatures, transport.FeatureZstd
		}, transport.CodeFeature, "zstd"},
		{"role", func(h *transport.Hello) { h.Role = transport.Source }, transport.CodeMalformed, "both sides claim to be the source"},
		{"kind", func(h *transport.Hello) { h.Kind = 9 }, transport.CodeMalformed, "unknown channel kind 9"},
	} {
		h := demandHello()
		c.edit(&h)
		_, err := Dial(t.Context(), l.Addr().String(), Options{Hello: h})
		var remote *transport.RemoteError
		if !errors.As(err, &remote) || remote.Code != c.code || !strings.Contains(remote.Text, c.want) {
			t.Errorf("%s: %v, want %v about %q", c.name, err, c.code, c.want)
		}
	}
}

// hostile sends raw bytes to a listener and returns what it says in REJECT.
func hostile(t *testing.T, l *Listener, b []byte) string {
	t.Helper()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := nc.Write(b); err != nil {
		t.Fatal(err)
	}
	w, err := newWire(nc)
	if err != nil {
		t.Fatal(err)
	}
	h, crc, err := w.frame(0)
	if err != nil {
		t.Fatal(err)
	}
	body, err := w.small(&h, crc)
	if err != nil || h.Type != transport.TypeReject || transport.Code(h.Aux) != transport.CodeMalformed {
		t.Fatalf("%v %d, %v; want REJECT MALFORMED", h.Type, h.Aux, err)
	}
	return string(body)
}

func TestHostileHello(t *testing.T) {
	l := listen(t, "127.0.0.1:0", ListenOptions{})
	frame := func(typ transport.Type, edit func(body []byte)) []byte {
		h := demandHello()
		h.Low, h.High, h.MaxBody, h.MaxCount = 1, 1, 1, 1
		body := make([]byte, transport.HelloSize)
		h.Put(body)
		edit(body)
		return transport.AppendFrame(nil, transport.Header{Type: typ}, body)
	}
	nop := func([]byte) {}
	damaged := frame(transport.TypeHello, nop)
	damaged[100] ^= 1
	long := frame(transport.TypeHello, nop)
	binary.LittleEndian.PutUint32(long[4:], 1<<30)
	aux := frame(transport.TypeHello, nop)
	aux[2] = 1
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"http", []byte("GET / HTTP/1.1\r\nHost: some.where.example\r\n\r\n"), "unknown frame type 0x47"},
		{"tls", append([]byte{0x16, 3, 1}, make([]byte, 100)...), "TLS on both sides or on neither"},
		{"magic", frame(transport.TypeHello, func(b []byte) { b[0] = 'p' }), `magic is "pAGEWARP"`},
		{"reserved", frame(transport.TypeHello, func(b []byte) { b[111] = 1 }), "non-zero reserved"},
		{"welcome first", frame(transport.TypeWelcome, nop), "first frame is WELCOME, want HELLO"},
		{"damaged", damaged, "damaged on the way"},
		{"oversized", long, "HELLO has a body of 1073741824 bytes, limit 112"},
		{"unused field", aux, "HELLO with non-zero aux"},
	} {
		if c.name == "magic" {
			c.want = `magic is "pAGEWARP"`
		}
		if text := hostile(t, l, c.b); !strings.Contains(text, c.want) {
			t.Errorf("%s: REJECT says %q, want %q", c.name, text, c.want)
		}
	}
	if n, last := l.Failed(); n == 0 || last == nil {
		t.Errorf("the listener noted %d failures, %v", n, last)
	}
}

// TestStall has a peer that connects and says nothing, on either side, while
// another channel gets through.
func TestStall(t *testing.T) {
	tune := Tuning{HandshakeTimeout: 200 * time.Millisecond}
	h := tlsHarness(t, Tuning{})
	for _, tc := range []*tls.Config{nil, h.client} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, err = Dial(t.Context(), ln.Addr().String(), Options{TLS: tc, Hello: demandHello(), Tuning: tune})
		ln.Close()
		if !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), "not finished within 200ms") {
			t.Errorf("dialling a silent peer: %v", err)
		}
	}
	l := listen(t, "127.0.0.1:0", ListenOptions{Tuning: tune, HalfOpen: 2})
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	got := accept(t, l)
	c, err := Dial(t.Context(), l.Addr().String(), Options{Hello: demandHello()})
	if err != nil {
		t.Fatal(err)
	}
	(<-got).Close()
	c.Close()
	nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := nc.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the silent peer read %d bytes, %v; want the connection closed", n, err)
	}
}

// TestHalfOpen fills the bound with silent peers: one more waits, and gets in
// when they have timed out.
func TestHalfOpen(t *testing.T) {
	l := listen(t, "127.0.0.1:0", ListenOptions{Tuning: Tuning{HandshakeTimeout: 300 * time.Millisecond}, HalfOpen: 2})
	for range 2 {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
	}
	got := accept(t, l)
	start := time.Now()
	c, err := Dial(t.Context(), l.Addr().String(), Options{Hello: demandHello()})
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 100*time.Millisecond {
		t.Errorf("a third connection was served after %v, past the bound", d)
	}
	c.Close()
	(<-got).Close()
}

func TestDialCancel(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		nc, err := ln.Accept()
		if err == nil {
			cancel()
			defer nc.Close()
			<-t.Context().Done()
		}
	}()
	if _, err := Dial(ctx, ln.Addr().String(), Options{Hello: demandHello()}); err == nil {
		t.Error("a cancelled dial succeeded")
	}
}

func TestTLSErrors(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	later, past := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	server := a.config(t, "source", later, loopback)
	for _, c := range []struct {
		name           string
		client, server *tls.Config
		want           string // at the dialling side, or at the listening side
	}{
		{"unknown server", other.config(t, "destination", later), server, "not signed by our CA"},
		{"expired server", a.config(t, "destination", later), a.config(t, "source", past, loopback), "has expired"},
		{"wrong name", a.config(t, "destination", later), a.config(t, "source", later), `not for "127.0.0.1"`},
		{"unknown client", func() *tls.Config { c := other.config(t, "destination", later); c.RootCAs = a.pool; return c }(), server, "not signed by our CA"},
		{"refused, seen by the client", func() *tls.Config { c := other.config(t, "destination", later); c.RootCAs = a.pool; return c }(), server, "peer refused our certificate"},
		{"expired client", a.config(t, "destination", past), server, "has expired"},
		{"no client certificate", &tls.Config{RootCAs: a.pool}, server, "certificate"},
		{"plain client", nil, server, "does not speak TLS"},
		{"plain server", a.config(t, "destination", later), nil, "does not speak TLS"},
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() {
			nc, err := ln.Accept()
			if err == nil {
				_, err = Server(t.Context(), nc, ListenOptions{TLS: c.server, Admit: admitKnown, Tuning: Tuning{HandshakeTimeout: 2 * time.Second}})
			}
			served <- err
		}()
		conn, err := Dial(t.Context(), ln.Addr().String(), Options{TLS: c.client, Hello: demandHello()})
		ln.Close()
		last := <-served
		if err == nil {
			conn.Close()
			t.Errorf("%s: connected", c.name)
			continue
		}
		both := err.Error() + " | "
		if last != nil {
			both += last.Error()
		}
		if !strings.Contains(both, c.want) {
			t.Errorf("%s: %s, want %q", c.name, both, c.want)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	path := t.TempDir() + "/pw.sock"
	l := listen(t, "unix:"+path, ListenOptions{})
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v; want mode 0600", st.Mode(), err)
	}
	if _, err := Listen("unix:"+path, ListenOptions{Admit: admitKnown}); err == nil || !strings.Contains(err.Error(), "another process is listening") {
		t.Errorf("listening twice: %v", err)
	}
	got := accept(t, l)
	c, err := Dial(t.Context(), "unix:"+path, Options{Hello: demandHello()})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	(<-got).Close()
	l.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket outlived its listener: %v", err)
	}
	// A socket nobody listens on is replaced, a file is not.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	listen(t, "unix:"+path, ListenOptions{}).Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:"+path, ListenOptions{Admit: admitKnown}); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("listening on a file: %v", err)
	}
	for _, bad := range []string{"", "unix:", "nohost", "1.2.3.4"} {
		if _, err := Listen(bad, ListenOptions{Admit: admitKnown}); err == nil {
			t.Errorf("address %q was taken", bad)
		}
	}
}
