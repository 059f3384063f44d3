// Package floor measures what the machine itself does, without pagewarp, as
// plainly as it can be written: blocking system calls on locked threads, in
// processes of their own, without a garbage collector. A benchmark divides its
// figure by the floors of the same run, because absolute times on a shared
// machine drift.
//
//   - [LocalFault]: a userfaultfd fault of another process, whose page is in the
//     page cache already and only needs UFFDIO_CONTINUE;
//   - [RoundTrip]: a 32 B request answered by a 40 B header and a 4 KiB page, over
//     a connection of the kind that the engine uses;
//   - [Stream]: one socket, written from a mapped file, read into a fresh mapped
//     file;
//   - [Installs]: what UFFDIO_CONTINUE and UFFDIO_COPY cost, alone and batched.
//
// The processes are our own binary started anew, so [Main] must be called first
// thing in main or TestMain, and so must touch.Main.
package floor
