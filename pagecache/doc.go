// Package pagecache knows which pages of a moving machine's memory have
// arrived, who may write each of those that have not, and which of them to
// fetch next. It does no I/O, reads no clock and knows no wire: times are
// passed in, and a run of pages is only numbers.
//
// # Residency
//
// A [Residency] holds two bits for each page of one region, 32 pages to an
// atomic word:
//
//	          Claim              Commit
//	Absent ----------> Installing ------> Resident
//	 |  ^                 |               |     ^
//	 |  '-----------------'               |     | Materialise
//	 |        Release, Recover     Remove |     |
//	 |                                    v     |
//	 '--------------------------------->  Zero -'
//	             Zero, Remove
//
// Whoever moves a page from Absent to Installing writes it, and nobody else
// ever does. That rule alone makes duplicates, retries and races between
// demand and precache harmless.
//
// Commit says "the content is complete", and where the content outlives the
// daemon it comes before the guest can see the page:
//
//   - Shared memory: write to the file, Commit, then UFFDIO_CONTINUE. A
//     daemon that is killed between the two finds a Resident page and only maps
//     it again. A page found Installing was certainly never visible, so Recover
//     makes it Absent and it is fetched anew.
//   - Private memory: UFFDIO_COPY, then Commit, since the staging buffer dies
//     with the daemon. A page found Installing may already be visible; it is
//     fetched anew, UFFDIO_COPY answers EEXIST, and that counts as installed.
//
// Zero means: known to read as zero, nothing written. A later fault installs a
// zero page (Materialise); when the drain ends, holes read as zero by
// themselves. Whoever serves a fault on a Zero page must not write to it, since
// another fault may have mapped it already: UFFDIO_ZEROPAGE, or a read through
// the alias that lets the kernel allocate, both of which may be done twice.
//
// Remove is for memory that the guest gave back (a balloon). It leaves
// Installing pages alone and counts them: their installer has to end its claim
// first, then Remove is called again.
//
// A page never goes back from Resident or Zero to Absent, so
// [Residency.Remaining] only falls, and 0 is final.
//
// # Planner
//
// A [Planner] decides what precache fetches next, over all regions of a
// machine. Policies propose pages or blocks, in order of preference: [Hot] has a
// list from the source, [Around] reads ahead of walks, [Bubbles] grow around
// recent faults (Hines and Gopalan, "Post-copy based live virtual machine
// migration using adaptive pre-paging and dynamic self-ballooning", VEE 2009,
// section 3.1), the [Sweep] takes everything else. The planner owns what has been
// handed out: a block is planned once, no page is in flight twice, and runs that a
// dead channel left unanswered come first.
//
// # Window and limiter
//
// A [Window] says how much precache may be in flight: the windowed maximum of
// the delivery rate times the windowed minimum of the answer time, after BBR
// (Cardwell, Cheng, Gunn, Yeganeh and Jacobson, "BBR: Congestion-Based
// Congestion Control", ACM Queue 14(5), 2016). A [Limiter] holds a bandwidth
// cap.
package pagecache
