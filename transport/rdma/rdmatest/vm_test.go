package rdmatest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/kvmrig"
	"github.com/pagewarp/pagewarp/internal/kvmrig/rigtest"
	"github.com/pagewarp/pagewarp/internal/rig"
	"github.com/pagewarp/pagewarp/internal/sched"
)

// modules are what soft-RoCE needs; without crc32_generic adding a link fails with
// ENOENT, since nothing declares that rdma_rxe asks for it.
var modules = []string{"dummy", "udp_tunnel", "ip6_udp_tunnel", "ib_core", "ib_uverbs", "crc32_generic", "rdma_rxe",
	"veth", "sch_tbf"} // a link of a limited rate, for BenchmarkSlowLink

const provider = "/usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav34.so"

// TestInVM boots once and reports every test that ran there.
func TestInVM(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 22*time.Minute, errors.New("the VM's deadline"))
	defer cancel()
	cfg, release := prepare(t, ctx)
	// For work on single tests of one program; RDMA_SETUPS is for TestManySetUps, 3 to 5 ms each.
	only, setUps := os.Getenv("RDMA_PROGRAM"), os.Getenv("RDMA_SETUPS")
	timeout := "10m"
	if setUps != "" {
		timeout = "20m"
	}
	run := func(program, tests string) string {
		if only == program || only == "" && program == "rdma" {
			tests = cmp.Or(os.Getenv("RDMA_RUN"), tests)
		}
		return "-test.run=" + tests
	}
	rdma := compile(t, ctx, &cfg, "rdma.test", "./transport/rdma", "-ldflags=-s -w")
	underMemcheck(t, ctx, &cfg)
	cfg.Programs = append(cfg.Programs,
		kvmrig.Program{Name: "rdma", Path: rdma, Args: []string{"-test.v", "-test.timeout=" + timeout, "-rapid.checks=10", run("rdma", ".")},
			Env: []string{"RDMA_SETUPS=" + setUps}},
		kvmrig.Program{Name: "faultd", Path: compile(t, ctx, &cfg, "faultd.test", "./faultd", "-ldflags=-s -w"),
			Args: []string{"-test.v", "-test.timeout=6m", run("faultd", "^TestRDMA")}},
		// The shim under AddressSanitizer, whose leak check runs at the end.
		kvmrig.Program{Name: "asan", Path: compile(t, ctx, &cfg, "rdma-asan.test", "./transport/rdma", "-asan"),
			Args: []string{"-test.v", "-test.timeout=5m", run("asan", "^Test(WrongKey|ReadPastTheEnd|SourceGone|LinkDown|Budget|Memlock|BatchHostile|BatchTwice|BatchGone|BatchNotReady)$")}})
	cfg.Programs = append(cfg.Programs, relocations(t, ctx, &cfg, run("relocate", "^TestRDMA")))
	if only != "" {
		cfg.Programs = slices.DeleteFunc(cfg.Programs, func(p kvmrig.Program) bool { return p.Name != only })
	}
	rigtest.Report(t, ctx, cfg, release)
}

// relocations are the tests of whole relocations: QEMU in QEMU, two daemons. It
// adds what they need.
func relocations(t testing.TB, ctx context.Context, cfg *kvmrig.Config, run string) kvmrig.Program {
	t.Helper()
	files, err := kvmrig.QEMU(ctx)
	if err != nil {
		t.Fatal(err)
	}
	merge(cfg, files)
	daemon := build(t, ctx, cfg, "pagewarpd", "./cmd/pagewarpd", "build", "-tags", "rdma,crashtest", "-ldflags=-s -w")
	command := rigtest.Build(t, ctx, "rdma", "pagewarp", "./cmd/pagewarp", nil, "build", "-ldflags=-s -w")
	merge(cfg, []kvmrig.File{{Path: "/opt/pagewarpd", From: daemon}, {Path: "/opt/pagewarp", From: command}})
	cfg.MemMiB = 2048
	return kvmrig.Program{
		Name: "relocate", Path: rigtest.Build(t, ctx, "rdma", "pagewarpd.test", "./cmd/pagewarpd", nil, "test", "-c", "-tags", "rdmavm,kmodvm", "-ldflags=-s -w"),
		Args: []string{"-test.v", "-test.timeout=14m", run},
		Env:  []string{"PAGEWARP_TEST_BINARIES=/opt"},
	}
}

