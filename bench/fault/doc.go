// Package fault measures demand faults through the whole engine, in processes
// of their own: a page server with the image, a fault daemon, and a process that
// touches the memory and times each touch. [Run] divides what it saw by the
// floors of the same run (package floor), with the link idle and with precache
// at full rate.
//
// [Engine] is these three processes; bench/stream uses it too. The processes are
// our own binary started anew, so [Main] must be called first thing in main or
// TestMain, and so must touch.Main and floor.Main.
package fault
