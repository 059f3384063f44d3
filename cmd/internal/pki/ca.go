package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// DefaultDir is where the authority lives unless told otherwise.
const DefaultDir = "/etc/pagewarp/pki"

// File names inside the directory.
const (
	CACert = "ca.crt"
	CAKey  = "ca.key"
)

// How long certificates are valid. 825 days is the longest that strict TLS
// stacks accept for a host certificate.
const (
	CAValidity   = 10 * 365 * 24 * time.Hour
	HostValidity = 825 * 24 * time.Hour
)

// backdate forgives hosts whose clock is a little behind.
const backdate = 5 * time.Minute

// Init makes the authority in dir (created with mode 0700) and returns its
// certificate. It refuses to replace one that exists: every host certificate
// depends on it.
func Init(dir, name string, now time.Time) (*x509.Certificate, error) {
	crt, key := filepath.Join(dir, CACert), filepath.Join(dir, CAKey)
	for _, p := range []string{crt, key} {
		if _, err := os.Lstat(p); err == nil {
			return nil, fmt.Errorf("%s exists; an authority that is replaced locks every host out. Move it away first, or use another --dir", p)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of the authority: %w", err)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of the authority: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name, Organization: []string{"pagewarp"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(CAValidity),
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &k.PublicKey, k)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of the authority: %w", err)
	}
	if err := writeKey(key, k, false); err != nil {
		return nil, err
	}
	if err := writeFile(crt, pemCert(der), 0o644, false); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)

// Issued is a new host certificate and where it was written.
type Issued struct {
	CA, Cert, Key string
	Leaf          *x509.Certificate
}

// Issue makes NAME.crt and NAME.key in dir, signed by the authority there. The
// certificate is for the DNS name (or address) name and all of sans. With force
// an older pair is replaced.
func Issue(dir, name string, sans []string, force bool, now time.Time) (Issued, error) {
	if !hostName.MatchString(name) || name == "ca" {
		return Issued{}, fmt.Errorf("host name %q; use the name other hosts call it by: letters, digits, '.' and '-' (and not \"ca\")", name)
	}
	ca, caKey, err := loadCA(dir)
	if err != nil {
		return Issued{}, err
	}
	if now.After(ca.NotAfter) {
		return Issued{}, fmt.Errorf("authority %s has expired on %s; make a new one with `pagewarp pki init --dir NEW`", ca.Subject.CommonName, ca.NotAfter.Format(time.DateOnly))
	}
	out := Issued{CA: filepath.Join(dir, CACert), Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
	if !force {
		for _, p := range []string{out.Cert, out.Key} {
			if _, err := os.Lstat(p); err == nil {
				return Issued{}, fmt.Errorf("%s exists; --force replaces it", p)
			}
		}
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Issued{}, fmt.Errorf("make key of %s: %w", name, err)
	}
	end := now.Add(HostValidity)
	if end.After(ca.NotAfter) {
		end = ca.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name, Organization: []string{"pagewarp"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              end,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, s := range slices.Concat([]string{name}, sans) {
		if err := addSAN(t, s); err != nil {
			return Issued{}, err
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca, &k.PublicKey, caKey)
	if err != nil {
		return Issued{}, fmt.Errorf("sign certificate of %s: %w", name, err)
	}
	if out.Leaf, err = x509.ParseCertificate(der); err != nil {
		return Issued{}, fmt.Errorf("read back certificate of %s: %w", name, err)
	}
	if err := writeKey(out.Key, k, force); err != nil {
		return Issued{}, err
	}
	return out, writeFile(out.Cert, pemCert(der), 0o644, force)
}

func addSAN(t *x509.Certificate, s string) error {
	if ip := net.ParseIP(s); ip != nil {
		t.IPAddresses = append(t.IPAddresses, ip)
		return nil
	}
	if !hostName.MatchString(s) {
		return fmt.Errorf("subject name %q is neither a host name nor an address", s)
	}
	if !slices.Contains(t.DNSNames, s) {
		t.DNSNames = append(t.DNSNames, s)
	}
	return nil
}

func loadCA(dir string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	ca, err := ReadCert(filepath.Join(dir, CACert))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("no authority in %s; `pagewarp pki init --dir %s` makes one", dir, dir)
		}
		return nil, nil, err
	}
	p := filepath.Join(dir, CAKey)
	b, err := os.ReadFile(p)
	if err != nil {
		return nil, nil, fmt.Errorf("read key of the authority: %w; certificates are issued where `pagewarp pki init` ran", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, nil, fmt.Errorf("%s holds no PEM block; restore it from a backup", p)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", p, err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(ca.PublicKey) {
		return nil, nil, fmt.Errorf("%s is not the key of %s; restore the pair from a backup", p, filepath.Join(dir, CACert))
	}
	return ca, key, nil
}

// ReadCert reads the first certificate of a PEM file.
func ReadCert(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no PEM certificate; make it with `pagewarp pki issue`", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", path, err)
	}
	return c, nil
}

// Entry is one certificate of a directory.
type Entry struct {
	Path    string    `json:"path"`
	Name    string    `json:"name"`
	CA      bool      `json:"ca"`
	Names   []string  `json:"names"` // DNS names and addresses
	Serial  string    `json:"serial"`
	Expires time.Time `json:"expires"`
}

// List returns the certificates in dir, the authority's first.
func List(dir string) ([]Entry, error) {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w; `pagewarp pki init --dir %s` makes an authority", err, dir)
	}
	var out []Entry
	for _, e := range ents {
		if !strings.HasSuffix(e.Name(), ".crt") {
			continue
		}
		p := filepath.Join(dir, e.Name())
		c, err := ReadCert(p)
		if err != nil {
			return nil, err
		}
		out = append(out, Entry{Path: p, Name: c.Subject.CommonName, CA: c.IsCA, Names: names(c), Serial: c.SerialNumber.Text(16), Expires: c.NotAfter})
	}
	slices.SortStableFunc(out, func(a, b Entry) int {
		if a.CA != b.CA {
			if a.CA {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Path, b.Path)
	})
	return out, nil
}

func names(c *x509.Certificate) []string {
	out := append([]string{}, c.DNSNames...) // in JSON a list, if empty
	for _, ip := range c.IPAddresses {
		out = append(out, ip.String())
	}
	return out
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // never fails: crypto/rand
	b[0] &= 0x7f // positive, RFC 5280 section 4.1.2.2
	b[15] |= 1
	return new(big.Int).SetBytes(b)
}

func pemCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func writeKey(path string, k *ecdsa.PrivateKey, replace bool) error {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600, replace)
}

// writeFile makes path appear whole or not at all: a daemon may be reading it.
func writeFile(path string, b []byte, mode fs.FileMode, replace bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	switch {
	case err != nil:
	case replace:
		err = os.Rename(f.Name(), path)
	default:
		err = os.Link(f.Name(), path) // fails where path exists
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
