package daemon_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pagewarp/pagewarp/cmd/internal/api"
	"github.com/pagewarp/pagewarp/cmd/internal/config"
	"github.com/pagewarp/pagewarp/relocate"
)

func apiPage(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../../docs/API.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The examples of docs/API.md are sent as they are written, one after the other.
func TestDocumentedExamples(t *testing.T) {
	cfg := config.Default()
	cfg.Insecure = true
	_, _, _, sock := serve(t, cfg)
	line := regexp.MustCompile(`^api (?:-X ([A-Z]+) )?'?(http://\S+?)'?(?: -d '([^']*)')?$`)
	sent := 0
	for l := range strings.Lines(apiPage(t)) {
		l = strings.TrimSpace(l)
		if !strings.HasPrefix(l, "api ") {
			continue
		}
		m := line.FindStringSubmatch(l)
		if m == nil {
			t.Errorf("%q cannot be read by this test", l)
			continue
		}
		u, err := url.Parse(m[2])
		if err != nil {
			t.Fatal(err)
		}
		method := m[1]
		if method == "" {
			method = "GET"
		}
		sent++
		if status, _, e := raw(t, sock, method, u.RequestURI(), m[3]); status >= 300 {
			t.Errorf("%s: %d %+v", l, status, e)
		}
	}
	if sent < 10 {
		t.Errorf("%d examples were found", sent)
	}
}

// Whatever may be in a request or an answer is named in docs/API.md.
func TestEveryFieldIsDocumented(t *testing.T) {
	page := apiPage(t)
	seen := map[reflect.Type]bool{}
	var look func(r reflect.Type)
	look = func(r reflect.Type) {
		for r.Kind() == reflect.Pointer || r.Kind() == reflect.Slice || r.Kind() == reflect.Map {
			r = r.Elem()
		}
		if r.Kind() != reflect.Struct || r == reflect.TypeFor[time.Time]() || seen[r] {
			return
		}
		seen[r] = true
		for i := range r.NumField() {
			f := r.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && name != "-" && !strings.Contains(page, "`"+name+"`") && !strings.Contains(page, `{"`+name+`":`) {
				t.Errorf("%s.%s: `%s` is not in docs/API.md", r, f.Name, name)
			}
			look(f.Type)
		}
	}
	for _, v := range []any{api.VersionReply{}, api.AddRequest{}, api.MachinesReply{}, api.RelocateRequest{}, api.CacheReply{},
		api.BandwidthRequest{}, api.Limits{}, api.LimitsRequest{}, api.StatusReply{}, api.Error{}, relocate.Event{}} {
		look(reflect.TypeOf(v))
	}
	if len(seen) < 15 {
		t.Errorf("only %d types were looked at", len(seen))
	}
}

// The table of docs/API.md has each code, with its status.
func TestEveryCodeIsDocumented(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../api/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	page, codes := apiPage(t), 0
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(v.Names[0].Name, "Code") {
			return true
		}
		code, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		codes++
		if row := fmt.Sprintf("| %d | `%s` |", api.Errorf(code, "", "").Status, code); !strings.Contains(page, row) {
			t.Errorf("docs/API.md lacks %q", row)
		}
		return true
	})
	if rows := strings.Count(page[strings.Index(page, "## Errors"):], "| `"); codes == 0 || rows != codes {
		t.Errorf("%d codes, %d rows", codes, rows)
	}
}
