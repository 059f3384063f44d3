// Package pageserver is the source engine: it holds the frozen memory of a
// machine and answers fetches of its pages.
//
// An [Image] maps each region's file read-only and shared, so that an answer
// goes from the page cache to the socket without a copy of ours. [Serve] is the
// loop of one page channel; any number of them run over one image. The image
// lives until [Image.Release], whatever becomes of the channels: nothing is
// freed on hope. The example of package faultd shows a whole session.
//
// Three rules keep the source as it was:
//   - A hole of a shared file is never touched, because even a read through a
//     mapping would allocate the page. Which pages exist is asked of the kernel
//     for each fetch (mincore(2), then SEEK_DATA for what mincore does not
//     vouch for, such as pages in swap); hugetlbfs knows no SEEK_DATA, there the
//     pages are read with pread(2), which does not allocate.
//   - A file that is truncated behind our back costs the fetch, not the daemon:
//     the SIGBUS becomes a panic that the serving goroutine turns into REFUSE.
//   - Nothing is ever written.
package pageserver
