#!/bin/sh
# Instructions a record in the engine alone, by callgrind: the same on a busy machine as on a quiet one.
# usage: instructions.sh [name...]     what was counted
#        instructions.sh --check       likewise, and fails where it is above its limit in instructions.limits
# A script and not gungraun, whose runner is a program of its own that must be installed in the crate's very version.
set -eu
cd "$(dirname "$0")/.."
bench=$(cargo bench --locked -p sluice-core --bench engine --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"engine".*"executable":"\([^"]*\)".*/\1/p')
[ -n "$bench" ] || { echo "the bench does not build: cargo bench -p sluice-core --bench engine --no-run" >&2; exit 1; }
records=1000
check=
if [ "${1:-}" = --check ]; then
    check=benches/instructions.limits
    shift
fi
if [ $# -eq 0 ]; then
    set -- $(sed -n 's/.*Work { name: "\([^"]*\)".*/\1/p' benches/engine/work.rs)
fi
above=0
for name in "$@"; do
    count=$(valgrind --tool=callgrind --callgrind-out-file="${CALLGRIND_OUT:-/dev/null}" \
        --collect-atstart=no --toggle-collect='*measured*' "$bench" --once "$name" 2>&1 |
        sed -n 's/.*Collected : \([0-9]*\).*/\1/p')
    [ -n "$count" ] || { echo "$name: callgrind counted nothing" >&2; exit 1; }
    count=$((count / records))
    if [ -z "$check" ]; then
        printf '%-22s %6d\n' "$name" "$count"
        continue
    fi
    limit=$(awk -v name="$name" '$1 == name { print $2 }' "$check")
    [ -n "$limit" ] || { echo "$name has no limit in $check" >&2; exit 1; }
    printf '%-22s %6d instructions a record, at most %6d\n' "$name" "$count" "$limit"
    [ "$count" -le "$limit" ] || above=$((above + 1))
done
[ "$above" -eq 0 ] || { echo "$above above its limit: find what costs, or raise the limit with the reason" >&2; exit 1; }
