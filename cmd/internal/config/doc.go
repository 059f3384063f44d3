// Package config is the daemon's configuration: a TOML file read strictly, with
// every key documented in example.toml, and the checks that do not need a
// running daemon.
//
// A key that the daemon does not know is an error that names the key and its
// line: a misspelt option that is silently ignored is found out on the night of
// the move.
package config
