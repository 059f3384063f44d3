package kmodtest

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/kvmrig"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// The module builds without a warning of the compiler or of sparse on kernels
// newer than the VM's.
func TestBuildsOnNewerKernels(t *testing.T) {
	for _, series := range []string{"6.12"} {
		t.Run(series, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			root, err := rig.Root()
			if err != nil {
				t.Fatal(err)
			}
			release, err := kvmrig.LatestRelease(ctx, series)
			if err != nil {
				t.Fatal(err)
			}
			build := filepath.Join(root, "build", "kmod")
			kdir, err := kvmrig.Headers(ctx, build, release)
			if err != nil {
				t.Fatal(err)
			}
			ko, err := kvmrig.BuildModule(ctx, build, filepath.Join(root, "kmod", "driver"), kdir, "pagewarp")
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %s", release, ko)
		})
	}
}
