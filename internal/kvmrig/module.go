package kvmrig

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// stampPattern finds the release in the name of a kernel package's file.
var stampPattern = regexp.MustCompile(`^linux-image-([^_]+?)(-unsigned)?_`)

// GuestRelease returns the release of the kernel that 'make guest' put into dir,
// such as 6.1.0-56-amd64.
func GuestRelease(dir string) (string, error) {
	stamp, err := os.ReadFile(filepath.Join(dir, "kernel.stamp"))
	if err != nil {
		return "", fmt.Errorf("the test guest's kernel is not there: %w; run 'make guest'", err)
	}
	m := stampPattern.FindSubmatch(stamp)
	if m == nil {
		return "", fmt.Errorf("%s/kernel.stamp names no kernel package: %q; remove %s and run 'make guest'", dir, stamp, dir)
	}
	return string(m[1]), nil
}

// LatestRelease returns the newest kernel release of a series, such as "6.12",
// for which the package lists have headers.
func LatestRelease(ctx context.Context, series string) (string, error) {
	text, err := output(exec.CommandContext(ctx, "apt-cache", "pkgnames", "linux-headers-"+series+"."))
	if err != nil {
		return "", err
	}
	var best, bestKey string
	for name := range strings.FieldsSeq(text) {
		release := strings.TrimPrefix(name, "linux-headers-")
		if !strings.HasSuffix(release, "-amd64") || strings.Contains(release, "-cloud-") || strings.Contains(release, "-rt-") {
			continue
		}
		key := numbers.ReplaceAllStringFunc(release, func(n string) string { return fmt.Sprintf("%8s", n) })
		if key > bestKey {
			best, bestKey = release, key
		}
	}
	if best == "" {
		return "", fmt.Errorf("apt knows no linux-headers-%s.*-amd64; run apt-get update, or add Debian's backports", series)
	}
	return best, nil
}

var numbers = regexp.MustCompile(`[0-9]+`)

// Headers downloads and unpacks the header packages of a Debian kernel release
// below dir, unless they are there, and returns the folder to build against.
func Headers(ctx context.Context, dir, release string) (string, error) {
	root := filepath.Join(dir, "headers-"+release)
	kdir := filepath.Join(root, "usr", "src", "linux-headers-"+release)
	if _, err := os.Stat(filepath.Join(root, "complete")); err == nil {
		return kdir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(dir, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(root, "complete")); err == nil {
		return kdir, nil
	}
	tmp, err := os.MkdirTemp(dir, "headers-*.tmp")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	packages, err := headerPackages(ctx, release)
	if err != nil {
		return "", err
	}
	args := []string{"-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download"}
	download := exec.CommandContext(ctx, "apt-get", append(args, packages...)...)
	download.Dir = tmp
	if _, err := output(download); err != nil {
		return "", fmt.Errorf("download the kernel's headers: %w", err)
	}
	if err := unpack(ctx, tmp, root); err != nil {
		return "", err
	}
	// The Makefile of the headers names the place where they would be installed.
	makefile := filepath.Join(kdir, "Makefile")
	text, err := os.ReadFile(makefile)
	if err != nil {
		return "", err
	}
	fixed := strings.ReplaceAll(string(text), "/usr/src/", filepath.Join(root, "usr", "src")+"/")
	if err := os.WriteFile(makefile, []byte(fixed), 0o644); err != nil {
		return "", err
	}
	return kdir, os.WriteFile(filepath.Join(root, "complete"), nil, 0o644)
}

// headerPackages lists the packages that make the headers of a release whole.
func headerPackages(ctx context.Context, release string) ([]string, error) {
	headers := "linux-headers-" + release
	text, err := output(exec.CommandContext(ctx, "apt-cache", "depends", headers))
	if err != nil {
		return nil, fmt.Errorf("find the headers of kernel %s: %w (is a newer kernel out? remove build/guest and run 'make guest')", release, err)
	}
	packages := []string{headers}
	for line := range strings.Lines(text) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if ok && (strings.HasPrefix(name, "linux-headers-") || strings.HasPrefix(name, "linux-kbuild-")) {
			packages = append(packages, name)
		}
	}
	if len(packages) != 3 {
		return nil, fmt.Errorf("headers of kernel %s are in the packages %q, want three", release, packages)
	}
	return packages, nil
}

func unpack(ctx context.Context, from, root string) error {
	debs, _ := filepath.Glob(filepath.Join(from, "*.deb"))
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	for _, deb := range debs {
		if _, err := output(exec.CommandContext(ctx, "dpkg", "-x", deb, root)); err != nil {
			return err
		}
	}
	return nil
}

// BuildModule builds the module whose sources are in src against kdir, in a
// folder below dir, and returns the path of name.ko. Any warning of the compiler
// or of sparse is an error.
func BuildModule(ctx context.Context, dir, src, kdir, name string) (string, error) {
	work := filepath.Join(dir, name+"-"+strings.TrimPrefix(filepath.Base(kdir), "linux-headers-"))
	if err := os.MkdirAll(work, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(work, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	ko := filepath.Join(work, name+".ko")
	sum, err := copySources(src, work)
	if err != nil {
		return "", err
	}
	stamp := filepath.Join(work, "stamp")
	if old, err := os.ReadFile(stamp); err == nil && string(old) == sum {
		if _, err := os.Stat(ko); err == nil {
			return ko, nil
		}
	}
	if _, err := exec.LookPath("sparse"); err != nil {
		return "", fmt.Errorf("build the module: %w; apt-get install sparse ('make deps')", err)
	}
	args := []string{"-C", kdir, "M=" + work, "W=1", "C=2", "CHECK=sparse -Wsparse-error",
		// Type information would need pahole and vmlinux.
		"CONFIG_DEBUG_INFO_BTF_MODULES=", fmt.Sprintf("-j%d", runtime.NumCPU()), "modules"}
	// An output that is not a terminal's may be in any language otherwise.
	cmd := exec.CommandContext(ctx, "make", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MAKEFLAGS=", "MAKELEVEL=")
	text, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the module against %s: %w:\n%s", kdir, err, text)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, work) && (strings.Contains(line, "warning:") || strings.Contains(line, "error:")) {
			return "", fmt.Errorf("build the module against %s: %s", kdir, strings.TrimSpace(line))
		}
	}
	return ko, os.WriteFile(stamp, []byte(sum), 0o644)
}

// copySources copies the files of src to work where they differ, and returns a
// digest of them.
func copySources(src, work string) (string, error) {
	entries, err := os.ReadDir(src)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, e := range entries {
		if !slices.Contains([]string{".c", ".h", ""}, filepath.Ext(e.Name())) || !e.Type().IsRegular() {
			continue
		}
		content, err := os.ReadFile(filepath.Join(src, e.Name()))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n", e.Name(), len(content))
		h.Write(content)
		to := filepath.Join(work, e.Name())
		if old, err := os.ReadFile(to); err == nil && string(old) == string(content) {
			continue
		}
		if err := os.WriteFile(to, content, 0o644); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%x\n", h.Sum(nil)), nil
}

// lock keeps two builds in one folder apart.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// output runs cmd; what it complained of is part of the error.
func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
