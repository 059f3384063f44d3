// Package rigtest is what tests that boot a VM by package kvmrig have in common:
// they build programs for it, and report what ran there as their own subtests.
package rigtest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/kvmrig"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// Build runs the go command with args, which build pkg, and returns the path of
// the program, build/FOLDER/NAME. It is static, unless args or env say otherwise.
func Build(t testing.TB, ctx context.Context, folder, name, pkg string, env []string, args ...string) string {
	t.Helper()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "build", folder, name)
	cmd := exec.CommandContext(ctx, "go", append(args, "-trimpath", "-o", path, pkg)...)
	cmd.Dir = root
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

// ModuleDir is where modules are built, and the headers of kernels are.
func ModuleDir(t testing.TB) string {
	t.Helper()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "build", "kmod")
}

// Module builds the module whose sources are in the folder src of the repository against
// kdir, and returns the path of name.ko.
func Module(t testing.TB, ctx context.Context, kdir, name, src string) string {
	t.Helper()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	path, err := kvmrig.BuildModule(ctx, ModuleDir(t), filepath.Join(root, src), kdir, name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Report boots the VM and reports every test that ran in it.
func Report(t *testing.T, ctx context.Context, cfg kvmrig.Config, release string) {
	t.Helper()
	o, err := kvmrig.Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("kernel %s under %s, %s", release, o.Accel, o.Took.Round(time.Millisecond))
	if o.Boots > 1 {
		t.Logf("the kernel had died at the first boot, before its first program")
	}
	for _, r := range o.Results {
		if len(r.Tests) == 0 {
			t.Errorf("%s ran no test:\n%s", r.Name, r.Output)
		}
		for _, test := range r.Tests {
			if strings.Contains(test.Name, "/") {
				continue // within its parent's outcome and output
			}
			t.Run(r.Name+"/"+test.Name, func(t *testing.T) {
				if !test.Passed {
					t.Error("failed in the VM, see the output of " + r.Name)
				}
			})
		}
		if r.Code != 0 || testing.Verbose() {
			t.Logf("%s exited with %d:\n%s", r.Name, r.Code, r.Output)
		}
	}
	if o.Verdict != nil {
		t.Errorf("%v\nthe kernel's last words:\n%s", o.Verdict, tail(o.Console, 60))
	}
}

// tail returns the last lines of a text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
