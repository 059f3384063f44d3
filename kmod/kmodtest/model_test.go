package kmodtest

import (
	"context"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/rig"
)

var modelErrors = regexp.MustCompile(`(?m)^State-vector .*, errors: ([0-9]+)$`)

// The model of the ring's memory ordering has no error, and has one as soon as
// any of the barriers is left out.
func TestModelOfTheBarriers(t *testing.T) {
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	spin, err := exec.LookPath("spin")
	if err != nil {
		t.Fatalf("%v; apt-get install spin ('make deps')", err)
	}
	for _, c := range []struct {
		name   string
		flags  []string
		errors string
		why    string
	}{
		{"waiters", nil, "0", ""},
		{"waiters without A", []string{"-DNO_A"}, "1", "invalid end state"},
		{"ring", []string{"-DRING"}, "0", ""},
		{"ring without B", []string{"-DRING", "-DNO_B"}, "1", "assertion violated"},
		{"ring without the consumer's B", []string{"-DRING", "-DNO_B2"}, "1", "assertion violated"},
		{"ring without C", []string{"-DRING", "-DNO_C"}, "1", "assertion violated"},
		{"ring without D", []string{"-DRING", "-DNO_D"}, "1", "invalid end state"},
		{"spinning", []string{"-DSPIN"}, "0", ""},
		{"spinning without E", []string{"-DSPIN", "-DNO_E"}, "1", "invalid end state"},
		{"spinning without F", []string{"-DSPIN", "-DNO_F"}, "1", "invalid end state"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			args := append(c.flags, "-search", filepath.Join(root, "kmod", "model", "ring.pml"))
			cmd := exec.CommandContext(ctx, spin, args...)
			cmd.Dir = t.TempDir() // it leaves a verifier and a trail
			out, err := cmd.CombinedOutput()
			m := modelErrors.FindSubmatch(out)
			if m == nil {
				t.Fatalf("spin found no verdict (%v):\n%s", err, out)
			}
			if string(m[1]) != c.errors {
				t.Errorf("%s errors, want %s:\n%s", m[1], c.errors, out)
			}
			if c.why != "" && !regexp.MustCompile(`(?m)^pan:1: `+c.why).Match(out) {
				t.Errorf("the error is not an %s:\n%s", c.why, out)
			}
		})
	}
}
