package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// ExpiryWarning is how long before its end a certificate is complained about.
const ExpiryWarning = 30 * 24 * time.Hour

// Files name what a Store loads, all in PEM.
type Files struct {
	CA, Cert, Key string
	Peers         []string // accepted names; empty: every host the authority signed
}

// Store keeps a host's certificate and authority, and reads the files again when
// they change on disk, so that renewing a certificate needs no restart and cuts
// no connection. Safe for concurrent use.
type Store struct {
	report func(error) // immutable after Open; called without mu

	mu    sync.Mutex
	files Files     // guarded by mu
	cur   *material // guarded by mu
	tried stamp     // guarded by mu: the state of the files that was last read
}

type material struct {
	cert  tls.Certificate
	leaf  *x509.Certificate
	pool  *x509.CertPool
	peers []string
}

// stamp tells one state of the files from another.
type stamp [3]struct {
	size  int64
	mtime time.Time
}

// Open loads the files. report is told when a later reload fails (the old
// material stays in use) or succeeds (nil); it may be nil.
func Open(f Files, report func(error)) (*Store, error) {
	if report == nil {
		report = func(error) {}
	}
	s := &Store{report: report}
	return s, s.Reload(f)
}

// Reload replaces the set of files and reads them now.
func (s *Store) Reload(f Files) error {
	st := f.stamp()
	m, err := f.load(time.Now())
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files, s.cur, s.tried = f, m, st
	return nil
}

func (s *Store) material() *material {
	s.mu.Lock()
	f, cur, tried := s.files, s.cur, s.tried
	s.mu.Unlock()
	// Three stat calls for each handshake: connections are few and long.
	st := f.stamp()
	if st == tried {
		return cur
	}
	m, err := f.load(time.Now())
	s.mu.Lock()
	s.tried = st
	if err == nil {
		s.cur = m
	}
	cur = s.cur
	s.mu.Unlock()
	s.report(err)
	return cur
}

// Leaf is the host's own certificate.
func (s *Store) Leaf() *x509.Certificate { return s.material().leaf }

// Expiring returns a warning if the host's certificate ends within
// ExpiryWarning of now, else "".
func (s *Store) Expiring(now time.Time) string {
	l := s.Leaf()
	left := l.NotAfter.Sub(now)
	if left > ExpiryWarning {
		return ""
	}
	s.mu.Lock()
	path := s.files.Cert
	s.mu.Unlock()
	if left < 0 {
		return fmt.Sprintf("certificate %s has expired on %s; renew it with `pagewarp pki issue %s --force`", path, l.NotAfter.Format(time.DateOnly), l.Subject.CommonName)
	}
	return fmt.Sprintf("certificate %s expires in %d days; renew it with `pagewarp pki issue %s --force`", path, int(left.Hours()/24), l.Subject.CommonName)
}

// Server is the configuration for accepting peers.
func (s *Store) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequireAndVerifyClientCert,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m := s.material()
			return &tls.Config{
				MinVersion:       tls.VersionTLS13,
				Certificates:     []tls.Certificate{m.cert},
				ClientAuth:       tls.RequireAndVerifyClientCert,
				ClientCAs:        m.pool,
				VerifyConnection: s.verifyPeer,
			}, nil
		},
	}
}

// Client is the configuration for connecting to peers. The caller's copy needs
// ServerName. Its certificate and list of peers follow the files; its
// authority is the one of now: call Client again after the authority changed.
func (s *Store) Client() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    s.material().pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c := s.material().cert
			return &c, nil
		},
		VerifyConnection: s.verifyPeer,
	}
}

// verifyPeer runs after the chain has been verified. It also runs for resumed
// sessions, so that a name taken off the list is shut out at once.
func (s *Store) verifyPeer(cs tls.ConnectionState) error {
	m := s.material()
	if len(cs.PeerCertificates) == 0 {
		return errors.New("peer showed no certificate")
	}
	c := cs.PeerCertificates[0]
	if len(m.peers) == 0 || slices.Contains(m.peers, c.Subject.CommonName) {
		return nil
	}
	for _, n := range names(c) {
		if slices.Contains(m.peers, n) {
			return nil
		}
	}
	return fmt.Errorf("peer %q is not in tls.peers (%s)", c.Subject.CommonName, strings.Join(m.peers, ", "))
}

func (f Files) stamp() (s stamp) {
	for i, p := range []string{f.CA, f.Cert, f.Key} {
		if fi, err := os.Stat(p); err == nil {
			s[i].size, s[i].mtime = fi.Size(), fi.ModTime()
		}
	}
	return s
}

func (f Files) load(now time.Time) (*material, error) {
	read := func(what, path string) ([]byte, error) {
		b, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("%s %s does not exist; make it with `pagewarp pki issue NAME` and copy it here", what, path)
		case err != nil:
			return nil, fmt.Errorf("%s: %w; the daemon's user must be able to read it", what, err)
		}
		return b, nil
	}
	ca, err := read("tls.ca", f.CA)
	if err != nil {
		return nil, err
	}
	cert, err := read("tls.cert", f.Cert)
	if err != nil {
		return nil, err
	}
	key, err := read("tls.key", f.Key)
	if err != nil {
		return nil, err
	}
	if fi, err := os.Stat(f.Key); err == nil && fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("tls.key %s has mode %04o: others can read it; `chmod 600 %s`, and issue a new one if they did", f.Key, fi.Mode().Perm(), f.Key)
	}
	m := &material{pool: x509.NewCertPool(), peers: slices.Clone(f.Peers)}
	if !m.pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("tls.ca %s holds no certificate; copy %s of the authority here", f.CA, CACert)
	}
	if m.cert, err = tls.X509KeyPair(cert, key); err != nil {
		return nil, fmt.Errorf("tls.cert %s and tls.key %s are no pair: %w; issue them again with `pagewarp pki issue NAME --force`", f.Cert, f.Key, err)
	}
	m.leaf = m.cert.Leaf
	_, err = m.leaf.Verify(x509.VerifyOptions{Roots: m.pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	var inv x509.CertificateInvalidError
	switch {
	case errors.As(err, &inv) && inv.Reason == x509.Expired:
		return nil, fmt.Errorf("tls.cert %s is valid from %s to %s, not now; issue it again with `pagewarp pki issue %s --force`, or set this host's clock",
			f.Cert, m.leaf.NotBefore.Format(time.DateOnly), m.leaf.NotAfter.Format(time.DateOnly), m.leaf.Subject.CommonName)
	case err != nil:
		return nil, fmt.Errorf("tls.cert %s is not signed by tls.ca %s: %w; copy both from the directory of the same authority", f.Cert, f.CA, err)
	}
	for _, u := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if !slices.Contains(m.leaf.ExtKeyUsage, u) {
			return nil, fmt.Errorf("tls.cert %s is not for both TLS server and TLS client; a daemon is both. `pagewarp pki issue NAME` makes such a one", f.Cert)
		}
	}
	return m, nil
}
