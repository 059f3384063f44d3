// Package daemontest has a host for the tests of what sits on top of one: the
// API, the metrics, the operator's command. It moves nothing; a test plays the
// relocation by setting its phases.
package daemontest
