// Command kmodbuild builds the kernel module with sparse and all warnings, for
// the test guest's kernel and the newest of each named series that Debian has:
//
//	go run ./kmod/kmodbuild -out build/kmod 6.12
//
// With -debug FILE it compiles a kernel with the kernel's own checks in the place of
// that, from Debian's sources and the settings of FILE (kmod/debug.config).
//
// Headers are downloaded and unpacked, never installed. For the running kernel,
// use kmod/driver/Makefile, or DKMS.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/pagewarp/pagewarp/internal/kvmrig"
	"golang.org/x/sys/unix"
)

func main() {
	out := flag.String("out", "build/kmod", "folder for headers and modules")
	guest := flag.String("guest", "build/guest", "folder of the test guest")
	src := flag.String("src", "kmod/driver", "folder of the module's sources")
	limit := flag.Duration("timeout", 60*time.Minute, "give up after this long")
	debug := flag.String("debug", "", "compile a debug kernel with the settings in this `file`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	if *debug != "" {
		if _, err := kvmrig.BuildDebugKernel(ctx, *out, *debug, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "kmodbuild:", err)
			os.Exit(1)
		}
		return
	}
	if err := build(ctx, *out, *guest, *src, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "kmodbuild:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, out, guest, src string, series []string) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	release, err := kvmrig.GuestRelease(guest)
	if err != nil {
		return err
	}
	releases := []string{release}
	for _, s := range series {
		release, err := kvmrig.LatestRelease(ctx, s)
		if err != nil {
			return err
		}
		releases = append(releases, release)
	}
	for _, release := range releases {
		kdir, err := kvmrig.Headers(ctx, out, release)
		if err != nil {
			return err
		}
		ko, err := kvmrig.BuildModule(ctx, out, src, kdir, "pagewarp")
		if err != nil {
			return err
		}
		fmt.Printf("Linux %s: %s\n", release, ko)
	}
	return nil
}
