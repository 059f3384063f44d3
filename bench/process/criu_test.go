package process

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A real move by CRIU, from the root of pagewarp bench peers --make-root, which
// 'make test' does not make.
func BenchmarkCRIU(b *testing.B) {
	e, err := New(CRIU+AtRoot, Env{Root: filepath.Join("..", "..", "build", "qemu-root")})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		m, gaps := move(b, e, load(b, "random:ws=64"), 0)
		g, err := Over(gaps, m.Frozen)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(ms(time.Duration(g.To-g.From)), "ms-down")
		b.ReportMetric(ms(m.Completed.Sub(m.Started)), "ms-total")
	}
}

func TestCRIUVersion(t *testing.T) {
	for out, want := range map[string]string{"Version: 4.2.1\n": "4.2.1", "Version: 3.17.1\nGitID: v3.17.1\n": "3.17.1", "Warn: x\nVersion: 4.2\n": "4.2"} {
		if got, err := criuVersion(out, nil); err != nil || got != want {
			t.Errorf("criuVersion(%q) = %q, %v", out, got, err)
		}
	}
	died := errors.New("signal: segmentation fault")
	for _, out := range []string{"", "Version: \n", "Error: vdso"} {
		if got, err := criuVersion(out, died); !errors.Is(err, died) || !strings.Contains(err.Error(), "it said") {
			t.Errorf("criuVersion(%q) = %q, %v", out, got, err)
		}
	}
}

func TestCRIUCommands(t *testing.T) {
	d := criuDirs{"/images", "/work"}
	follows := func(args []string, option, value string) bool {
		i := slices.Index(args, option)
		return i >= 0 && i+1 < len(args) && args[i+1] == value
	}
	for _, c := range []struct {
		args      []string
		command   string
		pairs     map[string]string
		flags     []string
		flagsLack []string
	}{
		{d.dumpArgs(1234, "10.0.0.1"), "dump", map[string]string{"-t": "1234", "--address": "10.0.0.1", "--port": "7998", "--status-fd": "3"}, []string{"--lazy-pages"}, []string{"--leave-running", "--page-server"}},
		{d.lazyArgs("10.0.0.1"), "lazy-pages", map[string]string{"--address": "10.0.0.1", "--port": "7998", "--status-fd": "3"}, []string{"--page-server"}, []string{"-t"}},
		{d.restoreArgs(), "restore", nil, []string{"--lazy-pages"}, []string{"--page-server", "-d"}},
	} {
		if c.args[0] != c.command || !follows(c.args, "-D", "/images") || !follows(c.args, "-W", "/work") {
			t.Errorf("%q", c.args)
		}
		for option, value := range c.pairs {
			if !follows(c.args, option, value) {
				t.Errorf("%q lacks %s %s", c.args, option, value)
			}
		}
		for _, f := range c.flags {
			if !slices.Contains(c.args, f) {
				t.Errorf("%q lacks %s", c.args, f)
			}
		}
		for _, f := range c.flagsLack {
			if slices.Contains(c.args, f) {
				t.Errorf("%q has %s", c.args, f)
			}
		}
	}
}

func TestPipes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "limit")
	for text, want := range map[string]string{"4194304\n": "", "1048576\n": "sysctl -w fs.pipe-max-size=4194304", "x": "invalid syntax"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := pipesFor(file, true); err != nil {
			t.Errorf("with the capability: %v", err)
		}
		err := pipesFor(file, false)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("limit %q: %v, want %q", text, err, want)
		}
	}
}

// A program that is not there, or does not work, is a reason with a remedy.
func TestUnavailable(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{CRIU + AtRoot, Go} {
		e, err := New(name, Env{Root: dir, Peers: dir})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := e.Available(t.Context()); err == nil || !strings.Contains(err.Error(), "make") {
			t.Errorf("%s: %v, want how to make it", name, err)
		}
	}
	old := filepath.Join(dir, "criu")
	script := "#!/bin/sh\n[ $1 = --version ] && echo Version: 3.17.1 && exit\necho Segmentation fault >&2; exit 139\n"
	if err := os.WriteFile(old, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if v, _, err := (&criu{CRIU, old}).Available(t.Context()); v != "3.17.1" || err == nil || !strings.Contains(err.Error(), "does not run on this kernel") {
		t.Errorf("a CRIU that does not run: %q, %v", v, err)
	}
	if _, _, err := (&goPeer{Go, old}).Available(t.Context()); err == nil || !strings.Contains(err.Error(), "no Go program") {
		t.Errorf("a peer that is none: %v", err)
	}
}
