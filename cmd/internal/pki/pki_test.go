package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func authority(t *testing.T, hosts ...string) (string, map[string]Files) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := Init(dir, "test authority", time.Now()); err != nil {
		t.Fatal(err)
	}
	fs := map[string]Files{}
	for _, h := range hosts {
		fs[h] = issue(t, dir, h, time.Now())
	}
	return dir, fs
}

func issue(t *testing.T, dir, host string, now time.Time) Files {
	t.Helper()
	i, err := Issue(dir, host, []string{"127.0.0.1"}, true, now)
	if err != nil {
		t.Fatal(err)
	}
	return Files{CA: i.CA, Cert: i.Cert, Key: i.Key}
}

func TestAuthority(t *testing.T) {
	dir, _ := authority(t)
	for name, mode := range map[string]os.FileMode{"": 0o700, CAKey: 0o600, CACert: 0o644} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%q: mode %v, %v; want %v", name, fi.Mode(), err, mode)
		}
	}
	c, err := ReadCert(filepath.Join(dir, CACert))
	if err != nil {
		t.Fatal(err)
	}
	if k, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() || !c.IsCA || !c.MaxPathLenZero {
		t.Errorf("authority %+v", c)
	}
	if d := time.Until(c.NotAfter).Hours() / 24; d < 3640 || d > 3660 {
		t.Errorf("authority lives %v days", d)
	}
	if _, err := Init(dir, "again", time.Now()); err == nil || !strings.Contains(err.Error(), "locks every host out") {
		t.Errorf("second Init: %v", err)
	}
}

func TestIssue(t *testing.T) {
	dir, _ := authority(t)
	i, err := Issue(dir, "hostA", []string{"hostA.example.org", "10.0.0.1", "hostA"}, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got := names(i.Leaf); !slices.Equal(got, []string{"hostA", "hostA.example.org", "10.0.0.1"}) {
		t.Errorf("names %v", got)
	}
	if d := time.Until(i.Leaf.NotAfter).Hours() / 24; d < 824 || d > 825 {
		t.Errorf("lives %v days", d)
	}
	if fi, _ := os.Stat(i.Key); fi.Mode().Perm() != 0o600 {
		t.Errorf("key has mode %v", fi.Mode())
	}
	if _, err := Issue(dir, "hostA", nil, false, time.Now()); err == nil || !strings.Contains(err.Error(), "--force replaces it") {
		t.Errorf("second Issue: %v", err)
	}
	j, err := Issue(dir, "hostA", nil, true, time.Now())
	if err != nil || j.Leaf.SerialNumber.Cmp(i.Leaf.SerialNumber) == 0 {
		t.Errorf("forced: %v", err)
	}
	for _, bad := range []string{"", "ca", "../x", "a b", "-x"} {
		if _, err := Issue(dir, bad, nil, true, time.Now()); err == nil {
			t.Errorf("issued for %q", bad)
		}
	}
	if _, err := Issue(dir, "h", []string{"a/b"}, true, time.Now()); err == nil {
		t.Error("issued for a bad subject name")
	}
	if _, err := Issue(t.TempDir(), "h", nil, true, time.Now()); err == nil || !strings.Contains(err.Error(), "pki init") {
		t.Errorf("without authority: %v", err)
	}
	if _, err := Issue(dir, "h", nil, true, time.Now().Add(2*CAValidity)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("with an expired authority: %v", err)
	}
	es, err := List(dir)
	if err != nil || len(es) != 2 || !es[0].CA || es[1].Name != "hostA" {
		t.Errorf("List: %+v, %v", es, err)
	}
}

// handshake connects a client with c to a server with s over loopback and
// returns both errors.
func handshake(t *testing.T, s, c *tls.Config, name string) (server, client error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		tc := tls.Server(nc, s)
		if err = tc.Handshake(); err == nil {
			_, err = tc.Write([]byte{1})
		}
		done <- err
	}()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(10 * time.Second))
	c = c.Clone()
	c.ServerName = name
	tc := tls.Client(nc, c)
	if client = tc.Handshake(); client == nil {
		if tc.ConnectionState().Version != tls.VersionTLS13 {
			t.Errorf("TLS version %x", tc.ConnectionState().Version)
		}
		// In TLS 1.3 the server's verdict on the client comes after the handshake.
		_, client = io.ReadFull(tc, make([]byte, 1))
	}
	nc.Close()
	return <-done, client
}

