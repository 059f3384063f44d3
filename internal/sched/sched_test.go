package sched

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onThread runs f on a thread that ends with it.
func onThread(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good
		f()
	}()
	<-done
}

func attr(t *testing.T) *unix.SchedAttr {
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Error(err)
		return &unix.SchedAttr{}
	}
	return a
}

func expect(t *testing.T, f *Fault, realtime bool) {
	t.Helper()
	a := attr(t)
	switch {
	case f.Refused() != nil:
		t.Errorf("the kernel refused: %v; run the tests as root", f.Refused())
	case f.Realtime() != realtime:
		t.Errorf("real-time is %v, want %v", f.Realtime(), realtime)
	case realtime && (a.Policy != unix.SCHED_RR || a.Priority != faultPriority):
		t.Errorf("policy %d, priority %d; want SCHED_RR, %d", a.Policy, a.Priority, faultPriority)
	case !realtime && (a.Policy != unix.SCHED_NORMAL || a.Nice != faultNice):
		t.Errorf("policy %d, nice %d; want SCHED_NORMAL, %d", a.Policy, a.Nice, faultNice)
	}
}

func TestJudge(t *testing.T) {
	onThread(t, func() {
		f := Raise()
		expect(t, f, true)
		for _, step := range []struct {
			share    int
			realtime bool
		}{
			{shareLimit, true}, {shareLimit + 1, false}, {shareLimit/2 + 1, false}, {shareLimit/2 - 1, true}, {0, true}, {100, false},
		} {
			f.judge(step.share)
			expect(t, f, step.realtime)
		}
	})
}

// TestBusy has a fault thread that never sleeps: it must not stay real-time.
func TestBusy(t *testing.T) {
	onThread(t, func() {
		f := Raise()
		end := time.Now().Add(30 * time.Second)
		for f.Realtime() && time.Now().Before(end) {
			f.Tick()
		}
		expect(t, f, false)
		// And one that sleeps again becomes it again.
		for !f.Realtime() && time.Now().Before(end) {
			time.Sleep(time.Millisecond)
			f.Tick()
		}
		expect(t, f, true)
	})
}

// TestThreadsOfItsOwn: what a fault thread starts is ordinary.
func TestThreadsOfItsOwn(t *testing.T) {
	onThread(t, func() {
		expect(t, Raise(), true)
		onThread(t, func() {
			if a := attr(t); a.Policy != unix.SCHED_NORMAL || a.Nice < 0 {
				t.Errorf("another thread has policy %d, nice %d", a.Policy, a.Nice)
			}
		})
	})
}

func TestNil(t *testing.T) {
	var f *Fault
	f.Tick()
}

func TestLower(t *testing.T) {
	onThread(t, func() {
		want := min(attr(t).Nice+5, 19)
		if err := Lower(5); err != nil {
			t.Error(err)
		}
		if a := attr(t); a.Nice != want {
			t.Errorf("nice %d, want %d", a.Nice, want)
		}
		if err := Lower(100); err != nil {
			t.Error(err)
		}
		if a := attr(t); a.Nice != 19 {
			t.Errorf("nice %d, want 19", a.Nice)
		}
	})
}
