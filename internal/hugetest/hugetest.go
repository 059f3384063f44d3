// Package hugetest reserves huge pages for tests.
package hugetest

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Size is that of the huge pages, in bytes.
const Size = 2 << 20

const folder = "/sys/kernel/mm/hugepages/hugepages-2048kB/"

// patience is how long a test waits for another process's test, which has the
// reserve.
const patience = 2 * time.Minute

// Reserve has n huge pages of 2 MiB more than are in use, until the test has
// ended. One test at a time on a machine has the reserve: packages are tested
// side by side, and each puts back what it found.
func Reserve(t testing.TB, n int) {
	t.Helper()
	f, err := os.Open(folder + "nr_hugepages")
	if err != nil {
		t.Fatalf("this kernel has no huge pages of 2 MiB: %v", err)
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(began) > patience {
			f.Close()
			t.Fatalf("lock the reserve of huge pages, which another test may have: %v", err)
		}
	}
	t.Cleanup(func() { f.Close() }) // after the reserve was put back
	before := read(t, "nr_hugepages")
	used := before - read(t, "free_hugepages") + read(t, "resv_hugepages")
	set(t, used+n)
	t.Cleanup(func() { set(t, before) })
	if got := read(t, "nr_hugepages"); got < used+n {
		t.Fatalf("the kernel has found %d of %d huge pages of 2 MiB: free some memory", got-used, n)
	}
}

func read(t testing.TB, name string) int {
	t.Helper()
	b, err := os.ReadFile(folder + name)
	if err != nil {
		t.Fatalf("this kernel has no huge pages of 2 MiB: %v", err)
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func set(t testing.TB, n int) {
	t.Helper()
	if err := os.WriteFile(folder+"nr_hugepages", []byte(strconv.Itoa(n)), 0o600); err != nil {
		t.Fatalf("reserve huge pages (root is needed): %v", err)
	}
}
