// Command mkimage builds the test guest's kernel and initramfs:
//
//	go run ./bench/guest/mkimage -out build/guest
//
// The kernel is Debian's own, downloaded and unpacked but never installed; the
// initramfs holds the static program bench/guest as /init and the few modules
// that virtio-net needs. What is up to date is left alone.
package main
