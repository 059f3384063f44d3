// Package kvmrig runs Go test binaries inside a virtual machine with a kernel
// module of ours: Debian's kernel, an initramfs of vminit, the module and the
// binaries, one boot, and a verdict.
//
// [Headers] and [BuildModule] get the module built against Debian's header
// packages, which are downloaded and unpacked but never installed. [Run] boots.
// The kernel panics on any warning; the tests' output and the verdict, with a
// token that only this boot knows, come over the second serial port, so that
// nothing the kernel prints can be taken for it.
package kvmrig
