//go:build rdmavm

package rdma

import (
	"context"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/softroce"
)

// What valgrind exits with where it has found something.
const memcheckFound = 33

// The shim has no errors in the use of memory that memcheck would find: it runs all of its
// functions from C. A memory error and a leak that are made on purpose are found.
func TestShimUnderMemcheck(t *testing.T) {
	_, gid, err := Choose(softroce.Device, hostAddr)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		fault, finds string
		code         int
	}{
		{"", "PASS", 0},
		{"uninitialised", "uninitialised value", memcheckFound},
		{"leak", "definitely lost", memcheckFound},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		begin := time.Now()
		args := []string{"--leak-check=full", "--errors-for-leak-kinds=definite,indirect", "--error-exitcode=" + strconv.Itoa(memcheckFound),
			"/opt/shimcheck", softroce.Device, strconv.Itoa(gid.Index)}
		if c.fault != "" {
			args = append(args, c.fault)
		}
		out, err := exec.CommandContext(ctx, "/usr/bin/valgrind.bin", args...).CombinedOutput()
		cancel()
		code := 0
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			code, err = exit.ExitCode(), nil
		}
		if err != nil || code != c.code || !strings.Contains(string(out), c.finds) {
			t.Errorf("%q: exit code %d, want %d and %q (%v):\n%s", c.fault, code, c.code, c.finds, err, out)
		}
		t.Logf("%q: %v", c.fault, time.Since(begin).Round(time.Millisecond))
	}
}
