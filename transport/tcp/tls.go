package tcp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
)

// secure runs the TLS handshake on w, if tc is set.
func secure(ctx context.Context, w *wire, tc *tls.Config, client bool) error {
	if tc == nil {
		return nil
	}
	tc = tc.Clone()
	tc.MinVersion = tls.VersionTLS13
	// Without this the first MiB goes in records of a packet each, and every
	// demand answer in four.
	tc.DynamicRecordSizingDisabled = true
	var t *tls.Conn
	if client {
		t = tls.Client(w.base, tc)
	} else {
		tc.ClientAuth = tls.RequireAndVerifyClientCert
		t = tls.Server(w.base, tc)
	}
	if err := t.HandshakeContext(ctx); err != nil {
		return explainTLS(err, tc, client)
	}
	w.secure(t)
	return nil
}

// explainTLS says what a certificate error asks of the operator.
func explainTLS(err error, tc *tls.Config, client bool) error {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var header tls.RecordHeaderError
	var op *net.OpError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("peer's certificate is not signed by our CA; check the CA file on both sides: %w", err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("peer's certificate has expired or is not valid yet; renew it, or set the clock: %w", err)
	case errors.As(err, &host):
		return fmt.Errorf("peer's certificate is not for %q; dial it by a name in its certificate: %w", tc.ServerName, err)
	case errors.As(err, &header):
		return fmt.Errorf("peer does not speak TLS; configure TLS on both sides or on neither: %w", err)
	case client && errors.As(err, &op) && op.Op == "remote error":
		return fmt.Errorf("peer refused our certificate or our TLS version; its log says why: %w", err)
	}
	return err
}

// identity returns the subject of the peer's certificate.
func identity(w *wire) string {
	t, ok := w.nc.(*tls.Conn)
	if !ok {
		return ""
	}
	certs := t.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return ""
	}
	if cn := certs[0].Subject.CommonName; cn != "" {
		return cn
	}
	if names := certs[0].DNSNames; len(names) > 0 {
		return names[0]
	}
	return certs[0].Subject.String()
}
