package archlint

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/internal/mdtest"
)

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	dropped = regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)
	target  = regexp.MustCompile(`(?m)^([a-z][a-z-]*):`)
	goTest  = regexp.MustCompile(`\b(?:Test|Benchmark|Fuzz)[A-Z]\w*`)
	goFunc  = regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)\w+)\(`)
)

// anchor is what a heading is called in a link (the rules of GitHub's renderer).
func anchor(heading string) string {
	return strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(link.ReplaceAllString(strings.ReplaceAll(heading, "[", ""), "")), ""), " ", "-")
}

// Links of the documents lead to files and headings that there are.
func TestLinks(t *testing.T) {
	pages := mdtest.Pages(t, "../..")
	anchors := map[string][]string{}
	for _, p := range pages {
		for _, m := range heading.FindAllStringSubmatch(p.Prose, -1) {
			anchors[p.Name] = append(anchors[p.Name], anchor(m[1]))
		}
	}
	links := 0
	for _, p := range pages {
		for _, m := range link.FindAllStringSubmatch(p.Prose, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			path, head, _ := strings.Cut(m[1], "#")
			name := p.Name
			if path != "" {
				name = filepath.Join(filepath.Dir(p.Name), path)
			}
			if _, err := os.Stat(filepath.Join("../..", name)); err != nil {
				t.Errorf("%s: link %s: %v", p.Name, m[1], err)
			} else if head != "" && !slices.Contains(anchors[name], head) {
				t.Errorf("%s: link %s: no such heading", p.Name, m[1])
			}
		}
	}
	if links < 20 {
		t.Errorf("only %d links were found", links)
	}
}

// The whole session that the README refers to is for modules that have no internal
// packages of ours.
func TestExampleIsForOthers(t *testing.T) {
	files, err := filepath.Glob("../../faultd/example*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), module+"internal/") {
			t.Errorf("%s imports an internal package", f)
		}
	}
}

// A row has as many cells as the head of its table, or what it says stands elsewhere.
func TestTables(t *testing.T) {
	rule := regexp.MustCompile(`^\|[\s:|-]+\|$`)
	rows := 0
	for _, p := range mdtest.Pages(t, "../..") {
		cells, last := 0, ""
		for l := range strings.Lines(p.Prose) {
			l = strings.TrimSpace(l)
			n := strings.Count(strings.ReplaceAll(l, `\|`, ""), "|") - 1
			switch {
			case !strings.HasPrefix(l, "|"):
				if last != "" {
					t.Errorf("%s: a row without a table: %s", p.Name, last)
				}
				cells, last = 0, ""
			case cells == 0:
				cells, last = n, l
			default:
				if rows++; n != cells {
					t.Errorf("%s: %d cells, not %d: %s", p.Name, n, cells, l)
				}
				if last != "" && !rule.MatchString(l) {
					t.Errorf("%s: a row without a table: %s", p.Name, last)
				}
				last = ""
			}
		}
	}
	if rows < 100 {
		t.Errorf("only %d rows were found", rows)
	}
}

// Targets of make and names of tests and benchmarks in the documents are there. A name
// may be the beginning of several.
func TestNamesInDocuments(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	var targets, tests []string
	for _, m := range target.FindAllStringSubmatch(string(makefile), -1) {
		targets = append(targets, m[1])
	}
	err = filepath.WalkDir("../..", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == "build" {
			return filepath.SkipDir
		}
		if strings.HasSuffix(p, ".go") {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			for _, m := range goFunc.FindAllStringSubmatch(string(b), -1) {
				tests = append(tests, m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, p := range mdtest.Pages(t, "../..") {
		for _, words := range p.Calls("make") {
			if slices.Contains(words, "-C") { // another Makefile
				continue
			}
			for _, w := range words {
				if strings.Contains(w, "=") || strings.HasPrefix(w, "-") {
					continue
				}
				if found++; !slices.Contains(targets, w) {
					t.Errorf("%s: make %s: no such target", p.Name, w)
				}
			}
		}
		for _, code := range p.Code {
			for _, name := range goTest.FindAllString(code, -1) {
				if found++; !slices.ContainsFunc(tests, func(have string) bool { return strings.HasPrefix(have, name) }) {
					t.Errorf("%s: %s: no such test", p.Name, name)
				}
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d names were found", found)
	}
}
