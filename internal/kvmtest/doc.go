// Package kvmtest runs a real vCPU of KVM over memory that is served by
// userfaultfd, so that a test can show KVM's own fault path: the faults come out
// of KVM_RUN inside the kernel, not out of user code.
//
// The guest is a few instructions of flat 32-bit code without paging. It goes
// over the pages of its region, adds up the first dword of each, with write
// stores its down-counter (the pages still to go, this one included) into the
// second, reports the sum by an OUT, and halts. It runs in a process of its own,
// which is our binary started anew: [Main] must be called first thing in
// TestMain.
package kvmtest
