// Package downtime measures how long a guest stands still while it is
// relocated, for several sizes of memory: real daemons, mutual TLS, a real QEMU
// that goes to and fro between two hosts. The times are those of QEMU's own STOP
// and RESUME events.
package downtime
