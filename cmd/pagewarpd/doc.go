// Command pagewarpd is the per-host daemon: it keeps the machines of its host,
// sends them to other daemons and receives theirs.
//
//	pagewarpd --config /etc/pagewarp/pagewarpd.toml
//	pagewarpd check  --config FILE
//	pagewarpd config [--example]
package main
