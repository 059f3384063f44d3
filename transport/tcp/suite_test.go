package tcp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagewarp/pagewarp/transport"
	"github.com/pagewarp/pagewarp/transport/transporttest"
)

// harness opens pairs over one kind of address.
type harness struct {
	addr   string // to listen on
	client *tls.Config
	server *tls.Config
	tune   Tuning
	pipe   bool // over net.Pipe, no socket
}

func (h *harness) Pair(t testing.TB, o transporttest.Options) (transport.Fetcher, transport.Responder) {
	t.Helper()
	dst, src := h.conns(t, o)
	dst.SetRegions(o.Regions)
	f, err := dst.Fetcher()
	if err != nil {
		t.Fatal(err)
	}
	r, err := src.Responder()
	if err != nil {
		t.Fatal(err)
	}
	return f, r
}

// conns opens one channel; the destination dials.
func (h *harness) conns(t testing.TB, o transporttest.Options) (dst, src *Conn) {
	t.Helper()
	tune := h.tune
	tune.Codec, tune.DemandCodec = o.Codec, o.Codec
	tune.DeadAfter = o.DeadAfter
	lo := ListenOptions{TLS: h.server, Tuning: tune, Admit: func(transport.Hello, string) (transport.Offer, *transport.RemoteError) {
		return transport.Offer{Role: transport.Source, Features: transport.AllFeatures, MaxBody: transport.MaxBodyLimit, MaxCount: transport.MaxCountLimit}, nil
	}}
	do := Options{TLS: h.client, Tuning: tune, Hello: transport.Hello{
		Kind: o.Kind, Role: transport.Destination, Index: o.Index, Features: o.Features,
		MaxBody: o.MaxBody, MaxCount: o.MaxCount, Token: transport.NewToken(), Epoch: 1}}
	ctx := t.Context()
	if h.pipe {
		return pipePair(t, ctx, do, lo, o.Faults)
	}
	addr := h.addr
	if addr == "unix:" {
		addr = "unix:" + t.TempDir() + "/s"
	}
	l, err := Listen(addr, lo)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if addr[0] != 'u' {
		addr = l.Addr().String()
	}
	if o.Faults != nil {
		addr = transporttest.Relay(t, addr, o.Faults)
	}
	accepted := make(chan error, 1)
	go func() {
		var err error
		src, err = l.Accept(ctx)
		accepted <- err
	}()
	if dst, err = Dial(ctx, addr, do); err != nil {
		t.Fatal(err)
	}
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	return dst, src
}

// plainConn hides that a connection is a socket.
type plainConn struct{ net.Conn }

// pipePair opens a channel over a socket pair whose ends look like any net.Conn.
func pipePair(t testing.TB, ctx context.Context, do Options, lo ListenOptions, faults *transporttest.Faults) (dst, src *Conn) {
	t.Helper()
	var ends [2]net.Conn
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		nc, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = plainConn{nc}
	}
	if faults != nil {
		ends[0] = faults.Mirror().Wrap(ends[0])
	}
	done := make(chan error, 1)
	go func() {
		var err error
		src, err = Server(ctx, ends[1], lo)
		done <- err
	}()
	if dst, err = Client(ctx, ends[0], do); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return dst, src
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

// config returns a TLS configuration for either side.
func (a *authority) config(t testing.TB, name string, expires time.Time, ips ...net.IP) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: ips,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: expires, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: a.pool, ClientCAs: a.pool, ServerName: ""}
}

var loopback = net.IPv4(127, 0, 0, 1)

func tlsHarness(t testing.TB, tune Tuning) *harness {
	a := newAuthority(t)
	later := time.Now().Add(time.Hour)
	return &harness{addr: "127.0.0.1:0", client: a.config(t, "destination", later), server: a.config(t, "source", later, loopback), tune: tune}
}

func TestSuiteTCP(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) transporttest.Harness { return &harness{addr: "127.0.0.1:0"} })
}

func TestSuiteBlocking(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) transporttest.Harness {
		return &harness{addr: "127.0.0.1:0", tune: Tuning{BlockingIO: true, Spin: 20 * time.Microsecond}}
	})
}

func TestSuiteUnix(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) transporttest.Harness { return &harness{addr: "unix:"} })
}

func TestSuiteTLS(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) transporttest.Harness { return tlsHarness(t, Tuning{}) })
}

func TestSuiteTLSBlocking(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) transporttest.Harness { return tlsHarness(t, Tuning{BlockingIO: true}) })
}

func TestSuiteAnyConn(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) transporttest.Harness { return &harness{pipe: true} })
}
