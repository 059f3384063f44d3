// Package api is the contract between the daemon and its clients: HTTP/1.1 with
// JSON over a unix socket, its types, its errors, and a client.
//
// docs/API.md is the contract: routes, fields, events, codes of errors. It is tested
// against this package's types and the daemon's routes.
//
// The client's errors compare with errors.Is to the sentinels of package
// relocate, so that the far side of the socket does not matter to a caller.
package api
