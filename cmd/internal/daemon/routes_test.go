package daemon

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"
)

// docs/API.md has a row for each route and method, and none for any other.
func TestEveryRouteIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../../docs/API.md")
	if err != nil {
		t.Fatal(err)
	}
	said, is := map[string]bool{}, map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z]+ /[^` ]*)` \\|").FindAllStringSubmatch(string(page), -1) {
		said[m[1]] = true
	}
	for _, r := range (&Server{}).routes() {
		for method := range r.methods {
			is[method+" "+r.path] = true
		}
	}
	if a, b := slices.Sorted(maps.Keys(said)), slices.Sorted(maps.Keys(is)); !slices.Equal(a, b) {
		t.Errorf("documented are\n%q\nand there are\n%q", a, b)
	}
}
