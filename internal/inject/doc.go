// Package inject runs single system calls inside another, unmodified process,
// above all userfaultfd(2), and takes the resulting descriptor over. It is how a
// VMM that knows nothing of us comes to have its memory served by us: the
// userfaultfd must belong to the VMM's address space, and everything after its
// creation can be done from outside.
//
// A thread of the process is stopped by ptrace(2) (PTRACE_SEIZE and
// PTRACE_INTERRUPT, so no signal is sent and any state will do), its registers
// and signal mask are saved, it executes a system call instruction found in its
// vDSO, and is put back exactly: a system call in which it was blocked goes on,
// with the time it had left, since the registers are restored in the same kind
// of stop that they were saved in, before the kernel decides on a restart. The
// descriptor is copied out by pidfd_getfd(2).
//
// It takes a fraction of a millisecond. If we are killed right within, the
// kernel detaches, but the process is left with foreign registers and will
// likely crash; so it is done before a VM runs. A thread interrupted in a
// restartable sequence (rseq) of its own code is not aborted; threads blocked in
// a system call, the normal case here, are in none.
//
// Needed: the same user and no other tracer, with yama ptrace_scope 0 (or being
// the parent with scope 1), or CAP_SYS_PTRACE. x86-64 only.
package inject
