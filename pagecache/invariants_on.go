//go:build invariants

package pagecache

import "fmt"

// violated stops the program at a programmer's mistake that a normal build
// reports as an error or answers conservatively.
func violated(format string, args ...any) {
	panic("pagecache: " + fmt.Sprintf(format, args...))
}

// invariants says whether violated stops the program.
const invariants = true
