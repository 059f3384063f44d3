package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/pagewarp/pagewarp/internal/words"
)

// Load reads the file at path over the defaults. Unknown keys and syntax errors
// are named with their line; values are left to Validate, because flags may
// still override them.
func Load(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, fmt.Errorf("configuration %s does not exist; `pagewarpd config --example > %s` makes one", path, path)
	}
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, string(b))
}

// Parse is Load for a text; name stands for it in errors.
func Parse(name, text string) (Config, error) {
	c := Default()
	md, err := toml.Decode(text, &c)
	if err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			return Config{}, fmt.Errorf("%s:%d: key %q: %s", name, pe.Position.Line, pe.LastKey, pe.Message)
		}
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	var errs []error
	var table toml.Key // the last unknown one: its keys need no word of their own
	for _, k := range md.Undecoded() {
		if len(table) > 0 && len(k) > len(table) && equal(table, k[:len(table)]) {
			continue
		}
		table = k
		at := name
		if n := lineOf(text, k); n > 0 {
			at = fmt.Sprintf("%s:%d", name, n)
		}
		hint := ""
		if meant := similarKey(k); meant != "" {
			hint = fmt.Sprintf("did you mean %s? ", meant)
		}
		errs = append(errs, fmt.Errorf("%s: unknown key %q; %s`pagewarpd config --example` lists them all", at, k, hint))
	}
	return c, errors.Join(errs...)
}

// similarKey returns the key or table that k is meant to be, if there is one: one whose
// name is two letters away at most, first in the table of k, then in any.
func similarKey(k toml.Key) string {
	last := k[len(k)-1]
	best, least := "", 3
	for _, known := range knownKeys(reflect.TypeFor[Config](), nil) {
		name := known[len(known)-1]
		d := words.Distance(last, name)
		if d >= min(3, len(name)) {
			continue
		}
		if len(known) != len(k) || !equal(known[:len(known)-1], k[:len(k)-1]) && !inTemplate(known, k) {
			d++ // elsewhere
		}
		if d < least {
			best, least = strings.Join(known, "."), d
		}
	}
	return best
}

// inTemplate reports whether both are keys of a template, whatever its name.
func inTemplate(known, k toml.Key) bool {
	return len(k) == 3 && len(known) == 3 && k[0] == known[0] && k[0] == "templates"
}

// knownKeys lists the keys and tables of a configuration.
func knownKeys(t reflect.Type, at toml.Key) (keys []toml.Key) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if tag == "" || tag == "-" {
			continue
		}
		k := append(at[:len(at):len(at)], tag)
		keys = append(keys, k)
		switch {
		case f.Type.Kind() == reflect.Struct:
			keys = append(keys, knownKeys(f.Type, k)...)
		case f.Type.Kind() == reflect.Map && f.Type.Elem().Kind() == reflect.Struct:
			keys = append(keys, knownKeys(f.Type.Elem(), append(k, "NAME"))...)
		}
	}
	return keys
}

// lineOf finds the line that defines key, or 0. The decoder does not keep the
// positions of keys it did not use.
func lineOf(text string, key toml.Key) int {
	var table []string
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			head, _, _ := strings.Cut(strings.Trim(line, "["), "]")
			table = splitKey(head)
			if equal(table, key) {
				return i + 1
			}
			continue
		}
		name, _, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if equal(append(table[:len(table):len(table)], splitKey(name)...), key) {
			return i + 1
		}
	}
	return 0
}

func splitKey(s string) []string {
	var out []string
	var quote rune
	cur := strings.Builder{}
	for _, r := range s {
		switch {
		case quote == 0 && (r == '"' || r == '\''):
			quote = r
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && r == '.':
			out = append(out, strings.TrimSpace(cur.String()))
			cur.Reset()
		case quote == 0 && (r == ' ' || r == '\t'):
		default:
			cur.WriteRune(r)
		}
	}
	return append(out, cur.String())
}

func equal(a []string, b toml.Key) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// Encode writes c as TOML.
func (c Config) Encode() (string, error) {
	var b strings.Builder
	e := toml.NewEncoder(&b)
	e.Indent = ""
	if err := e.Encode(c); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	return b.String(), nil
}
