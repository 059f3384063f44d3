package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	benchreport "github.com/pagewarp/pagewarp/bench/report"
)

// measured runs a benchmark that gives the number 7, and whose text is by a function.
func measured(t *testing.T, text func(io.Writer) error, args ...string) (ran bool, out string, err error) {
	t.Helper()
	var f benchFlags
	c := benchmark("seven", "", &f, func(context.Context, func(string)) (any, []benchreport.Verdict, func(io.Writer) error, error) {
		ran = true
		return 7, nil, text, nil
	})
	var b bytes.Buffer
	c.SetOut(&b)
	c.SetErr(&b)
	c.SetArgs(args)
	c.SilenceUsage, c.SilenceErrors = true, true
	err = c.ExecuteContext(t.Context())
	return ran, b.String(), err
}

// A plot that cannot be drawn, or a table that cannot be shown, does not cost the
// result.
func TestBenchmarkKeepsItsResult(t *testing.T) {
	file := filepath.Join(t.TempDir(), "r.json")
	_, _, err := measured(t, func(io.Writer) error { return errors.New("no plot") }, "--json", file)
	if err == nil || err.Error() != "no plot" {
		t.Errorf("error %v", err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var written struct{ Result int }
	if err := json.Unmarshal(text, &written); err != nil || written.Result != 7 {
		t.Errorf("%v: %s", err, text)
	}
}

// Where the result cannot be written is told before the measurement.
func TestBenchmarkUnwritable(t *testing.T) {
	buildDaemon(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: "is a folder", filepath.Join(file, "r.json"): "make the report's folder"} {
		ran, _, err := measured(t, func(io.Writer) error { return nil }, "--json", path)
		if ran || err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "give another with --json") {
			t.Errorf("%s: measured %v, error %v", path, ran, err)
		}
	}
	for _, args := range [][]string{
		{"bench", "process", "--out", file}, {"bench", "trace", "simulate", "--out", file}, {"bench", "specweb", "--self", "--out", file},
		{"bench", "relocate", "--logs", dir, "--out", file}, {"bench", "paper", "--logs", dir, "--out", file}, {"demo", "--out", file},
	} {
		if r := pagewarp(t, args...); r.code != exitFailed || !strings.Contains(r.err, "give another with --out") {
			t.Errorf("%q: %+v", args, r)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".w*")); err != nil || len(left) > 0 {
		t.Errorf("left %q, %v", left, err)
	}
}
