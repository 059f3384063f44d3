package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBenchProcess(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "p.json")
	said := &whenSaid{}
	code, out := runBench(t, said, "process", "--engine", "pagewarp,userfaultfd-go", "--peers", dir, "--load", "touch:ws=8",
		"--repeat", "1", "--watch", "1s", "--out", dir, "--json", file)
	if code != exitOK {
		t.Fatalf("exit code %d\n%s", code, said.b.String())
	}
	for _, want := range []string{"process: 8.0 MiB, load random:ws=8", "cannot run here: userfaultfd-go", filepath.Join(dir, "process-random.png")} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(text, []byte(`"subject": "process"`)) {
		t.Errorf("the report: %v\n%s", err, text)
	}
	if left := rigsLeft(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Ctrl-C before the second move: the first one is told, and nothing else is left.
func TestBenchProcessInterrupted(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "p.json")
	said := interruptAt(t, "run 2 of 3: start the process")
	code, out := runBench(t, said, "process", "--engine", "pagewarp", "--load", "touch:ws=8", "--watch", "1s", "--out", dir, "--json", file)
	if code != exitInterrupted || !strings.Contains(said.b.String(), "the report has what was finished") || !strings.Contains(out, "downtime ms") {
		t.Errorf("exit code %d\n%s\n%s", code, out, said.b.String())
	}
	wantInterrupted(t, file, 1)
	if left := rigsLeft(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBenchProcessUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--engine", "crui-lazy"}, "did you mean criu-lazy?"},
		{[]string{"--engine", "pagewarp,pagewarp"}, "is given twice"},
		{[]string{"--load", "redis"}, "pagewarp bench relocate has the others"},
		{[]string{"--load", "chrun"}, "did you mean churn?"},
		{[]string{"--link", "fast"}, "or none"},
		{[]string{"--codec", "gzip"}, "--codec: "},
		{[]string{"--repeat", "0"}, "--repeat 0"},
		{[]string{"--watch", "0s"}, "--watch 0s"},
		{[]string{"--span", "5m"}, "--span 5m"},
		{[]string{"--span", "1m", "--limit", "30s"}, "it ends after --limit"},
	} {
		said := &whenSaid{}
		if code, _ := runBench(t, said, append([]string{"process"}, c.args...)...); code != exitUsage || !strings.Contains(said.b.String(), c.want) {
			t.Errorf("%q: exit code %d, %q; want %q", c.args, code, said.b.String(), c.want)
		}
	}
}
