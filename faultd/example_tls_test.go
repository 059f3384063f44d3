package faultd_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log"
	"math/big"
	"net"
	"time"
)

// exampleTLS makes a CA and a certificate for each side, as `pagewarp pki` does.
func exampleTLS() (source, destination *tls.Config) {
	caKey, ca := exampleCertificate(&x509.Certificate{Subject: pkix.Name{CommonName: "CA"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	config := func(name string) *tls.Config {
		key, cert := exampleCertificate(&x509.Certificate{Subject: pkix.Name{CommonName: name},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, ca, caKey)
		return &tls.Config{RootCAs: pool, ClientCAs: pool,
			Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
	}
	return config("source"), config("destination")
}

func exampleCertificate(of, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	if ca == nil {
		ca, caKey = of, key
	}
	of.SerialNumber, of.NotBefore, of.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	raw, err := x509.CreateCertificate(rand.Reader, of, ca, &key.PublicKey, caKey)
	if err != nil {
		log.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		log.Fatal(err)
	}
	return key, cert
}
