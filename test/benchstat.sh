#!/bin/bash
# Compares the benchmarks beside the hot code of the working tree with those of
# another commit, by benchstat. It is information: what it cannot do it says, and
# it exits with 0, within a minute.
#
#   test/benchstat.sh [COMMIT]     by default the parent of HEAD
set -uo pipefail
cd "$(dirname "$0")/.."
base=${1:-HEAD~1}
go=${GO:-go}
benchstat=build/tools/benchstat
rounds=8

# Package and the benchmarks that need no more than the package.
hot=(
  "pagecache ."
  "transport ."
  "internal/ringq ."
  "faultd Outstanding"
)

no() {
  echo "benchstat: no comparison: $*"
  exit 0
}
end=$((SECONDS + 50))

commit=$(git rev-parse --verify -q "$base^{commit}") || no "there is no commit $base here"
# What differs, and whether a package's program can: it is made of the folders of this module
# that it imports, and of go.mod.
root=$(pwd -P)
changed=$(git diff --name-only "$commit" -- && git ls-files -o --exclude-standard) || no "git does not say what differs from $base"
may_differ() { # PACKAGE
  local folders
  grep -qxE 'go\.(mod|sum)' <<<"$changed" && return
  folders=$("$go" list -deps -test -f '{{with .Module}}{{if .Main}}{{$.Dir}}{{end}}{{end}}' "./$1") || return 0
  grep -qxFf <(sed "s|^$root/||" <<<"$folders" | sort -u) <<<"$(sed 's|/testdata/.*||; t; s|/[^/]*$||' <<<"$changed")"
}
differ=()
for line in "${hot[@]}"; do
  read -r package which <<<"$line"
  if may_differ "$package"; then
    differ+=("$line")
  else
    echo "benchstat: $package: the same sources as at $base"
  fi
done
[ ${#differ[@]} -gt 0 ] || exit 0

[ -x "$benchstat" ] || timeout 40 "$go" build -modfile=internal/tools/benchstat.mod -o "$benchstat" golang.org/x/perf/cmd/benchstat ||
  no "benchstat cannot be had"
work=$(mktemp -d) || no "there is no room for it"
trap 'rm -rf "$work"' EXIT
mkdir "$work/base" && git archive "$commit" | tar -x -C "$work/base" || no "$commit cannot be unpacked"

compile() { # FOLDER PACKAGE PROGRAM
  (cd "$1" && timeout $((end > SECONDS ? end - SECONDS : 1)) "$go" test -c -trimpath -buildvcs=false -o "$3" "./$2")
}
todo=()
for line in "${differ[@]}"; do
  read -r package which <<<"$line"
  name=${package//\//-}
  compile . "$package" "$work/new-$name" || no "$package does not build in time"
  compile "$work/base" "$package" "$work/old-$name" || { echo "benchstat: $package does not build at $base in time"; continue; }
  if cmp -s "$work/old-$name" "$work/new-$name"; then
    echo "benchstat: $package: the same program as at $base"
  else
    todo+=("$package $name $which")
  fi
done
[ ${#todo[@]} -gt 0 ] || exit 0

# In alternation, so that what else the machine does hits both.
touch "$work/old" "$work/new"
for ((round = 1; round <= rounds; round++)); do
  for line in "${todo[@]}"; do
    read -r package name which <<<"$line"
    for side in old new; do
      ((SECONDS < end)) || break 3
      root=. && [ "$side" = new ] || root=$work/base
      (cd "$root/$package" && timeout $((end - SECONDS)) "$work/$side-$name" -test.run '^$' -test.bench "$which" -test.benchtime 5ms) >>"$work/$side" ||
        echo "benchstat: $package failed, $side, round $round"
    done
  done
done
echo "benchstat: $base ($(git rev-parse --short "$commit")) and the working tree, up to $rounds rounds in alternation, for information"
cd "$work" && "$OLDPWD/$benchstat" "base=old" "here=new" || no "benchstat failed"
