// Package qemutest is a scripted QMP server: it stands where a QEMU's monitor
// would, and stalls, lies, talks over itself or hangs up as a test wants.
package qemutest
