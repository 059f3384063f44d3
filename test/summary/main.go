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
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	staticcheck := flag.String("staticcheck", "", "path of the staticcheck program")
	lintOnly := flag.Bool("lint-only", false, "run no tests")
	race := flag.Bool("race", true, "run the tests under the race detector")
	limit := flag.Duration("timeout", 25*time.Minute, "limit for the tests of one package")
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
		build(ctx, *race, packages)
		runTests(ctx, t, slices.Concat(args, packages))
		t.again(ctx, func(ctx context.Context, into *tally, pkg, test string) {
			runTests(ctx, into, slices.Concat(args, []string{"-count=1", "-run", "^" + test + "$", pkg}))
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

// build fills the build cache with what the tests are linked from, on all cores: go test
// with one package at a time compiles on one. What does not build is the tests' to report.
func build(ctx context.Context, race bool, packages []string) {
	args := []string{"build"}
	if race {
		args = append(args, "-race")
	}
	exec.CommandContext(ctx, "go", slices.Concat(args, packages)...).Run()
}

// runTests runs go test with further arguments, one package at a time: their tests
// share the machine's cores, devices and namespaces. The emulators of those that boot
// a virtual machine keep two cores busy; two of them side by side took longer than one
// after the other (12.5 minutes in the place of 8) and ran into their deadlines.
func runTests(ctx context.Context, t *tally, args []string) {
	cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"test", "-json", "-p", "1"}, args)...)
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
