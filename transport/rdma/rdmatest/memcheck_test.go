package rdmatest

import (
	"context"
	"debug/elf"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pagewarp/pagewarp/internal/kvmrig"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// underMemcheck adds what it takes to have valgrind's memcheck look at the shim
// (TestShimUnderMemcheck), which a program in C calls there.
func underMemcheck(t testing.TB, ctx context.Context, cfg *kvmrig.Config) {
	t.Helper()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	shim, check := filepath.Join(root, "transport", "rdma"), filepath.Join(root, "build", "rdma", "shimcheck")
	// With its symbols exported, so that libibverbs takes its ioctl and write.
	if out, err := exec.CommandContext(ctx, "cc", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-I", shim, "-rdynamic", "-o", check,
		filepath.Join(shim, "rdmatest", "testdata", "shimcheck.c"), filepath.Join(shim, "verbs_shim.c"), "-libverbs").CombinedOutput(); err != nil {
		t.Fatalf("build shimcheck: %v (it takes the packages libibverbs-dev and valgrind: 'make deps')\n%s", err, out)
	}
	files, err := kvmrig.Installed(ctx, check, "/usr/bin/valgrind.bin")
	if err != nil {
		t.Fatal(err)
	}
	for i := range files {
		if files[i].Path == check {
			files[i].Path = "/opt/shimcheck"
		}
	}
	// memcheck replaces functions of the dynamic linker, whose names its file has not.
	paths := []string{debugFile(t, "/lib64/ld-linux-x86-64.so.2")}
	for _, name := range []string{"memcheck-amd64-linux", "vgpreload_core-amd64-linux.so", "vgpreload_memcheck-amd64-linux.so", "default.supp"} {
		paths = append(paths, filepath.Join("/usr/libexec/valgrind", name))
	}
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%v; install the packages valgrind and libc6-dbg ('make deps')", err)
		}
		files = append(files, kvmrig.File{Path: path, From: path})
	}
	merge(cfg, files)
}

// debugFile is where Debian has the symbols of an installed file, by its build id.
func debugFile(t testing.TB, path string) string {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := f.Section(".note.gnu.build-id")
	if s == nil {
		t.Fatalf("%s has no build id", path)
	}
	note, err := s.Data() // three words of header, "GNU\0", the id
	if err != nil || len(note) < 18 {
		t.Fatalf("%s: a build id of %d bytes (%v)", path, len(note), err)
	}
	id := hex.EncodeToString(note[16:])
	return filepath.Join("/usr/lib/debug/.build-id", id[:2], id[2:]+".debug")
}
