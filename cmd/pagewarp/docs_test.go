package main

import (
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/bench/workloads"
	"github.com/pagewarp/pagewarp/internal/mdtest"
)

// placeholder stands for a value, or is all that is said of a flag.
var placeholder = regexp.MustCompile(`\b[A-Z]{2,}\b|\bN$|--[a-z-]+$`)

// Each call of the command in the documents has a command that there is, and its flags.
func TestDocumentedCommands(t *testing.T) {
	calls := 0
	for _, page := range mdtest.Pages(t, "../..") {
		for _, words := range page.Calls("pagewarp") {
			if len(words) == 0 || words[0] == "COMMAND" || words[0] == "warm" { // a key of the protocol
				continue
			}
			calls++
			call := page.Name + ": pagewarp " + strings.Join(words, " ")
			cmd, rest, err := newRoot(&app{out: io.Discard, errOut: io.Discard}).Find(words)
			if err != nil || !cmd.HasParent() && !strings.HasPrefix(words[0], "-") {
				t.Errorf("%s: there is no such command: %v", call, err)
				continue
			}
			cmd.InitDefaultHelpFlag()
			cmd.InitDefaultVersionFlag()
			for _, w := range rest {
				name, _, _ := strings.Cut(strings.Trim(w, "[]"), "=")
				if flag, ok := strings.CutPrefix(name, "--"); ok && cmd.Flag(flag) == nil {
					t.Errorf("%s: there is no flag %s", call, name)
				}
			}
			if !placeholder.MatchString(call) {
				if err := cmd.ParseFlags(rest); err != nil {
					t.Errorf("%s: %v", call, err)
				}
			}
			if f := cmd.Flag("load"); f != nil && f.Changed {
				if _, err := workloads.Parse(f.Value.String()); err != nil {
					t.Errorf("%s: %v", call, err)
				}
			}
			if cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") && strings.ToLower(rest[0]) == rest[0] {
				t.Errorf("%s: there is no command %s", call, rest[0])
			}
		}
	}
	if calls < 60 {
		t.Errorf("only %d calls were found", calls)
	}
}
