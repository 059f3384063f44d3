// Package uffd wraps userfaultfd(2): the descriptor on which the kernel reports
// page faults of a process's registered memory, and the ioctls that resolve
// them.
//
// An [FD] belongs to the address space of the process that created it, which
// need not be ours: a descriptor handed over by SCM_RIGHTS or pidfd_getfd(2) is
// adopted with [Open], and every ioctl then acts on the foreign memory.
//
// The range operations ([FD.Copy], [FD.Continue], [FD.ZeroPage], [FD.Poison])
// settle the kernel's contract for partial progress: the kernel stops at the
// first page that it cannot install and says only how far it came, so they ask
// again from there, and return the bytes done together with the reason of the
// page at which they stopped. The …Range forms walk on over pages that are there
// already, and wake whoever waits on them, which the kernel does not do.
//
// [Reader] turns the descriptor into batches of [Event]; it can be stopped
// without closing the descriptor, and notices the death of the process, which
// the userfaultfd itself never reports.
//
// Sources: man 2 userfaultfd, man 2 ioctl_userfaultfd, fs/userfaultfd.c and
// mm/userfaultfd.c of Linux.
package uffd
