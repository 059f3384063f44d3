// Package pki is the certificate authority and the TLS configuration of
// daemons that trust each other.
//
// The authority is small on purpose: one ECDSA P-256 key in a directory, and for
// each host one certificate that serves as TLS server and as TLS client. Who
// holds a certificate of the authority may send a guest to a host and receive
// guests from it; tls.peers in the daemon's configuration narrows that by name.
//
// A Store turns three files into TLS configurations (TLS 1.3, both sides
// verified against the own authority only, never the system's) and reads the
// files again when they change.
package pki
