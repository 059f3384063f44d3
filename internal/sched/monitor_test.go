package sched

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sleeps counts how often a thread has gone to sleep of its own.
func sleeps(t *testing.T, tid int) (n int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", tid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "\nvoluntary_ctxt_switches:")
	if _, err := fmt.Sscan(rest, &n); !ok || err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	return n
}

// perSecond is how often the monitor sleeps while threads of the process sleep in system
// calls, from which it takes the processors, and others work.
func perSecond(t *testing.T, tid int) float64 {
	t.Helper()
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					unix.Poll(nil, 1) // ms
				}
			}
		})
	}
	before, begin := sleeps(t, tid), time.Now()
	for time.Since(begin) < 300*time.Millisecond {
	}
	n := sleeps(t, tid) - before
	close(done)
	wg.Wait()
	return float64(n) / 0.3
}

// TestUsualSlack: a thread that was born with the monitor's slack does not keep it for
// the bulk of the pages.
func TestUsualSlack(t *testing.T) {
	got := make(chan int)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(Monitor), 0, 0, 0)
		if err := Lower(0); err != nil {
			t.Error(err)
		}
		slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
		if err != nil {
			t.Error(err)
		}
		got <- slack
	}()
	if slack := <-got; slack != int(50*time.Microsecond) {
		t.Errorf("a slack of %d ns", slack)
	}
}

// TestQuietMonitor: the thread that is found is the one that wakes all the time, and
// with slack it does so as often as that allows.
func TestQuietMonitor(t *testing.T) {
	tid, err := monitorThread()
	if err != nil {
		t.Fatal(err)
	}
	loud := perSecond(t, tid)
	if err := QuietMonitor(Monitor); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := QuietMonitor(50 * time.Microsecond); err != nil { // the kernel's default
			t.Error(err)
		}
	})
	quiet := perSecond(t, tid)
	t.Logf("%.0f and %.0f sleeps a second", loud, quiet)
	if loud < 500 || quiet > 2500 { // 1/(20 + 500 µs), and some that others' timers bring on
		t.Errorf("the monitor sleeps %.0f times a second, with a slack of %v %.0f times", loud, Monitor, quiet)
	}
}
