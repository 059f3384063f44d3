#!/bin/bash
# Runs every fuzz target of the module for the given time, one after the other.
#
#   test/fuzz.sh 20s
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-20s}
go=${GO:-go}
failed=0
while read -r dir; do
  while read -r target; do
    echo "== $dir $target ($time)"
    "$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$dir" || failed=1
  done < <(grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | sed 's/^func //' | sort -u)
done < <(git ls-files -co --exclude-standard '*_test.go' | xargs grep -l '^func Fuzz' | xargs -n1 dirname | sort -u)
exit $failed
