#!/bin/sh
# Instructions a record in the engine alone, by callgrind: the same on a busy machine as on a quiet one.
# usage: instructions.sh [name...]
set -eu
cd "$(dirname "$0")/.."
bench=$(cargo bench -p sluice-core --bench engine --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"engine".*"executable":"\([^"]*\)".*/\1/p')
[ -n "$bench" ] || { echo "the bench does not build" >&2; exit 1; }
records=1000
if [ $# -eq 0 ]; then
    set -- $(sed -n 's/.*Work { name: "\([^"]*\)".*/\1/p' benches/engine/work.rs)
fi
for name in "$@"; do
    count=$(valgrind --tool=callgrind --callgrind-out-file="${CALLGRIND_OUT:-/dev/null}" \
        --collect-atstart=no --toggle-collect='*measured*' "$bench" --once "$name" 2>&1 |
        sed -n 's/.*Collected : \([0-9]*\).*/\1/p')
    printf '%-22s %6d\n' "$name" $((count / records))
done
