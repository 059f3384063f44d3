package kmodtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/kvmrig"
	"github.com/pagewarp/pagewarp/internal/kvmrig/rigtest"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// programs are the test packages that run in the VM, built with the tag kmodvm.
var programs = []struct {
	name, pkg, run string
}{
	{"vmtests", "./kmod/vmtests", "."},
	{"faultd", "./faultd", "TestDevice"},
}

// TestInVM boots the test guest's kernel, and the newest of a later series, with
// the module, and reports every test that ran in it. KERNEL in the environment is the
// release of one more kernel that Debian has, as "6.1.0-56-rt-amd64".
func TestInVM(t *testing.T) {
	t.Run("guest", func(t *testing.T) { runInVM(t, "") })
	t.Run("6.12", func(t *testing.T) { runInVM(t, "6.12") })
	if release := os.Getenv("KERNEL"); release != "" {
		t.Run(release, func(t *testing.T) { runInVM(t, release) })
	}
}

// TestQEMUInVM relocates a machine on the device between two daemons, all inside a
// VM: QEMU in QEMU. The later kernel does the journey there and back only: crashes
// and rollbacks of the daemons do not differ by kernel.
func TestQEMUInVM(t *testing.T) {
	t.Run("guest", func(t *testing.T) { relocateInVM(t, "", "^TestDevice") })
	t.Run("6.12", func(t *testing.T) { relocateInVM(t, "6.12", "^TestDeviceThereAndBack$") })
}

func relocateInVM(t *testing.T, series, tests string) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 15*time.Minute, errors.New("the VM's deadline"))
	defer cancel()
	cfg, release := prepare(t, ctx, series)
	// The hosts of the test are joined by a bridge.
	modules, err := kvmrig.KernelModules(ctx, filepath.Dir(cfg.Dir), release, "llc", "stp", "bridge", "veth")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Dir += "-qemu"
	cfg.MemMiB = 1536
	cfg.Modules = append(modules, cfg.Modules...)
	if cfg.Files, err = kvmrig.QEMU(ctx); err != nil {
		t.Fatal(err)
	}
	enter, err := kvmrig.Installed(ctx, "/usr/bin/nsenter")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range enter {
		if !slices.ContainsFunc(cfg.Files, func(g kvmrig.File) bool { return g.Path == f.Path }) {
			cfg.Files = append(cfg.Files, f)
		}
	}
	for _, name := range []string{"pagewarp", "pagewarpd"} {
		cfg.Files = append(cfg.Files, kvmrig.File{Path: "/opt/" + name, From: build(t, ctx, name, "./cmd/"+name, "build", "-tags", "crashtest", "-ldflags=-s -w")})
	}
	cfg.Programs = []kvmrig.Program{{
		Name: "relocate", Path: build(t, ctx, "pagewarpd.test", "./cmd/pagewarpd", "test", "-c", "-tags", "kmodvm", "-ldflags=-s -w"),
		Args: []string{"-test.v", "-test.timeout=14m", "-test.run=" + tests},
		Env:  []string{"PAGEWARP_TEST_BINARIES=/opt"},
	}}
	rigtest.Report(t, ctx, cfg, release)
}

// build builds a package's command or tests for the VM.
func build(t testing.TB, ctx context.Context, name, pkg string, args ...string) string {
	t.Helper()
	return rigtest.Build(t, ctx, "kmod", name, pkg, nil, args...)
}

// runInVM boots once; series is that of the kernel or its release, or empty for the guest's.
func runInVM(t *testing.T, series string) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Minute, errors.New("the VM's deadline"))
	defer cancel()
	cfg, release := prepare(t, ctx, series)
	for _, p := range programs {
		if series != "" && p.name != "vmtests" {
			continue // the driver's own tests are enough for a second kernel
		}
		cfg.Programs = append(cfg.Programs, kvmrig.Program{Name: p.name, Path: build(t, ctx, p.name+".test", p.pkg, "test", "-c", "-tags", "kmodvm", "-ldflags=-s -w"),
			Args: []string{"-test.v", "-test.timeout=5m", "-test.run=" + p.run}})
	}
	rigtest.Report(t, ctx, cfg, release)
}

// BenchmarkInVM runs the benchmarks of vmtests in a VM of each kernel and prints what
// they print. It is one run, whatever b.N. CPUS in the environment is how many the VM
// has; 2 if it is not set. APPEND is more of the kernel's command line, BENCH which benchmarks.
func BenchmarkInVM(b *testing.B) {
	b.Run("guest", func(b *testing.B) { benchInVM(b, "") })
	b.Run("6.12", func(b *testing.B) { benchInVM(b, "6.12") })
}

func benchInVM(b *testing.B, series string) {
	ctx, cancel := context.WithTimeoutCause(b.Context(), 290*time.Second, errors.New("the VM's deadline"))
	defer cancel()
	cfg, release := prepare(b, ctx, series)
	cfg.Prealloc, cfg.Append = true, os.Getenv("APPEND")
	if n := os.Getenv("CPUS"); n != "" {
		var err error
		if cfg.CPUs, err = strconv.Atoi(n); err != nil || cfg.CPUs < 1 {
			b.Fatalf("CPUS=%q is no number of CPUs", n)
		}
	}
	cfg.Programs = []kvmrig.Program{{Name: "bench", Path: build(b, ctx, "vmtests.test", "./kmod/vmtests", "test", "-c", "-tags", "kmodvm"),
		Args: []string{"-test.run=^$", "-test.bench=" + cmp.Or(os.Getenv("BENCH"), "."), "-test.benchtime=1x", "-test.timeout=270s"}}}
	o, err := kvmrig.Run(ctx, cfg)
	if err != nil {
		b.Fatal(err)
	}
	if o.Verdict != nil {
		b.Error(o.Verdict)
	}
	for _, r := range o.Results {
		fmt.Printf("kernel %s under %s, %d CPUs:\n%s", release, o.Accel, cmp.Or(cfg.CPUs, 2), r.Output)
	}
	b.ReportMetric(0, "ns/op")
}

// prepare builds the modules for the guest's kernel, the newest of a series, or a release;
// the programs are the caller's.
func prepare(t testing.TB, ctx context.Context, series string) (cfg kvmrig.Config, release string) {
	t.Helper()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	kernel, _, err := rig.GuestImage()
	if err != nil {
		t.Fatal(err)
	}
	build := filepath.Join(root, "build", "kmod")
	if series == "" {
		release, err = kvmrig.GuestRelease(filepath.Dir(kernel))
	} else {
		if release = series; !strings.Contains(series, "-") {
			release, err = kvmrig.LatestRelease(ctx, series)
		}
		if err == nil {
			kernel, err = kvmrig.Kernel(ctx, build, release)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	kdir, err := kvmrig.Headers(ctx, build, release)
	if err != nil {
		t.Fatal(err)
	}
	modules, err := kvmrig.KernelModules(ctx, build, release, "brd") // to swap to
	if err != nil {
		t.Fatal(err)
	}
	cfg = kvmrig.Config{Modules: modules, Dir: filepath.Join(build, "vm-"+release), Kernel: kernel, CacheDir: filepath.Dir(kernel)}
	cfg.Modules = append(cfg.Modules, buildModules(t, ctx, kdir)...)
	return cfg, release
}

// buildModules builds the driver, and the module of ours that tests it, against kdir.
func buildModules(t testing.TB, ctx context.Context, kdir string) []string {
	t.Helper()
	return []string{rigtest.Module(t, ctx, kdir, "pagewarp", "kmod/driver"), rigtest.Module(t, ctx, kdir, "pagewarp_gup", "kmod/kmodtest/gup")}
}
