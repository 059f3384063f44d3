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
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
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
	linters := func(run command) { lint(ctx, t, run, *staticcheck, packages) }
	if *lintOnly {
		linters(exec.CommandContext)
	} else if r, err := newRunner(ctx, *race, *limit, time.Minute); err != nil {
		t.check("go test", err.Error())
	} else {
		r.test(ctx, t, linters, packages)
		r.close()
	}
	os.Exit(t.finish())
}

// lint runs each linter; what it prints is a failure even when it exits with 0.
func lint(ctx context.Context, t *tally, run command, staticcheck string, packages []string) {
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
		began := time.Now()
		cmd := run(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // so what they compile is that of the released programs
		out, err := cmd.CombinedOutput()
		text := strings.TrimSpace(string(out))
		if err != nil && text == "" {
			text = err.Error()
		}
		t.check(fmt.Sprintf("%s %.1fs", strings.Join(args[:min(len(args), 2)], " "), time.Since(began).Seconds()), text)
	}
}

// test calls lint, compiles and runs the tests of packages, and runs failed ones once more.
//
// The tests of machines run one package at a time: they share the machine's cores, devices and
// namespaces. The emulators of those that boot a virtual machine by internal/kvmrig may
// keep two cores busy; two of them side by side took longer than one after the other
// (12.5 minutes in the place of 8) and ran into their deadlines. But they leave the cores
// idle often, so they come first, and linters and compilers, which have no deadlines, take
// what they leave.
func (r *runner) test(ctx context.Context, t *tally, lint func(command), packages []string) {
	all, err := list(ctx, packages)
	if err != nil {
		t.check("go list", err.Error())
	}
	r.place(all)
	inVM := slices.DeleteFunc(slices.Clone(all), func(p program) bool { return !p.vm })
	here := slices.DeleteFunc(all, func(p program) bool { return p.vm })
	programs := r.compile(ctx, t, exec.CommandContext, inVM)
	run := exec.CommandContext
	var beside sync.WaitGroup
	if len(inVM) > 0 {
		run = yielding
	}
	beside.Go(func() {
		here = r.compile(ctx, t, run, here)
		lint(run) // after what it shares with programs of the virtual machines was compiled for those
	})
	for _, p := range programs {
		r.run(ctx, t, p)
	}
	beside.Wait()
	// One that starts machines is alone. Of the others, two at a time: most of what they
	// take is waiting, if only for the second that a program under the race detector stays
	// after its end.
	r.runAll(ctx, t, here, 1, func(p program) bool { return p.host })
	r.runAll(ctx, t, here, 2, func(p program) bool { return !p.host })
	if ctx.Err() != nil {
		t.check("tests", fmt.Sprintf("not all have run: %v", context.Cause(ctx)))
		return
	}
	programs = append(programs, here...)
	t.again(ctx, func(ctx context.Context, into *tally, pkg, test string) {
		for _, p := range programs {
			if p.pkg == pkg {
				r.run(ctx, into, p, "-test.run=^"+test+"$")
			}
		}
	})
}

// runAll runs the programs that which names, so many at a time.
func (r *runner) runAll(ctx context.Context, t *tally, programs []program, atATime int, which func(program) bool) {
	next := make(chan program)
	var workers sync.WaitGroup
	for range atATime {
		workers.Go(func() {
			for p := range next {
				r.run(ctx, t, p)
			}
		})
	}
	for _, p := range programs {
		if which(p) {
			next <- p
		}
	}
	close(next)
	workers.Wait()
}
