// Package accel chooses QEMU's accelerator. That /dev/kvm opens does not mean
// that a guest runs under it: on some nested hosts a stock kernel never gets to
// its first line. So Choose starts one and looks.
package accel
