package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// program is a package's tests, compiled.
type program struct {
	pkg  string // import path
	dir  string // where its tests run
	path string // of the binary
	vm   bool   // it boots a virtual machine by internal/kvmrig
	host bool   // or by others, or makes network namespaces
}

// command makes a command: exec.CommandContext, or yielding.
type command func(ctx context.Context, name string, args ...string) *exec.Cmd

// yielding makes a command that has only the CPU time that nothing else wants.
func yielding(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nice", append([]string{"-n", "19", name}, args...)...)
}

// runner compiles the tests and runs them. Tests are run as programs, not by 'go test':
// that links with as many cores as it runs packages at a time, runs go vet once more,
// and takes a result out of its cache though a program that the test has built, and run
// in a virtual machine, is another one by now.
type runner struct {
	bin       string // folder for the programs
	race      bool
	limit     time.Duration // for the tests of one package
	grace     time.Duration // how long it has to end after that, and after SIGQUIT
	test2json string        // path of the tool
}

// newRunner makes the folder for the programs; close removes it.
func newRunner(ctx context.Context, race bool, limit, grace time.Duration) (*runner, error) {
	tool, err := exec.CommandContext(ctx, "go", "tool", "-n", "test2json").Output()
	if err != nil {
		return nil, fmt.Errorf("go tool test2json: %w", err)
	}
	bin, err := os.MkdirTemp("", "pagewarp-tests-")
	if err != nil {
		return nil, err
	}
	return &runner{bin: bin, race: race, limit: limit, grace: grace, test2json: strings.TrimSpace(string(tool))}, nil
}

func (r *runner) close() { os.RemoveAll(r.bin) }

// compile compiles and links the tests of packages, on all cores, and returns those that
// there are then. A package that does not build is counted as failed.
func (r *runner) compile(ctx context.Context, t *tally, run command, all []program) (built []program) {
	folders := map[string][]program{}
	for _, p := range all {
		folders[filepath.Dir(p.path)] = append(folders[filepath.Dir(p.path)], p)
	}
	for _, folder := range slices.Sorted(maps.Keys(folders)) {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.check("go test -c", err.Error())
			return nil
		}
		// As 'go test' does it: without what only a debugger reads. The lint vets.
		args := []string{"test", "-c", "-json", "-vet=off", "-ldflags=-s -w", "-o", folder + string(filepath.Separator)}
		if r.race {
			args = append(args, "-race")
		}
		for _, p := range folders[folder] {
			args = append(args, p.pkg)
		}
		began := time.Now()
		cmd := run(ctx, "go", args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if ctx.Err() != nil {
			return nil
		}
		missing := 0
		for _, p := range folders[folder] {
			if _, err := os.Stat(p.path); err != nil {
				missing++
				t.see(event{Action: "output", Package: p.pkg, Output: "its tests do not build\n"})
				t.see(event{Action: "fail", Package: p.pkg})
				continue
			}
			built = append(built, p)
		}
		if err != nil || missing > 0 {
			t.printf("go test -c: %v\n%s%s", err, buildOutput(out), &stderr)
		}
		if err != nil && missing == 0 {
			t.check("go test -c", err.Error())
		}
		t.printf("the tests of %d packages are built, %.1fs\n", len(folders[folder])-missing, time.Since(began).Seconds())
	}
	return built
}

// buildOutput is what the compiler and the linker say in the events of go test -c -json.
func buildOutput(events []byte) string {
	var text strings.Builder
	for line := range bytes.Lines(events) {
		var e event
		if json.Unmarshal(line, &e) != nil {
			text.Write(line)
		} else if e.Action == "build-output" {
			text.WriteString(e.Output)
		}
	}
	return text.String()
}

// place sets the paths of programs: each is called by the last element of its import path,
// and those of the same name are in folders of their own.
func (r *runner) place(all []program) {
	seen := map[string]int{}
	for i := range all {
		name := filepath.Base(all[i].pkg) + ".test"
		all[i].path = filepath.Join(r.bin, fmt.Sprint(seen[name]), name)
		seen[name]++
	}
}

// list lists the packages with tests that patterns name; the error is of packages that
// cannot be read, besides those.
func list(ctx context.Context, patterns []string) ([]program, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-e", "-test", "-json=ImportPath,Dir,ForTest,TestGoFiles,XTestGoFiles,Deps,Error"}, patterns...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, &stderr)
	}
	var all []program
	var broken []error
	vms, hosts := map[string]bool{}, map[string]bool{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Dir, ForTest        string
			TestGoFiles, XTestGoFiles, Deps []string
			Error                           *struct{ Err string }
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		of, isTest := strings.CutSuffix(p.ImportPath, ".test")
		switch {
		case isTest: // the program
			vms[of], hosts[of] = uses(p.Deps, "/internal/kvmrig"), uses(p.Deps, "/internal/rig", "/internal/vmtest")
		case p.ForTest != "": // a package as compiled for a test
		default:
			if p.Error != nil {
				broken = append(broken, fmt.Errorf("%s: %s", p.ImportPath, p.Error.Err))
			}
			if len(p.TestGoFiles)+len(p.XTestGoFiles) > 0 {
				all = append(all, program{pkg: p.ImportPath, dir: p.Dir})
			}
		}
	}
	for i := range all {
		all[i].vm, all[i].host = vms[all[i].pkg], hosts[all[i].pkg]
	}
	slices.SortFunc(all, func(a, b program) int { return cmp.Compare(a.pkg, b.pkg) })
	return all, errors.Join(broken...)
}

// uses reports a package among deps whose path ends so.
func uses(deps []string, ends ...string) bool {
	return slices.ContainsFunc(deps, func(d string) bool {
		d, _, _ = strings.Cut(d, " ") // from "path [path.test]"
		return slices.ContainsFunc(ends, func(end string) bool { return strings.HasSuffix(d, end) })
	})
}

// mark begins each line of package testing's own under -test.v=test2json.
const mark = 0x16

// run runs a package's tests with further arguments, and counts them in t. At the limit a
// program says by itself which tests ran.
func (r *runner) run(ctx context.Context, t *tally, p program, args ...string) {
	most := r.limit + r.grace
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("they have not ended within %s", most))
	defer cancel()
	events, lines := io.Pipe()
	filter := exec.Command(r.test2json, "-t", "-p", p.pkg) // ends with its input
	filter.Stdout = lines
	filter.Stderr = os.Stderr
	input, err := filter.StdinPipe()
	if err == nil {
		err = filter.Start()
	}
	if err != nil {
		t.check("test2json "+p.pkg, err.Error())
		return
	}
	cmd := exec.CommandContext(ctx, p.path, append([]string{"-test.v=test2json", "-test.paniconexit0", "-test.timeout=" + r.limit.String()}, args...)...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "PWD="+p.dir)
	cmd.Stdout, cmd.Stderr = input, input
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGQUIT) } // Go then prints where every goroutine is
	cmd.WaitDelay = r.grace
	go func() {
		err := cmd.Run()
		if s := cmd.ProcessState; s != nil { // with that of its children that have ended
			t.noteCPU(p.pkg, s.UserTime()+s.SystemTime())
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil { // also of a program that has said PASS before: a leak, or a data race
			fmt.Fprintf(input, "\n%v\n%cFAIL\n", err, mark)
		}
		input.Close()
		lines.CloseWithError(filter.Wait())
	}()
	if err := t.read(events); err != nil {
		t.check("test2json "+p.pkg, err.Error())
	} else if !t.hasEnded(p.pkg) {
		t.check(p.pkg, "its tests have ended without a verdict: TestMain has to call m.Run")
	}
}
