package kvmrig_test

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

// A kernel that panics is a failure, whatever the programs said before.
func TestPanicIsNoticed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	kernel, _, err := rig.GuestImage()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	crash := filepath.Join(dir, "crash")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", crash, "github.com/pagewarp/pagewarp/internal/kvmrig/crash")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	o, err := kvmrig.Run(ctx, kvmrig.Config{Dir: dir, Kernel: kernel, CacheDir: filepath.Dir(kernel), MemMiB: 256,
		Programs: []kvmrig.Program{{Name: "crash", Path: crash}}})
	if err != nil {
		t.Fatal(err)
	}
	if o.Verdict == nil || !strings.Contains(o.Verdict.Error(), "without a verdict") {
		t.Errorf("verdict %v, want that there was none", o.Verdict)
	}
	if len(o.Warnings) == 0 || !strings.Contains(o.Console, "sysrq") {
		t.Errorf("the kernel's panic is not in its log: warnings %q", o.Warnings)
	}
	if len(o.Results) != 1 || o.Results[0].Code != -1 || len(o.Results[0].Tests) != 1 {
		t.Errorf("results %+v, want one that did not end", o.Results)
	}
}

// A kernel that dies before its first program is booted once more, and no oftener.
func TestEarlyDeathIsBootedAgain(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	kernel, _, err := rig.GuestImage()
	if err != nil {
		t.Fatal(err)
	}
	o, err := kvmrig.Run(ctx, kvmrig.Config{Dir: t.TempDir(), Kernel: kernel, CacheDir: filepath.Dir(kernel), MemMiB: 256, Append: "rdinit=/none"})
	if err != nil {
		t.Fatal(err)
	}
	want := 1
	if o.Accel == "tcg" {
		want = 2
	}
	if o.Verdict == nil || len(o.Warnings) == 0 || o.Boots != want {
		t.Errorf("a kernel without a first program, under %s: verdict %v, warnings %q, %d boots, want %d", o.Accel, o.Verdict, o.Warnings, o.Boots, want)
	}
}

func TestNoPackageInStamp(t *testing.T) {
	dir := t.TempDir()
	if _, err := kvmrig.GuestRelease(dir); err == nil || !strings.Contains(err.Error(), "make guest") {
		t.Errorf("no stamp: %v", err)
	}
	for text, want := range map[string]string{
		"linux-image-6.1.0-56-amd64_6.1.192-2_amd64.deb\n":         "6.1.0-56-amd64",
		"linux-image-6.12.9+deb12-amd64-unsigned_6.12.9_amd64.deb": "6.12.9+deb12-amd64",
		"something else": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, "kernel.stamp"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := kvmrig.GuestRelease(dir); got != want || (err == nil) != (want != "") {
			t.Errorf("stamp %q: %q, %v; want %q", text, got, err, want)
		}
	}
}
