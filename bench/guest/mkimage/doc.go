// Command mkimage builds the test guest's kernel and initramfs:
//
//	go run ./bench/guest/mkimage -out build/guest
//
// The kernel is Debian's own, downloaded and unpacked but never installed; the
// initramfs holds the static program bench/guest as /init and the few modules
// that virtio-net needs. A second initramfs, initramfs-programs.cpio.gz, holds
// real programs as well, Redis and nginx, for loads that ask for them: Debian's
// packages, unpacked but never installed, with the libraries that the programs
// name. What is up to date is left alone.
package main
