package main

import (
	"io"
	"strings"
	"testing"

	"github.com/pagewarp/pagewarp/internal/mdtest"
)

// Each call of the daemon in the documents has commands and flags that there are.
func TestDocumentedCommands(t *testing.T) {
	calls := 0
	for _, page := range mdtest.Pages(t, "../..") {
		for _, words := range page.Calls("pagewarpd") {
			calls++
			call := page.Name + ": pagewarpd " + strings.Join(words, " ")
			cmd, rest, err := newRoot(io.Discard, nil).Find(words)
			if err != nil {
				t.Errorf("%s: %v", call, err)
				continue
			}
			cmd.InitDefaultHelpFlag()
			for _, w := range rest {
				name, _, _ := strings.Cut(strings.Trim(w, "[]"), "=")
				if flag, ok := strings.CutPrefix(name, "--"); ok && cmd.Flag(flag) == nil {
					t.Errorf("%s: there is no flag %s", call, name)
				}
			}
		}
	}
	if calls < 5 {
		t.Errorf("only %d calls were found", calls)
	}
}
