package main

import (
	"context"
	"strings"
	"testing"
)

func TestTally(t *testing.T) {
	for _, tc := range []struct {
		name, events, last, shows string
		code                      int
	}{
		{"all pass", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA/sub"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`, "2 passed, 0 failed, 0 skipped", "ok    p", 0},
		{"a failure shows its output", `{"Action":"output","Package":"p","Test":"TestA","Output":"the reason\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`, "0 passed, 1 failed, 0 skipped", "the reason", 1},
		{"a skip fails", `{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"pass","Package":"p"}`, "1 passed, 0 failed, 1 skipped", "SKIP  p TestB", 1},
		{"no build", `{"Action":"build-output","ImportPath":"p","Output":"undefined: x\n"}
{"Action":"build-fail","ImportPath":"p"}
{"Action":"pass","Package":"q","Test":"TestA"}
{"Action":"fail","Package":"p"}`, "1 passed, 1 failed, 0 skipped", "undefined: x", 1},
		{"a crash shows the test under way", `{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"panic: no\n"}
{"Action":"fail","Package":"p"}`, "1 passed, 1 failed, 0 skipped", "panic: no", 1},
		{"a package without tests", `{"Action":"pass","Package":"q","Test":"TestA"}
{"Action":"skip","Package":"p"}`, "1 passed, 0 failed, 0 skipped", "", 0},
		{"nothing ran", `{"Action":"skip","Package":"p"}`, "0 passed, 1 failed, 0 skipped", "nothing ran", 1},
		{"stray text", "go: warning\n" + `{"Action":"pass","Package":"q","Test":"TestA"}`, "1 passed, 0 failed, 0 skipped", "go: warning", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			tl := newTally(&out)
			if err := tl.read(strings.NewReader(tc.events)); err != nil {
				t.Fatal(err)
			}
			code := tl.finish()
			if code != tc.code || !strings.HasSuffix(out.String(), "\n"+tc.last+"\n") && out.String() != tc.last+"\n" {
				t.Errorf("exit code %d, want %d; last line not %q in\n%s", code, tc.code, tc.last, &out)
			}
			if !strings.Contains(out.String(), tc.shows) {
				t.Errorf("%q is not in\n%s", tc.shows, &out)
			}
		})
	}
}

func TestChecksCount(t *testing.T) {
	var out strings.Builder
	tl := newTally(&out)
	tl.check("gofmt", "")
	tl.check("vet", "p.go: bad")
	if code := tl.finish(); code != 1 || !strings.HasSuffix(out.String(), "p.go: bad\n1 passed, 1 failed, 0 skipped\n") {
		t.Errorf("exit code %d after\n%s", code, &out)
	}
}

func TestAgain(t *testing.T) {
	const (
		fails = `{"Action":"fail","Package":"p","Test":"TestA/sub"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestB"}
{"Action":"fail","Package":"p"}
`
		passes = `{"Action":"pass","Package":"p","Test":"TestA/sub"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}
`
	)
	for _, tc := range []struct {
		name, first, second, last, shows string
		runs                             int
	}{
		{"passes", fails, passes, "3 passed, 0 failed, 0 skipped", "UNSTEADY  p TestA:", 1},
		{"fails again", fails, fails, "1 passed, 2 failed, 0 skipped", "FAIL  p TestA a second time", 1},
		{"runs nothing", fails, `{"Action":"pass","Package":"p"}`, "1 passed, 2 failed, 0 skipped", "a second time", 1},
		{"is skipped", fails, `{"Action":"skip","Package":"p","Test":"TestA"}`, "1 passed, 2 failed, 0 skipped", "a second time", 1},
		{"a race", `{"Action":"output","Package":"p","Test":"TestA/sub","Output":"WARNING: DATA RACE\n"}
` + fails, passes, "1 passed, 2 failed, 0 skipped", "no second run", 0},
		{"a panic", `{"Action":"output","Package":"p","Test":"TestA","Output":"panic: no\n"}
` + fails, passes, "1 passed, 2 failed, 0 skipped", "no second run", 0},
		{"a deadline in the VM", `{"Action":"output","Package":"p","Test":"TestA","Output":"panic: test timed out after 5m0s\n"}
` + fails, passes, "3 passed, 0 failed, 0 skipped", "UNSTEADY  p TestA:", 1},
		{"many", fails + `{"Action":"fail","Package":"q","Test":"TestA"}
{"Action":"fail","Package":"q","Test":"TestC"}
{"Action":"fail","Package":"q","Test":"TestD"}`, passes, "1 passed, 5 failed, 0 skipped", "", 0},
		{"a package does not build", fails + `{"Action":"fail","Package":"q"}`, passes, "1 passed, 3 failed, 0 skipped", "", 0},
		{"none", passes, fails, "2 passed, 0 failed, 0 skipped", "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			tl := newTally(&out)
			if err := tl.read(strings.NewReader(tc.first)); err != nil {
				t.Fatal(err)
			}
			runs := 0
			tl.again(context.Background(), func(_ context.Context, into *tally, pkg, test string) {
				if runs++; pkg != "p" || test != "TestA" {
					t.Errorf("runs %s of %s", test, pkg)
				}
				if err := into.read(strings.NewReader(tc.second)); err != nil {
					t.Error(err)
				}
			})
			tl.finish()
			if runs != tc.runs || !strings.HasSuffix(out.String(), "\n"+tc.last+"\n") || !strings.Contains(out.String(), tc.shows) {
				t.Errorf("%d runs, want %d; want %q and at the end %q in\n%s", runs, tc.runs, tc.shows, tc.last, &out)
			}
		})
	}
}
