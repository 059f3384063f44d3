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
// It takes a fraction of a millisecond. A thread that was blocked in a system call
// (the normal case here: a main loop in ppoll) runs ours by the very instruction
// it was blocked in. If we are killed right within, the kernel detaches it and it
// finds its own call returned, with the result of ours: a poll or a futex wait
// takes that for a wake-up without cause. A thread that was running is sent to the
// vDSO instead and would crash then. A thread interrupted in a restartable
// sequence (rseq) of its own code is not aborted; a blocked one is in none.
//
// The process may be our child, but then nobody may be waiting for it by wait(2)
// or os/exec meanwhile, which takes its stops from the tracer: wait on a pidfd.
//
// Needed: the same user and no other tracer, with yama ptrace_scope 0 (or being
// the parent with scope 1), or CAP_SYS_PTRACE. x86-64 only.
package inject
