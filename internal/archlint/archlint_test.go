package archlint

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestTheTree(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	found, err := Tree(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Error(f)
	}
}

// Each rule must be able to fail, and must not cry wolf.
func TestRules(t *testing.T) {
	local := func(p string) string { return "package x\nimport _ \"" + module + p + "\"\n" }
	for _, tc := range []struct{ name, src, want string }{
		{"transport/frame.go", local("pagecache"), "not below it"},
		{"pagecache/planner.go", local("transport/tcp"), "not below it"},
		{"faultd/engine.go", local("pageserver"), "not below it"},
		{"faultd/engine.go", local("relocate"), "not below it"},
		{"internal/uffd/uffd.go", local("pagecache"), "not below it"},
		{"relocate/machine.go", local("bench/load"), "not below it"},
		{"relocate/machine.go", local("newcomer"), "unknown"},
		{"relocate/machine.go", local("faultd"), ""},
		{"relocate/machine.go", local("relocate/qemu"), ""},
		{"transport/tcp/conn.go", local("transport"), ""},
		{"internal/touch/touch.go", local("internal/uffd"), ""},
		{"cmd/pagewarp/main.go", local("bench/demo"), ""},
		{"bench/demo/demo.go", local("cmd/internal/api"), ""},
		{"faultd/engine_test.go", local("pageserver"), ""},

		{"faultd/memory.go", "package x\nimport _ \"unsafe\"\n// SAFETY: none", "*_unsafe.go"},
		{"faultd/memory_unsafe.go", "package x\nimport \"unsafe\"\nvar p = unsafe.Pointer(q)\n", "SAFETY"},
		{"faultd/memory_unsafe.go", "package x\nimport \"unsafe\"\nvar n = unsafe.Sizeof(q)\n", ""},
		{"faultd/memory_unsafe.go", "package x\nimport _ \"unsafe\"\n// SAFETY: none", ""},
		{"faultd/memory_unsafe_test.go", "package x\nimport _ \"unsafe\"\n// SAFETY: none", ""},
		{"internal/uffd/uffd.go", "package x\nimport _ \"unsafe\"\n// SAFETY: none", ""},

		{"transport/tcp/c.go", "package x\nimport \"C\"\n", "cgo belongs"},
		{"transport/rdma/verbs.go", "package x\nimport \"C\"\n", "cgo belongs"},
		{"transport/rdma/verbs_cgo.go", "package x\nimport \"C\"\n", ""},

		{"pagecache/planner.go", "package x\nimport _ \"log/slog\"\n", "does not log"},
		{"faultd/engine.go", "package x\nimport _ \"log/slog\"\n", ""},

		{"faultd/a_test.go", "package x\nfunc f(t T) { t.Skipf(\"no\") }\n", "calls Skipf"},
		{"faultd/a.go", "package x\n" + strings.Repeat("//\n", maxLines), "lines"},
		{"faultd/a.go", "not Go", "expected"},
	} {
		found := strings.Join(File(tc.name, []byte(tc.src)), "\n")
		if (tc.want == "") != (found == "") || !strings.Contains(found, tc.want) {
			t.Errorf("%s with %.80q: found %q, want %q", tc.name, tc.src, found, tc.want)
		}
	}
}
