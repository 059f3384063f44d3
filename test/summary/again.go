package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// mostAgain is how many failed tests are run a second time. More than that is
// not unsteady tests on a busy machine but something broken.
const mostAgain = 3

// failure is a top-level test that failed, with its subtests.
type failure struct {
	count int    // failures of it and of its subtests
	final string // why a second run would prove nothing, or empty
}

// provesABug are marks in a test's output after which no second run clears it:
// what they show happened, however rarely.
var provesABug = []string{"WARNING: DATA RACE", "panic: ", "fatal error: ", "Oops: ", "kernel BUG"}

// timedOut is what package testing says of a binary at its deadline. It proves no bug:
// the machine may have been slow.
const timedOut = "panic: test timed out"

// fail notes a failed test or subtest.
func (t *tally) fail(e event, text string) {
	top, _, _ := strings.Cut(e.Test, "/")
	of := t.failures[e.Package]
	if of == nil {
		of = map[string]*failure{}
		t.failures[e.Package] = of
	}
	f := of[top]
	if f == nil {
		f = new(failure)
		of[top] = f
	}
	f.count++
	text = strings.ReplaceAll(text, timedOut, "")
	for _, mark := range provesABug {
		if strings.Contains(text, mark) {
			f.final = mark
		}
	}
}

// again runs each failed test once more, alone. These tests start virtual
// machines under instruction emulation on shared processors, and have deadlines.
// One that passes then is counted as passed and named in the closing lines as
// unsteady: it is to be mended. Nothing is run again after more than mostAgain
// failed, or after a failure that proves a bug.
func (t *tally) again(ctx context.Context, run func(ctx context.Context, into *tally, pkg, test string)) {
	n := 0
	for _, of := range t.failures {
		n += len(of)
		for name, f := range of {
			if f.final != "" {
				fmt.Fprintf(t.w, "no second run: the output of %s has %q\n", name, f.final)
				return
			}
		}
	}
	if n == 0 || n > mostAgain || t.broken {
		return
	}
	for _, pkg := range slices.Sorted(maps.Keys(t.failures)) {
		for _, test := range slices.Sorted(maps.Keys(t.failures[pkg])) {
			fmt.Fprintf(t.w, "again %s %s\n", pkg, test)
			began := time.Now()
			second := newTally(t.w)
			run(ctx, second, pkg, test)
			if second.failed > 0 || second.skipped > 0 || second.passed == 0 || ctx.Err() != nil {
				fmt.Fprintf(t.w, "FAIL  %s %s a second time\n", pkg, test)
				continue
			}
			fmt.Fprintf(t.w, "ok    %s %s at its second run, %.1fs\n", pkg, test, time.Since(began).Seconds())
			count := t.failures[pkg][test].count
			t.failed -= count
			t.passed += count
			t.unsteady = append(t.unsteady, pkg+" "+test)
		}
	}
}
