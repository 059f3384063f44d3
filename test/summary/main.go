// Command summary runs the linters and all tests, and ends with one line,
//
//	N passed, N failed, N skipped
//
// which counts tests and subtests, and each linter and each package without a
// failing test of its own as one. It exits with 1 after any failure or skip:
// a test that did not run has shown nothing. Up to three failed tests are run
// once more, alone; one that passes then is named before the last line.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	staticcheck := flag.String("staticcheck", "", "path of the staticcheck program")
	lintOnly := flag.Bool("lint-only", false, "run no tests")
	race := flag.Bool("race", true, "run the tests under the race detector")
	limit := flag.Duration("timeout", 15*time.Minute, "limit for the tests of one package")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()

	packages := flag.Args()
	if len(packages) == 0 {
		packages = []string{"./..."}
	}
	t := newTally(os.Stdout)
	lint(ctx, t, *staticcheck, packages)
	if !*lintOnly {
		args := []string{"-timeout", limit.String()}
		if *race {
			args = append(args, "-race")
		}
		here, inVM, err := split(ctx, packages)
		if err != nil {
			t.check("go list", err.Error())
		}
		if len(here) > 0 {
			runTests(ctx, t, 1, slices.Concat(args, here))
		}
		if len(inVM) > 0 {
			runTests(ctx, t, len(inVM), slices.Concat(args, inVM))
		}
		t.again(ctx, func(ctx context.Context, into *tally, pkg, test string) {
			runTests(ctx, into, 1, slices.Concat(args, []string{"-count=1", "-run", "^" + test + "$", pkg}))
		})
	}
	os.Exit(t.finish())
}

// lint runs each linter; what it prints is a failure even when it exits with 0.
func lint(ctx context.Context, t *tally, staticcheck string, packages []string) {
	files, err := exec.CommandContext(ctx, "git", "ls-files", "-co", "--exclude-standard", "--deduplicate", "*.go").Output()
	if err != nil {
		t.check("gofmt", fmt.Sprintf("list the Go files: %v", err))
	}
	var present []string
	for _, f := range strings.Fields(string(files)) {
		if _, err := os.Stat(f); err == nil {
			present = append(present, f)
		}
	}
	linters := [][]string{
		append([]string{"gofmt", "-l", "-s"}, present...),
		append([]string{"go", "vet"}, packages...),
	}
	if staticcheck == "" {
		t.check("staticcheck", "no program given: 'make tools' builds it")
	} else {
		linters = append(linters, append([]string{staticcheck}, packages...))
	}
	for _, args := range linters {
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		text := strings.TrimSpace(string(out))
		if err != nil && text == "" {
			text = err.Error()
		}
		t.check(strings.Join(args[:min(len(args), 2)], " "), text)
	}
}

// vmPackages are those that do nothing but run a virtual machine to its end, for
// minutes. Each keeps less than one core busy, so they run side by side.
var vmPackages = []string{"/kmod/kmodtest", "/transport/rdma/rdmatest"}

// split lists the packages that the patterns name, those of vmPackages apart.
func split(ctx context.Context, patterns []string) (here, inVM []string, err error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", append([]string{"list"}, patterns...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	for _, p := range strings.Fields(string(out)) {
		if slices.ContainsFunc(vmPackages, func(suffix string) bool { return strings.HasSuffix(p, suffix) }) {
			inVM = append(inVM, p)
		} else {
			here = append(here, p)
		}
	}
	return here, inVM, nil
}

// runTests runs go test with further arguments, so many packages at a time: one
// where their tests share the machine's cores, devices and namespaces.
func runTests(ctx context.Context, t *tally, atATime int, args []string) {
	cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"test", "-json", "-p", strconv.Itoa(atATime)}, args)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.check("go test", err.Error())
		return
	}
	readErr := t.read(out)
	err = cmd.Wait()
	switch {
	case readErr != nil:
		t.check("go test", readErr.Error())
	case err != nil && t.failed == 0:
		t.check("go test", fmt.Sprintf("%v: %s", err, stderr.String()))
	}
}
