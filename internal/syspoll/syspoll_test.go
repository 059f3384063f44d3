package syspoll

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pipe(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return p[0], p[1]
}

// until waits as callers do, over EINTR.
func until(fds []unix.PollFd, timeout time.Duration) (int, unix.Errno) {
	for {
		n, errno := Wait(fds, timeout)
		if errno != unix.EINTR {
			return n, errno
		}
	}
}

// allow gives n places for the time of a test.
func allow(t *testing.T, n int) {
	before := places.Load()
	Allow(n)
	t.Cleanup(func() {
		if left := places.Load(); left != int32(n) {
			t.Errorf("%d places were given and %d are left", n, left)
		}
		Allow(int(before))
	})
}

func TestWait(t *testing.T) {
	for _, places := range []int{0, 1} {
		t.Run(fmt.Sprint(places, " places"), func(t *testing.T) { testWait(t, places) })
	}
}

func testWait(t *testing.T, places int) {
	allow(t, places)
	r, w := pipe(t)
	fds := []unix.PollFd{{Fd: int32(r), Events: unix.POLLIN}}
	for _, timeout := range []time.Duration{0, time.Millisecond, 2 * Quiet} {
		if n, errno := until(fds, timeout); n != 0 || errno != 0 {
			t.Errorf("nothing there, %v: n %d, %v", timeout, n, errno)
		}
	}
	if _, err := unix.Write(w, []byte{1}); err != nil {
		t.Fatal(err)
	}
	for _, timeout := range []time.Duration{0, time.Second, -1} {
		if n, errno := until(fds, timeout); n != 1 || errno != 0 || fds[0].Revents != unix.POLLIN {
			t.Errorf("one byte there, %v: n %d, %v, events %#x", timeout, n, errno, fds[0].Revents)
		}
	}
	fds[0].Fd = 1 << 20
	if n, errno := until(fds, -1); n != 1 || errno != 0 || fds[0].Revents != unix.POLLNVAL {
		t.Errorf("no such descriptor: n %d, %v, events %#x", n, errno, fds[0].Revents)
	}
}

// TestWorldStops has the world stopped over and over while every thread but one
// sleeps in Wait: neither may keep the other from going on.
func TestWorldStops(t *testing.T) {
	const threads = 4
	allow(t, threads)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(threads + 1))
	done := make(chan unix.Errno)
	var ws []int
	for range threads {
		r, w := pipe(t)
		ws = append(ws, w)
		go func() {
			runtime.LockOSThread() // for good
			fds := []unix.PollFd{{Fd: int32(r), Events: unix.POLLIN}}
			for {
				n, errno := until(fds, -1)
				if errno != 0 || n != 1 {
					done <- errno
					return
				}
				var b [1]byte
				if _, err := unix.Read(r, b[:]); err != nil || b[0] == 0 {
					done <- 0
					return
				}
			}
		}()
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for range 50 {
			for _, w := range ws {
				if _, err := unix.Write(w, []byte{1}); err != nil {
					t.Error(err)
				}
			}
			runtime.GC()
		}
	}()
	select {
	case <-stopped:
	case <-time.After(time.Minute):
		t.Fatal("50 garbage collections took over a minute: a sleeping thread holds them up")
	}
	for _, w := range ws {
		if _, err := unix.Write(w, []byte{0}); err != nil {
			t.Fatal(err)
		}
	}
	for range threads {
		select {
		case errno := <-done:
			if errno != 0 {
				t.Errorf("a waiting thread ended with %v", errno)
			}
		case <-time.After(time.Minute):
			t.Fatal("a waiting thread did not see its last byte")
		}
	}
}