func open(t *testing.T, f Files) *Store {
	t.Helper()
	s, err := Open(f, func(err error) {
		if err != nil {
			t.Log("reload:", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMutualTLS(t *testing.T) {
	_, f := authority(t, "hostA", "hostB")
	_, g := authority(t, "hostC")
	a, b, c := open(t, f["hostA"]), open(t, f["hostB"]), open(t, g["hostC"])
	for _, name := range []string{"hostA", "127.0.0.1"} {
		if s, err := handshake(t, a.Server(), b.Client(), name); s != nil || err != nil {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	if _, err := handshake(t, a.Server(), b.Client(), "hostX"); err == nil {
		t.Error("a certificate for another name passed")
	}
	if _, err := handshake(t, a.Server(), b.Client(), "127.0.0.2"); err == nil {
		t.Error("a certificate for another address passed")
	}
	if s, err := handshake(t, a.Server(), c.Client(), "hostA"); s == nil || err == nil {
		t.Errorf("another authority passed: %v, %v", s, err)
	}
	anonymous := &tls.Config{RootCAs: b.material().pool}
	if s, err := handshake(t, a.Server(), anonymous, "hostA"); s == nil || err == nil {
		t.Errorf("a client without certificate passed: %v, %v", s, err)
	}
	old := b.Client()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if s, _ := handshake(t, a.Server(), old, "hostA"); s == nil {
		t.Error("TLS 1.2 passed")
	}
}

func TestPeers(t *testing.T) {
	_, f := authority(t, "hostA", "hostB", "hostC")
	only := f["hostA"]
	only.Peers = []string{"hostB"}
	a, b, c := open(t, only), open(t, f["hostB"]), open(t, f["hostC"])
	if s, err := handshake(t, a.Server(), b.Client(), "hostA"); s != nil || err != nil {
		t.Errorf("listed peer: %v, %v", s, err)
	}
	if s, err := handshake(t, a.Server(), c.Client(), "hostA"); s == nil || err == nil || !strings.Contains(s.Error(), "tls.peers") {
		t.Errorf("unlisted client: %v, %v", s, err)
	}
	if _, err := handshake(t, c.Server(), a.Client(), "hostC"); err == nil || !strings.Contains(err.Error(), "tls.peers") {
		t.Errorf("unlisted server: %v", err)
	}
}

func TestReload(t *testing.T) {
	dir, f := authority(t, "hostA", "hostB")
	var reports []error
	a, err := Open(f["hostA"], func(err error) { reports = append(reports, err) })
	if err != nil {
		t.Fatal(err)
	}
	srv := a.Server()
	b := open(t, f["hostB"])
	first := a.Leaf().SerialNumber
	issue(t, dir, "hostA", time.Now())
	if a.Leaf().SerialNumber.Cmp(first) == 0 {
		t.Error("a new certificate was not noticed")
	}
	if s, err := handshake(t, srv, b.Client(), "hostA"); s != nil || err != nil {
		t.Errorf("after renewal: %v, %v", s, err)
	}
	// A broken file is reported once; the material in use stays.
	if err := os.WriteFile(f["hostA"].Cert, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if s, err := handshake(t, srv, b.Client(), "hostA"); s != nil || err != nil {
			t.Errorf("with a broken file: %v, %v", s, err)
		}
	}
	// Cert and key are renamed into place one after the other, so one reload in
	// between may find no pair; what counts is the order at the end.
	if n := len(reports); n < 2 || reports[n-1] == nil || !strings.Contains(reports[n-1].Error(), "are no pair") {
		t.Errorf("reports %v", reports)
	}
}

func TestExpiry(t *testing.T) {
	dir, _ := authority(t)
	s := open(t, issue(t, dir, "hostA", time.Now().Add(-800*24*time.Hour)))
	if w := s.Expiring(time.Now()); !strings.Contains(w, "expires in 2") || !strings.Contains(w, "pki issue hostA --force") {
		t.Errorf("warning %q", w)
	}
	if w := s.Expiring(time.Now().Add(100 * 24 * time.Hour)); !strings.Contains(w, "has expired") {
		t.Errorf("warning %q", w)
	}
	if w := open(t, issue(t, dir, "hostB", time.Now())).Expiring(time.Now()); w != "" {
		t.Errorf("warning %q for a new certificate", w)
	}
	_, err := Open(issue(t, dir, "hostC", time.Now().Add(-900*24*time.Hour)), nil)
	if err == nil || !strings.Contains(err.Error(), "not now; issue it again") {
		t.Errorf("expired: %v", err)
	}
}

func TestLoadErrors(t *testing.T) {
	dir, f := authority(t, "hostA", "hostB")
	_, g := authority(t, "hostA")
	a := f["hostA"]
	loose := filepath.Join(dir, "loose.key")
	b, err := os.ReadFile(a.Key)
	if err = errors.Join(err, os.WriteFile(loose, b, 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		f    Files
		want string
	}{
		{Files{CA: dir + "/no", Cert: a.Cert, Key: a.Key}, "does not exist; make it"},
		{Files{CA: a.CA, Cert: dir + "/no", Key: a.Key}, "tls.cert"},
		{Files{CA: a.CA, Cert: a.Cert, Key: f["hostB"].Key}, "are no pair"},
		{Files{CA: a.Key, Cert: a.Cert, Key: a.Key}, "holds no certificate"},
		{Files{CA: g["hostA"].CA, Cert: a.Cert, Key: a.Key}, "is not signed by"},
		{Files{CA: a.CA, Cert: a.Cert, Key: loose}, "chmod 600"},
		{Files{CA: a.CA, Cert: a.CA, Key: filepath.Join(dir, CAKey)}, "both TLS server and TLS client"},
	} {
		if _, err := Open(c.f, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.f, err, c.want)
		}
	}
}
