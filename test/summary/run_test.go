package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// module writes a module of packages, each a file of tests, and makes it the working folder.
func module(t *testing.T, packages map[string]string) {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{"go.mod": "module m\n\ngo 1.25\n"}
	for path, text := range packages {
		files[path+"/x_test.go"] = "package x\n\nimport (\n\t\"os\"\n\t\"testing\"\n\t\"time\"\n)\n\nvar _, _ = os.Exit, time.Second\n\n" + text
	}
	for path, text := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
}

// Every outcome of a program is counted as go test would.
func TestRun(t *testing.T) {
	const (
		passes = "func TestA(t *testing.T) { t.Run(\"sub\", func(*testing.T) {}) }\n"
		main   = "func TestMain(m *testing.M) { m.Run(); "
	)
	for _, tc := range []struct {
		name     string
		packages map[string]string
		limit    time.Duration
		last     string
		shows    []string
	}{
		{"no failure", map[string]string{"p": passes, "q/p": passes, "q/q/p": passes, // the same last element
			"folder": "func TestA(t *testing.T) {\n\tif _, err := os.Stat(\"x_test.go\"); err != nil {\n\t\tt.Error(err)\n\t}\n}\n",
			"skips":  "func TestA(t *testing.T) { t.Skip() }\n",
		}, time.Minute, "8 passed, 0 failed, 1 skipped", []string{"ok    m/p 0.", "s, CPU 0.", "ok    m/q/p ", "ok    m/q/q/p ", "ok    m/folder ", "SKIP  m/skips TestA"}},
		{"failures", map[string]string{"p": passes, "q": "func TestA(t *testing.T) { t.Error(\"why\") }\n",
			"once": "func TestA(t *testing.T) {\n\tif f, err := os.OpenFile(\"ran\", os.O_CREATE|os.O_EXCL, 0o600); err == nil {\n\t\tf.Close()\n\t\tt.Error(\"why once\")\n\t}\n}\n",
		}, time.Minute, "4 passed, 1 failed, 0 skipped", []string{"why\n", "why once\n", "again m/q TestA", "FAIL  m/q TestA a second time", "UNSTEADY  m/once TestA"}},
		{"what is no test", map[string]string{"p": passes, "builds": "func TestA(t *testing.T) { none() }\n", "parses": "func {\n",
			"code": passes + main + "println(\"PASS\"); os.Exit(3) }\n", "early": "func TestA(t *testing.T) { os.Exit(0) }\n",
			"verdict": "func TestMain(*testing.M) { os.Exit(0) }\n",
		}, time.Minute, "5 passed, 5 failed, 0 skipped", []string{"undefined: none", "FAIL  m/builds", "FAIL  m/parses", "FAIL  m/code", "exit status 3", "FAIL  m/early", "m/verdict\nits tests have ended without a verdict"}},
		{"limits", map[string]string{"own": "func TestA(t *testing.T) { <-make(chan int) }\nfunc TestB(t *testing.T) { go func() { for {} }(); time.Sleep(time.Hour) }\n",
			"hangs": "func TestMain(*testing.M) { time.Sleep(time.Hour) }\n"}, 1, "1 passed, 2 failed, 0 skipped", []string{"test timed out", "have not ended within", "goroutine 1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			module(t, tc.packages)
			var out strings.Builder
			tl := newTally(&out)
			r, err := newRunner(t.Context(), false, tc.limit, 2*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			r.test(t.Context(), tl, func(command) { tl.check("lint", "") }, []string{"./..."})
			r.close()
			if _, err := os.Stat(r.bin); err == nil {
				t.Errorf("%s is left", r.bin)
			}
			tl.finish()
			if !strings.HasSuffix(out.String(), "\n"+tc.last+"\n") {
				t.Errorf("last line not %q", tc.last)
			}
			for _, s := range tc.shows {
				if !strings.Contains(out.String(), s) {
					t.Errorf("no %q", s)
				}
			}
			if t.Failed() {
				t.Logf("in\n%s", &out)
			}
		})
	}
}

// Packages that boot a virtual machine come first, and the linters run beside them with
// the CPU time that is left.
func TestVMsFirst(t *testing.T) {
	const passes = "func TestA(*testing.T) {}\n"
	module(t, map[string]string{"a": passes, "b": passes, "internal/kvmrig": passes})
	if err := os.WriteFile("internal/kvmrig/kvmrig.go", []byte("package x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(passes, "func", "import _ \"m/internal/kvmrig\"\n\nfunc", 1)
	if err := os.WriteFile("b/x_test.go", []byte("package x\n\nimport \"testing\"\n\n"+text), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := newRunner(t.Context(), false, time.Minute, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	var out strings.Builder
	tl := newTally(&out)
	r.test(t.Context(), tl, func(run command) {
		out, err := run(t.Context(), "nice").Output() // without arguments it tells
		if n := strings.TrimSpace(string(out)); err != nil || n != "19" {
			t.Errorf("linters run at niceness %q (%v), want 19", n, err)
		}
	}, []string{"./..."})
	tl.finish()
	b, a := strings.Index(out.String(), "ok    m/b "), strings.Index(out.String(), "ok    m/a ")
	if b < 0 || a < b {
		t.Errorf("b, which boots a virtual machine, is not before a:\n%s", &out)
	}
}
