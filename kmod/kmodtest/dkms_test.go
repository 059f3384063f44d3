package kmodtest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/internal/kvmrig"
	"github.com/pagewarp/pagewarp/internal/rig"
)

// TestDKMS has dkms add, build, install and remove the driver from a copy of its
// folder, for the kernel of the test guest, in folders of its own.
func TestDKMS(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	kernel, _, err := rig.GuestImage()
	if err != nil {
		t.Fatal(err)
	}
	release, err := kvmrig.GuestRelease(filepath.Dir(kernel))
	if err != nil {
		t.Fatal(err)
	}
	kdir, err := kvmrig.Headers(ctx, filepath.Join(root, "build", "kmod"), release)
	if err != nil {
		t.Fatal(err)
	}
	driver := filepath.Join(root, "kmod", "driver")
	conf, err := os.ReadFile(filepath.Join(driver, "dkms.conf"))
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^PACKAGE_VERSION="(.+)"$`).FindSubmatch(conf)
	if version == nil {
		t.Fatalf("dkms.conf has no version:\n%s", conf)
	}
	dir := t.TempDir()
	src := filepath.Join(dir, "src", "pagewarp-"+string(version[1]))
	// dkms installs for kernels that have a folder only.
	for _, d := range []string{"tree", "installed/" + release, "src"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(src, os.DirFS(driver)); err != nil {
		t.Fatal(err)
	}
	dkms := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, "dkms", append(args, "-m", "pagewarp", "-v", string(version[1]), "-k", release, "--dkmstree", filepath.Join(dir, "tree"),
			"--sourcetree", filepath.Dir(src), "--installtree", filepath.Join(dir, "installed"), "--kernelsourcedir", kdir, "--no-depmod")...)
		cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		if cmd.Err != nil { // as users other than root do not have it in their path
			cmd.Path, cmd.Err = "/usr/sbin/dkms", nil
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			log, _ := os.ReadFile(filepath.Join(dir, "tree", "pagewarp", string(version[1]), "build", "make.log"))
			t.Fatalf("dkms %q: %v ('make deps' installs it)\n%s\n%s", args, err, out, log)
		}
		return string(out)
	}
	dkms("add")
	dkms("build")
	dkms("install")
	if out := dkms("status"); !strings.Contains(out, "installed") {
		t.Errorf("dkms status: %s", out)
	}
	module := filepath.Join(dir, "installed", release, "updates", "dkms", "pagewarp.ko")
	out, err := exec.CommandContext(ctx, "/sbin/modinfo", "-F", "vermagic", module).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), release+" ") {
		t.Errorf("the module that dkms installed is for %q (%v), want %s", out, err, release)
	}
	dkms("remove")
	if _, err := os.Stat(module); !os.IsNotExist(err) {
		t.Errorf("removed, but %s is there: %v", module, err)
	}
}
