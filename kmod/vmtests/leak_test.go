//go:build kmodvm && kmoddebug

package vmtests

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A kernel that checks all that it does is several times slower.
func init() { patience = 2 * time.Minute }

// TestKmemleak is the last program in a VM whose kernel has kmemleak: nothing that the
// module has allocated has been lost by all the tests before. See the kernel's
// Documentation/dev-tools/kmemleak.rst.
func TestKmemleak(t *testing.T) {
	const dir = "/sys/kernel/debug"
	if err := unix.Mount("debugfs", dir, "debugfs", 0, ""); err != nil && err != unix.EBUSY {
		t.Fatal(err)
	}
	const file = dir + "/kmemleak"
	// What is younger than five seconds is not looked at (MSECS_MIN_AGE of
	// mm/kmemleak.c); RCU frees a little later, and the second scan is after that.
	for range 2 {
		time.Sleep(6 * time.Second)
		must(t, os.WriteFile(file, []byte("scan"), 0))
	}
	text, err := os.ReadFile(file)
	must(t, err)
	leaks := strings.Split(string(text), "unreferenced object ")
	t.Logf("%d objects without a reference in the kernel", len(leaks)-1)
	for _, leak := range leaks[1:] {
		if strings.Contains(leak, "[pagewarp") {
			t.Errorf("leaked: %s", leak)
		} else {
			t.Logf("of the kernel's own: %s", leak)
		}
	}
}
