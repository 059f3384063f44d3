// Package touch is the faulting side of tests and benchmarks: a separate process
// that maps memory, hands out its userfaultfd, and touches pages when told to.
// It has to be another process, since a Go thread stuck in a page fault holds
// its P, and could stop the very goroutine that would serve the fault.
//
// The process is our own binary started anew, so [Main] must be called first
// thing in main or TestMain:
//
//	func TestMain(m *testing.M) {
//		touch.Main()
//		os.Exit(m.Run())
//	}
//
// [Start] starts one; a [Region] is memory mapped in it. Every method blocks
// until the process has done as told, which may take until a fault is served;
// methods may be called by several goroutines at a time. All waits end when the
// process dies or the context given to Start is done.
//
// In the process the garbage collector and preemption signals are off: either
// would stop, or wake, threads that wait in a fault.
package touch
