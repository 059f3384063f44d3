//go:build kmoddebug

package kmodtest

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/kvmrig"
	"github.com/pagewarp/pagewarp/internal/kvmrig/rigtest"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// TestOnDebugKernel runs the driver's tests on a kernel that checks its locks, its
// memory accesses and its leaks while it runs: 'make test-kmod-debug'.
func TestOnDebugKernel(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 880*time.Second, errors.New("the VM's deadline"))
	defer cancel()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "build", "kmod")
	k, err := kvmrig.FindDebugKernel(dir)
	if err != nil {
		t.Fatal(err)
	}
	cfg := kvmrig.Config{Modules: []string{k.Module("drivers/block/brd.ko")}, Dir: filepath.Join(dir, "vm-debug"), Kernel: k.Image,
		CacheDir: dir, MemMiB: 2048} // a byte of KASAN's for each eight
	cfg.Modules = append(cfg.Modules, buildModules(t, ctx, k.Build)...)
	path := build(t, ctx, "vmtests-debug.test", "./kmod/vmtests", "test", "-c", "-tags", "kmodvm,kmoddebug")
	cfg.Programs = []kvmrig.Program{
		// TestSpinInACrowd and TestPollInACrowd want faults that take less than anybody may look
		// for (a millisecond), which on this kernel few do.
		{Name: "vmtests", Path: path, Args: []string{"-test.v", "-test.timeout=600s", "-test.skip=^(TestKmemleak|TestSpinInACrowd|TestPollInACrowd)$"}},
		{Name: "leaks", Path: path, Args: []string{"-test.v", "-test.timeout=250s", "-test.run=^TestKmemleak$"}},
	}
	rigtest.Report(t, ctx, cfg, "with its own checks")
}
