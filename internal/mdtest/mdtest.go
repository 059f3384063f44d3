// Package mdtest reads the repository's Markdown pages for tests that hold them to the
// code: commands and their flags, links, names of tests.
package mdtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Page is a Markdown file.
type Page struct {
	Name  string // its path from the root of the repository
	Prose string // without its fenced blocks
	Code  []string
	// Code is what stands as code: each inline span, with its line breaks as spaces, and
	// each line of a fenced block.
}

var (
	fence = regexp.MustCompile("(?ms)^```[a-z]*\n(.*?)^```")
	span  = regexp.MustCompile("`([^`]+)`")
)

// Pages reads all pages under root, the root of the repository, without build and
// testdata.
func Pages(t *testing.T, root string) (out []Page) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "build" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && p != root) {
			return filepath.SkipDir
		}
		if filepath.Ext(p) != ".md" {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		page := Page{Name: name, Prose: fence.ReplaceAllString(string(b), "")}
		for _, m := range span.FindAllStringSubmatch(page.Prose, -1) {
			page.Code = append(page.Code, strings.Join(strings.Fields(m[1]), " "))
		}
		for _, m := range fence.FindAllStringSubmatch(string(b), -1) {
			page.Code = append(page.Code, strings.Split(m[1], "\n")...)
		}
		out = append(out, page)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 8 {
		t.Fatalf("%d pages under %s", len(out), root)
	}
	return out
}

// Calls returns the arguments of each call of program among the page's code. What
// follows a call on its line (`·`, `&&`, `|`, `>`, `#`) ends it.
func (p Page) Calls(program string) (out [][]string) {
	for _, code := range p.Code {
		words := strings.Fields(strings.TrimPrefix(strings.TrimSpace(code), "$ "))
		for len(words) > 0 {
			end := slices.IndexFunc(words, func(w string) bool { return slices.Contains([]string{"·", "&&", "||", "|", ">", "#", "\\"}, w) })
			if end < 0 {
				end = len(words)
			}
			if end > 0 && filepath.Base(words[0]) == program {
				out = append(out, words[1:end])
			}
			words = words[min(end+1, len(words)):]
		}
	}
	return out
}
