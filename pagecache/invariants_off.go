//go:build !invariants

package pagecache

// violated does nothing without the build tag invariants.
func violated(string, ...any) {}

// invariants says whether violated stops the program.
const invariants = false
