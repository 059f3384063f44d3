// Package tools pins, in tools.mod, the development tools that are not part of
// the program, so that their dependencies stay out of go.mod:
//
//	go build -modfile=internal/tools/tools.mod -o build/tools/staticcheck honnef.co/go/tools/cmd/staticcheck
//
// benchstat.mod pins benchstat (test/benchstat.sh), without which all else works.
package tools
