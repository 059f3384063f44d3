package archlint

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	module   = "github.com/pagewarp/pagewarp/"
	maxLines = 500
)

// layers maps the first folder of a package to its layer; a package imports
// only lower layers, and its own folder.
var layers = map[string]int{
	"cmd": 5, "bench": 5, "test": 5,
	"relocate": 4,
	"faultd":   3, "pageserver": 3,
	"transport": 2, "pagecache": 2, "kmod": 2,
	"internal": 1,
}

// usesPointers finds the uses of unsafe that need a justification; sizes and
// offsets are computed by the compiler.
var usesPointers = regexp.MustCompile(`\bunsafe\.(Pointer|Slice|SliceData|String|StringData|Add)\b`)

// quiet are the folders that do not log.
var quiet = []string{"pageserver", "transport", "pagecache", "kmod", "internal"}

// Tree checks every Go file under root and returns what breaks a rule, as
// file: text.
func Tree(root string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name == "build" || d.Name() == "testdata" || (p != root && strings.HasPrefix(d.Name(), ".")) {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		found = append(found, File(filepath.ToSlash(name), src)...)
		return nil
	})
	return found, err
}

// File checks one file, whose name is relative to the module's root.
func File(name string, src []byte) []string {
	f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", name, err)}
	}
	var found []string
	complain := func(format string, args ...any) {
		found = append(found, name+": "+fmt.Sprintf(format, args...))
	}
	if n := bytes.Count(src, []byte("\n")); n > maxLines {
		complain("%d lines, at most %d are wanted: split it by noun or by direction of travel", n, maxLines)
	}
	for _, spec := range f.Imports {
		checkImport(name, strings.Trim(spec.Path.Value, `"`), src, complain)
	}
	if strings.HasSuffix(name, "_test.go") {
		checkSkips(f, complain)
	}
	return found
}

func checkImport(name, imported string, src []byte, complain func(string, ...any)) {
	top, _, _ := strings.Cut(name, "/")
	base := path.Base(name)
	test := strings.HasSuffix(base, "_test.go")
	cgo := strings.HasPrefix(name, "transport/rdma/") && strings.HasSuffix(base, "_cgo.go")
	switch {
	case imported == "C" && !cgo:
		complain("imports C: cgo belongs into transport/rdma/*_cgo.go")
	case imported == "unsafe":
		stem := strings.TrimSuffix(strings.TrimSuffix(base, ".go"), "_test")
		if !strings.HasSuffix(stem, "_unsafe") && top != "internal" && !cgo {
			complain("imports unsafe: that belongs into a file *_unsafe.go")
		}
		if usesPointers.Match(src) && !bytes.Contains(src, []byte("// SAFETY")) {
			complain("uses unsafe pointers without a word on why it may (// SAFETY:)")
		}
	case (imported == "log" || imported == "log/slog") && slices.Contains(quiet, top) && !test:
		complain("imports %s: %s does not log; it returns errors", imported, top)
	}
	local, ok := strings.CutPrefix(imported, module)
	if !ok || test {
		return
	}
	target, _, _ := strings.Cut(local, "/")
	from, known := layers[top]
	to, targetKnown := layers[target]
	switch {
	case !known || !targetKnown:
		complain("imports %s: the layer of %q or of %q is unknown; add it to internal/archlint", local, top, target)
	case top != target && to >= from && from < layers["cmd"]:
		complain("imports %s, which is not below it: see the layers in internal/archlint", local)
	}
}

func checkSkips(f *ast.File, complain func(string, ...any)) {
	ast.Inspect(f, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
				complain("calls %s: a missing part is a failure that says how to get it", sel.Sel.Name)
			}
		}
		return true
	})
}
