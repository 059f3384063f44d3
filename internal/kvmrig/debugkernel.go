package kvmrig

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// DebugKernel is a kernel with the kernel's own checks compiled in.
type DebugKernel struct {
	Image string // bzImage
	Build string // the folder to build modules against
	dir   string
}

func debugKernel(dir string) DebugKernel {
	build := filepath.Join(dir, "debug-kernel", sourcePackage)
	return DebugKernel{Image: filepath.Join(build, "arch", "x86", "boot", "bzImage"), Build: build, dir: filepath.Join(dir, "debug-kernel")}
}

// Module returns the path of a module that was compiled with the kernel; path is below
// its sources, as "drivers/block/brd.ko".
func (k DebugKernel) Module(path string) string { return filepath.Join(k.Build, path) }

// FindDebugKernel returns the kernel that [BuildDebugKernel] has left below dir.
func FindDebugKernel(dir string) (DebugKernel, error) {
	k := debugKernel(dir)
	if _, err := os.Stat(filepath.Join(k.dir, "stamp")); err != nil {
		return k, fmt.Errorf("no debug kernel in %s: %w; run 'make kmod-debug-kernel', which takes some ten minutes", k.dir, err)
	}
	return k, nil
}

// BuildDebugKernel compiles Debian's sources of the test guest's series below dir, with
// tinyconfig and what the file named fragment adds to that, unless that was done. It
// reports what it does to progress. The result takes 1.7 GB.
func BuildDebugKernel(ctx context.Context, dir, fragment string, progress io.Writer) (DebugKernel, error) {
	k := debugKernel(dir)
	text, err := os.ReadFile(fragment)
	if err != nil {
		return k, err
	}
	if err := os.MkdirAll(k.dir, 0o755); err != nil {
		return k, err
	}
	unlock, err := lock(filepath.Join(k.dir, ".lock"))
	if err != nil {
		return k, err
	}
	defer unlock()
	sum := fmt.Sprintf("%x\n", sha256.Sum256(text))
	stamp := filepath.Join(k.dir, "stamp")
	if old, err := os.ReadFile(stamp); err == nil && string(old) == sum {
		return k, nil
	}
	for _, tool := range []string{"flex", "bison", "bc"} {
		if _, err := exec.LookPath(tool); err != nil {
			return k, fmt.Errorf("compile a kernel: %w; apt-get install flex bison bc libelf-dev", err)
		}
	}
	if err := errors.Join(removeIfThere(stamp), os.RemoveAll(k.Build)); err != nil {
		return k, err
	}
	fmt.Fprintln(progress, "debug kernel: downloading and unpacking the sources")
	tmp, err := os.MkdirTemp(k.dir, "source-*.tmp")
	if err != nil {
		return k, err
	}
	defer os.RemoveAll(tmp)
	tarball, err := kernelSources(ctx, tmp)
	if err != nil {
		return k, err
	}
	if _, err := output(exec.CommandContext(ctx, "tar", "-xJf", tarball, "-C", k.dir)); err != nil {
		return k, err
	}
	if err := configure(ctx, k.Build, fragment); err != nil {
		return k, err
	}
	if err := compile(ctx, k.Build, progress); err != nil {
		return k, err
	}
	return k, os.WriteFile(stamp, []byte(sum), 0o644)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// configure makes .config. What Kconfig did not take is an error: a check that is
// not there would find nothing.
func configure(ctx context.Context, src, fragment string) error {
	fragment, err := filepath.Abs(fragment)
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"make", "-s", "tinyconfig"},
		{"scripts/kconfig/merge_config.sh", "-m", ".config", fragment},
		{"make", "-s", "olddefconfig"},
	} {
		if _, err := output(kernelMake(ctx, src, args...)); err != nil {
			return err
		}
	}
	config, err := os.ReadFile(filepath.Join(src, ".config"))
	if err != nil {
		return err
	}
	want, err := os.ReadFile(fragment)
	if err != nil {
		return err
	}
	if missing := notTaken(string(want), string(config)); len(missing) > 0 {
		return fmt.Errorf("configure the debug kernel: Kconfig did not take %q of %s", missing, fragment)
	}
	return nil
}

// notTaken lists the settings of a fragment that a configuration does not have.
func notTaken(fragment, config string) []string {
	have := make(map[string]bool)
	for line := range strings.Lines(config) {
		have[strings.TrimSpace(line)] = true
	}
	var missing []string
	for line := range strings.Lines(fragment) {
		line = strings.TrimSpace(line)
		if (strings.HasPrefix(line, "CONFIG_") || strings.HasSuffix(line, " is not set")) && !have[line] {
			missing = append(missing, line)
		}
	}
	return missing
}

// compile takes what the CPUs have to spare.
func compile(ctx context.Context, src string, progress io.Writer) error {
	done := make(chan error, 1)
	begin := time.Now()
	go func() {
		_, err := output(kernelMake(ctx, src, "nice", "-n", "10", "make", "-s", fmt.Sprintf("-j%d", runtime.NumCPU()), "bzImage", "modules"))
		done <- err
	}()
	for tick := time.NewTicker(30 * time.Second); ; {
		fmt.Fprintf(progress, "debug kernel: compiling, %s (eight minutes on two idle cores)\n", time.Since(begin).Round(time.Second))
		select {
		case err := <-done:
			tick.Stop()
			return err
		case <-tick.C:
		}
	}
}

// kernelMake is a command in the kernel's sources, free of what an outer make says.
func kernelMake(ctx context.Context, src string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MAKEFLAGS=", "MAKELEVEL=")
	return cmd
}
