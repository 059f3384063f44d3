// Package vmtest is what tests of the relocation share: a real QEMU whose guest
// is nothing but its BIOS (it starts in a fraction of a second and runs for
// ever), a known pattern in its memory, and a proxy that cuts connections.
package vmtest
