package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// event is one line of go test -json; see 'go doc test2json'.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build output
	Test       string
	Elapsed    float64 // s
	Output     string
}

// tally counts outcomes and shows what failed. check, read and printf may be called
// concurrently.
type tally struct {
	mu                      sync.Mutex // guards all else
	slow                    []slow     // the top-level tests that took longest, the longest first
	w                       io.Writer
	passed, failed, skipped int
	output                  map[string]*bytes.Buffer       // of tests that run, by package and test
	failures                map[string]map[string]*failure // by package and top-level test
	broken                  bool                           // something failed that is not a test
	ended                   map[string]bool                // packages whose end was seen
	cpu                     map[string]string              // what the tests of a package used, for its line
	skippedTests, unsteady  []string
}

func newTally(w io.Writer) *tally {
	return &tally{w: w, output: map[string]*bytes.Buffer{}, failures: map[string]map[string]*failure{}, ended: map[string]bool{}, cpu: map[string]string{}}
}

// check counts a check that is not a test; problem is empty if it passed.
func (t *tally) check(name, problem string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if problem == "" {
		t.passed++
		fmt.Fprintf(t.w, "ok    %s\n", name)
		return
	}
	t.failed++
	t.broken = true
	fmt.Fprintf(t.w, "FAIL  %s\n%s\n", name, problem)
}

// read counts the events of a go test -json.
func (t *tally) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil {
				t.see(e)
			} else {
				t.printf("%s", line)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the output of go test: %w", err)
		}
	}
}

// printf prints between the outcomes.
func (t *tally) printf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.w, format, args...)
}

// noteCPU has a package's line tell the CPU time of its tests.
func (t *tally) noteCPU(pkg string, used time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cpu[pkg] = fmt.Sprintf(", CPU %.1fs", used.Seconds())
}

func (t *tally) hasEnded(pkg string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended[pkg]
}

func (t *tally) see(e event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(t.w, e.Output)
	case "output":
		b := t.output[key]
		if b == nil {
			b = new(bytes.Buffer)
			t.output[key] = b
		}
		b.WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			t.endPackage(e)
		} else {
			t.endTest(e)
		}
		delete(t.output, key)
	}
}

// slow is a test and the seconds that it took.
type slow struct {
	name    string
	seconds float64
}

// mostSlow is how many tests are named as the slowest.
const mostSlow = 15

// noteTime remembers a top-level test if it is one of the slowest.
func (t *tally) noteTime(e event) {
	if strings.Contains(e.Test, "/") || e.Elapsed < 1 {
		return
	}
	t.slow = append(t.slow, slow{e.Package + " " + e.Test, e.Elapsed})
	slices.SortFunc(t.slow, func(a, b slow) int { return cmp.Compare(b.seconds, a.seconds) })
	t.slow = t.slow[:min(len(t.slow), mostSlow)]
}

func (t *tally) endTest(e event) {
	t.noteTime(e)
	switch e.Action {
	case "pass":
		t.passed++
	case "skip":
		t.skipped++
		t.skippedTests = append(t.skippedTests, e.Package+" "+e.Test)
	case "fail":
		t.failed++
		text := t.text(e)
		t.fail(e, text)
		fmt.Fprintf(t.w, "FAIL  %s %s\n%s", e.Package, e.Test, text)
	}
}

// endPackage notes a package's end. A package that fails without a failed test
// did not build, or its TestMain failed, or a test ended the process.
func (t *tally) endPackage(e event) {
	t.ended[e.Package] = true
	switch {
	case e.Action == "pass":
		fmt.Fprintf(t.w, "ok    %s %.1fs%s\n", e.Package, e.Elapsed, t.cpu[e.Package])
	case e.Action == "fail" && len(t.failures[e.Package]) == 0:
		t.failed++
		t.broken = true
		fmt.Fprintf(t.w, "FAIL  %s\n%s", e.Package, t.text(e))
		// Tests that were under way have no end of their own.
		for key, b := range t.output {
			if strings.HasPrefix(key, e.Package+" ") && key != e.Package+" " {
				fmt.Fprintf(t.w, "%s", b)
			}
		}
	case e.Action == "fail":
		fmt.Fprintf(t.w, "FAIL  %s %.1fs%s\n", e.Package, e.Elapsed, t.cpu[e.Package])
	}
}

func (t *tally) text(e event) string {
	if b := t.output[e.Package+" "+e.Test]; b != nil {
		return b.String()
	}
	return ""
}

// finish prints the closing line and returns the exit code.
func (t *tally) finish() int {
	for _, s := range t.slow {
		fmt.Fprintf(t.w, "slow  %6.1fs %s\n", s.seconds, s.name)
	}
	for _, name := range t.skippedTests {
		fmt.Fprintf(t.w, "SKIP  %s: a run with a skipped test does not count\n", name)
	}
	for _, name := range t.unsteady {
		fmt.Fprintf(t.w, "UNSTEADY  %s: failed above, passed when run again alone: to be mended\n", name)
	}
	if t.passed+t.failed+t.skipped == 0 {
		t.failed++
		fmt.Fprintln(t.w, "FAIL  nothing ran")
	}
	fmt.Fprintf(t.w, "%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	if t.failed > 0 || t.skipped > 0 {
		return 1
	}
	return 0
}
