package floor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"time"
)

// Pair makes one connected TCP connection: its two ends, which the caller
// closes. It decides which path the floors are taken over.
type Pair func(ctx context.Context) (listening, dialling *os.File, err error)

// Loopback is a pair over 127.0.0.1.
func Loopback(ctx context.Context) (listening, dialling *os.File, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, fmt.Errorf("listen on loopback: %w", err)
	}
	var d net.Dialer
	return connect(ctx, l, d.DialContext)
}

// Files turns two TCP connections into files and closes them. Go has set
// TCP_NODELAY on both, as the engine does.
func Files(listening, dialling net.Conn) (l, d *os.File, err error) {
	defer listening.Close()
	defer dialling.Close()
	lt, ok1 := listening.(*net.TCPConn)
	dt, ok2 := dialling.(*net.TCPConn)
	if !ok1 || !ok2 {
		return nil, nil, errors.New("a pair must be TCP connections")
	}
	if l, err = lt.File(); err != nil {
		return nil, nil, err
	}
	if d, err = dt.File(); err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, d, nil
}

// startPair starts the two processes at the ends of a new connection: the
// listening one at the source's CPU.
func startPair(ctx context.Context, cpus CPUs, pair Pair, withTLS bool, a, b task) (listening, dialling *child, err error) {
	if withTLS {
		if a.Cert, a.Key, err = Certificate(); err != nil {
			return nil, nil, fmt.Errorf("certificate for the floor over TLS: %w", err)
		}
		b.Cert = a.Cert
	}
	l, d, err := pair(ctx)
	if err != nil {
		return nil, nil, err
	}
	err = cpus.AtSource(func() (err error) {
		listening, err = start(ctx, a, l)
		return err
	})
	if err != nil {
		d.Close()
		return nil, nil, err
	}
	err = cpus.AtDestination(func() (err error) {
		dialling, err = start(ctx, b, d)
		return err
	})
	if err != nil {
		listening.stop()
		return nil, nil, err
	}
	return listening, dialling, nil
}

// TLSName is the name in a certificate of Certificate.
const TLSName = "floor.invalid"

// Certificate makes a certificate for TLSName, in PEM, that is its own authority
// and good for both ends of a connection.
func Certificate() (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{TLSName}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		return nil, nil, err
	}
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd}), nil
}

// conn is the process's connection, after the TLS handshake if there is one.
func (t *task) conn() (wire, error) {
	if t.Cert == nil {
		return wire{}, nil
	}
	raw, err := net.FileConn(os.NewFile(3, "connection"))
	if err != nil {
		return wire{}, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: TLSName}
	var c *tls.Conn
	if t.Key != nil {
		pair, err := tls.X509KeyPair(t.Cert, t.Key)
		if err != nil {
			return wire{}, err
		}
		cfg.Certificates = []tls.Certificate{pair}
		c = tls.Server(raw, cfg)
	} else {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(t.Cert) {
			return wire{}, errors.New("the certificate of the floor is not PEM")
		}
		c = tls.Client(raw, cfg)
	}
	return wire{tls: c}, c.Handshake()
}

// Between is a pair from one place to another, such as between two network
// namespaces: listen makes the listener at addr, dial reaches it.
func Between(addr netip.Addr, listen func(ctx context.Context, network, addr string) (net.Listener, error),
	dial func(ctx context.Context, network, addr string) (net.Conn, error)) Pair {
	return func(ctx context.Context) (*os.File, *os.File, error) {
		l, err := listen(ctx, "tcp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			return nil, nil, fmt.Errorf("listen on %s: %w", addr, err)
		}
		return connect(ctx, l, dial)
	}
}

// connect dials l, and closes it.
func connect(ctx context.Context, l net.Listener, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (listening, dialling *os.File, err error) {
	defer l.Close()
	near, err := dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		return nil, nil, fmt.Errorf("dial %s: %w", l.Addr(), err)
	}
	far, err := l.Accept()
	if err != nil {
		near.Close()
		return nil, nil, fmt.Errorf("accept on %s: %w", l.Addr(), err)
	}
	return Files(far, near)
}
