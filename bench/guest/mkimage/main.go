package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	out := flag.String("out", "build/guest", "folder for vmlinuz and initramfs.cpio.gz")
	with := flag.String("with", "redis,nginx", "programs of initramfs-programs.cpio.gz; empty leaves that file out")
	limit := flag.Duration("timeout", 10*time.Minute, "give up after this long")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	if err := build(ctx, *out, *with); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, out, with string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(out, ".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := fetchKernel(ctx, out); err != nil {
		return err
	}
	init := filepath.Join(out, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "github.com/pagewarp/pagewarp/bench/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if err := run(cmd); err != nil {
		return fmt.Errorf("build init: %w", err)
	}
	modules := filepath.Join(out, "modules")
	if err := writeInitramfs(filepath.Join(out, "initramfs.cpio.gz"), init, modules); err != nil || with == "" {
		return err
	}
	programs, err := fetchPrograms(ctx, filepath.Join(out, "programs"), strings.Split(with, ","))
	if err != nil {
		return err
	}
	return writeInitramfs(filepath.Join(out, "initramfs-programs.cpio.gz"), init, modules, programs...)
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

// run runs cmd; what it printed is part of the error, and nothing else is shown.
func run(cmd *exec.Cmd) error {
	_, err := output(cmd)
	return err
}

func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