// BenchmarkInVM runs the benchmarks in the VM and prints what they print. It is
// one run, whatever b.N.
func BenchmarkInVM(b *testing.B) {
	ctx, cancel := context.WithTimeoutCause(b.Context(), 420*time.Second, errors.New("the VM's deadline"))
	defer cancel()
	// The VM's CPUs sleep as threads of this host do, whose CPUs a relocation keeps awake.
	if awake, err := sched.Awake(); err != nil {
		fmt.Printf("the host's CPUs may sleep, which the figures have in them: %v\n", err)
	} else {
		defer awake.Close()
	}
	cfg, release := prepare(b, ctx)
	for _, tool := range []string{"ib_read_lat", "ib_read_bw"} {
		add(b, ctx, &cfg, "/usr/bin/"+tool)
	}
	cfg.Programs = []kvmrig.Program{relocations(b, ctx, &cfg, "-test.run=^TestMeasure"), {Name: "bench", Path: compile(b, ctx, &cfg, "rdma.test", "./transport/rdma"),
		Args: []string{"-test.run=^$", "-test.bench=" + cmp.Or(os.Getenv("RDMA_RUN"), "^Benchmark(Demand|Precache)$"), "-test.benchtime=1x", "-test.timeout=150s"}},
		{Name: "fault", Path: compile(b, ctx, &cfg, "fault.test", "./bench/fault"), Args: []string{"-test.run=^$", "-test.bench=" + cmp.Or(os.Getenv("RDMA_RUN"), "RDMA"), "-test.benchtime=1x"}}}
	if only := os.Getenv("RDMA_PROGRAM"); only != "" { // for work on one of them
		cfg.Programs = slices.DeleteFunc(cfg.Programs, func(p kvmrig.Program) bool { return p.Name != only })
	}
	o, err := kvmrig.Run(ctx, cfg)
	if err != nil {
		b.Fatal(err)
	}
	if o.Verdict != nil {
		b.Error(o.Verdict)
	}
	for _, r := range o.Results {
		fmt.Printf("kernel %s under %s:\n%s", release, o.Accel, r.Output)
	}
	b.ReportMetric(0, "ns/op")
}

// prepare makes the VM's modules and the provider of rxe; programs are the
// caller's.
func prepare(t testing.TB, ctx context.Context) (cfg kvmrig.Config, release string) {
	t.Helper()
	kernel, _, err := rig.GuestImage()
	if err != nil {
		t.Fatal(err)
	}
	if release, err = kvmrig.GuestRelease(filepath.Dir(kernel)); err != nil {
		t.Fatal(err)
	}
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "build", "rdma")
	cfg = kvmrig.Config{Dir: filepath.Join(dir, "vm"), Kernel: kernel, CacheDir: filepath.Dir(kernel), MemMiB: 1536}
	if cfg.Modules, err = kvmrig.KernelModules(ctx, dir, release, modules...); err != nil {
		t.Fatal(err)
	}
	kdir, err := kvmrig.Headers(ctx, rigtest.ModuleDir(t), release)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Modules = append(cfg.Modules, rigtest.Module(t, ctx, kdir, "pagewarp", "kmod/driver")) // memory on the character device
	if _, err := os.Stat(provider); err != nil {
		t.Fatalf("%v; install the package ibverbs-providers ('make deps')", err)
	}
	add(t, ctx, &cfg, provider)
	cfg.Files = append(cfg.Files, kvmrig.File{Path: "/etc/libibverbs.d/rxe.driver", From: "/etc/libibverbs.d/rxe.driver"})
	return cfg, release
}

// compile builds the tests of a package, likewise.
func compile(t testing.TB, ctx context.Context, cfg *kvmrig.Config, name, pkg string, args ...string) string {
	t.Helper()
	return build(t, ctx, cfg, name, pkg, append([]string{"test", "-c", "-tags", "rdma,rdmavm,kmodvm"}, args...)...)
}

// build builds a program with cgo, and adds what it loads.
func build(t testing.TB, ctx context.Context, cfg *kvmrig.Config, name, pkg string, args ...string) string {
	t.Helper()
	path := rigtest.Build(t, ctx, "rdma", name, pkg, []string{"CGO_ENABLED=1"}, args...)
	files, err := kvmrig.Installed(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	merge(cfg, slices.DeleteFunc(files, func(f kvmrig.File) bool { return f.Path == path }))
	return path
}

// add adds installed programs and libraries, with what they load.
func add(t testing.TB, ctx context.Context, cfg *kvmrig.Config, paths ...string) {
	t.Helper()
	files, err := kvmrig.Installed(ctx, paths...)
	if err != nil {
		t.Fatal(err)
	}
	merge(cfg, files)
}

// merge adds the files that are not there yet.
func merge(cfg *kvmrig.Config, files []kvmrig.File) {
	for _, f := range files {
		if !slices.ContainsFunc(cfg.Files, func(g kvmrig.File) bool { return g.Path == f.Path }) {
			cfg.Files = append(cfg.Files, f)
		}
	}
}
