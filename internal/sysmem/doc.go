// Package sysmem maps, inspects and compares memory outside the Go heap: shared
// files (memfd, tmpfs, hugetlbfs) mapped a second time as the alias of a guest's
// memory, anonymous buffers for the kernel or a NIC to write into, the mappings
// of other processes, and the holes of sparse files.
//
// Mappings are reserved without memory behind them (MAP_NORESERVE), so that a
// sparse region of 1 TiB costs page tables only where it is used. Nothing here
// touches a page, except where a function says so.
package sysmem
