// Package daemon is pagewarpd around its engine: the life cycle of the process,
// the HTTP API, the metrics.
//
// Run starts in this order, and stops in the reverse:
//
//  1. state directory and its lock (one daemon for each)
//  2. certificates
//  3. the engine, which takes up what an earlier daemon left
//  4. API socket and metrics address
//  5. peers are served, systemd is told
//
// On SIGTERM or SIGINT new relocations are refused, those before their
// switch-over roll back, those past it keep their journals for the next daemon;
// the API answers until the engine has closed, so that whoever watches sees how
// it ended. On SIGHUP templates, log level, certificates and defaults are read
// again; the rest needs a restart, and the log says so.
package daemon
