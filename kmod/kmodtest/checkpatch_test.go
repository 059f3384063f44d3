package kmodtest

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/kvmrig"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// TestCheckpatch runs the kernel's own style checker on the driver. What it must not
// ask for: a driver that is built for several kernels without asking which it is
// (LINUX_VERSION_CODE, CONSTANT_COMPARISON), and operations that are constant though
// they are those of shmem with a few replaced (CONST_STRUCT).
func TestCheckpatch(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	script, err := kvmrig.Checkpatch(ctx, filepath.Join(root, "build", "kmod"))
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, pattern := range []string{"driver/*.[ch]", "kmodtest/gup/*.c"} {
		found, _ := filepath.Glob(filepath.Join(root, "kmod", pattern)) // the patterns are good
		files = append(files, found...)
	}
	if len(files) < 9 {
		t.Fatalf("the driver has only the files %q", files)
	}
	cmd := exec.CommandContext(ctx, "perl", append([]string{script, "--no-tree", "--terse", "--show-types",
		"--ignore", "LINUX_VERSION_CODE,CONSTANT_COMPARISON,CONST_STRUCT", "-f"}, files...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}
