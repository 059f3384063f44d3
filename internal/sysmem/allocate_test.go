package sysmem

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/hugetest"
	"golang.org/x/sys/unix"
)

// Go's scheduler sends signals to threads that are long in one place; allocating huge pages
// must not fail for that.
func TestAllocateUnderSignals(t *testing.T) {
	const size = 4 * hugetest.Size
	hugetest.Reserve(t, 4)
	fd, err := CreateMemfd("allocate", size, hugetest.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	wg.Go(func() {
		for !stop.Load() {
			if err := unix.Tgkill(unix.Getpid(), tid, unix.SIGURG); err != nil {
				t.Error(err)
				return
			}
			for end := time.Now().Add(100 * time.Microsecond); time.Now().Before(end); {
			}
		}
	})
	again := func() {
		if err := PunchHole(fd, 0, size); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
	interrupted := 0
	for end := time.Now().Add(10 * time.Second); interrupted == 0; again() {
		switch err := unix.Fallocate(fd, 0, 0, size); {
		case errors.Is(err, unix.EINTR):
			interrupted++
		case err != nil:
			t.Fatal(err)
		case time.Now().After(end):
			t.Fatal("no signal met an allocation: the test shows nothing")
		}
	}
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); again() {
		if err := Allocate(fd, 0, size); err != nil {
			t.Fatal(err)
		}
	}
}
