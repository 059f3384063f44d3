// Package recency finds out which pages of another process's shared memory were
// touched lately, while that process runs on: the source of a hot list.
//
// A [Watch] takes the mapping's page-table entries away once (MADV_DONTNEED on
// shared memory frees nothing: the pages stay in the file), and every touch
// afterwards brings one back by a minor fault that the kernel serves by itself.
// Which entries are there is what a [Watch.Sample] reads. Two methods, chosen by
// what the kernel offers:
//
//   - "pagemap-scan" (Linux 6.7): the mapping is registered with a userfaultfd
//     for asynchronous write protection, so that PAGEMAP_SCAN returns, and arms
//     again in the same walk, the pages that were first touched or were written
//     since the sample before. The registration also keeps the kernel from
//     mapping the neighbours of a page that is read, so the answer is exact.
//   - "pagemap" (any kernel): the bit "present" of /proc/PID/pagemap, and the
//     entries taken away anew by each sample. A read also maps up to 16
//     neighbours (fault-around), so the answer is an overestimate for them.
//
// What else there is was looked at and is of less use: soft-dirty bits and QEMU's
// dirty rate know of writes only, page_idle needs a kernel that few distributions
// build and one word per physical page, DAMON samples regions and not pages, and
// the accessed bits by clear_refs can be read only as a sum per mapping.
//
// The cost to the process (BenchmarkWatch): one thread is stopped for 1 to 2 ms at
// a time (package inject) while entries are dropped, some 20 to 30 ms of its time
// per GiB; each page that it touches afterwards costs it a minor fault, once, and
// again for its first write after each sample. Of memory above 4 GiB the entries
// are left, so that only writes are seen.
// Nothing is left behind when the watch is closed, or its owner dies: the
// registration goes with the descriptor, which only the owner holds.
//
// Sources: Documentation/admin-guide/mm/pagemap.rst, fs/proc/task_mmu.c and
// mm/memory.c (should_fault_around) of Linux.
package recency
