package accel

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake writes an emulator that runs the given shell commands.
func fake(t *testing.T, script string) Options {
	t.Helper()
	dir := t.TempDir()
	o := Options{
		QEMU: filepath.Join(dir, "qemu"), Kernel: filepath.Join(dir, "vmlinuz"),
		Device: "/dev/null", CacheDir: filepath.Join(dir, "cache"), Limit: 5 * time.Second,
	}
	for path, content := range map[string]string{
		o.QEMU:   "#!/bin/sh\necho x >>" + dir + "/runs\n" + script + "\n",
		o.Kernel: "kernel",
	} {
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		name, script, accel, reason string
		limit                       time.Duration
	}{
		{"the kernel speaks", `printf '\r\n[    0.000000] Linux version 6.1\n'; exec sleep 60`, KVM, "first line under KVM", 0},
		{"the kernel is silent", `exec sleep 60`, TCG, "did not get to its first line", 300 * time.Millisecond},
		{"only the boot stub speaks", `printf 'Probing EDD (edd=off to disable)... ok\r\n\r\nInvalid physical address chosen!\r\n'; exec sleep 60`, TCG, "did not get to its first line", 300 * time.Millisecond},
		{"the line comes in pieces", `printf 'Linux ver'; sleep 0.1; printf 'sion 6.1\n'; exec sleep 60`, KVM, "first line under KVM", 0},
		{"QEMU refuses", `echo 'no KVM for you' >&2; exit 1`, TCG, "no KVM for you", 0},
		{"half a line", `printf 'garb'; exit 0`, TCG, "does not run with KVM", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := fake(t, tc.script)
			if tc.limit != 0 {
				o.Limit = tc.limit
			}
			for range 2 {
				c, err := Choose(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				if c.Accel != tc.accel || !strings.Contains(c.Reason, tc.reason) {
					t.Errorf("choice %+v, want %s because of %q", c, tc.accel, tc.reason)
				}
			}
			runs, _ := os.ReadFile(filepath.Join(filepath.Dir(o.QEMU), "runs"))
			if string(runs) != "x\n" {
				t.Errorf("the emulator ran %d times, want once and then the cache", len(runs)/2)
			}
		})
	}
}

func TestChooseErrors(t *testing.T) {
	o := fake(t, "exec sleep 60")
	o.Kernel += ".none"
	if _, err := Choose(t.Context(), o); err == nil || !strings.Contains(err.Error(), "make guest") {
		t.Errorf("without a kernel: %v", err)
	}
	o = fake(t, "")
	o.QEMU += ".none"
	if _, err := Choose(t.Context(), o); err == nil || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("without an emulator: %v", err)
	}
	o = fake(t, "")
	o.Device += ".none"
	if c, err := Choose(t.Context(), o); err != nil || c.Accel != TCG {
		t.Errorf("without a device: %+v, %v", c, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o = fake(t, "exec sleep 60")
	if c, err := Choose(ctx, o); err == nil {
		t.Errorf("after the context's end: %+v", c)
	}
	if _, ok := load(o.cachePath()); ok {
		t.Error("a broken-off trial was kept")
	}
}
