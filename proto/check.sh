#!/usr/bin/env bash
# Holds the contract: `buf lint` (STANDARD and COMMENTS), and `buf breaking` against the contract as it last landed.
#
#   proto/check.sh           checks, as CI does
#   proto/check.sh --renew   after a change that breaks nothing: checks, then writes proto/baseline.binpb anew
#
# The contract as it last landed is proto/baseline.binpb, an image made by `buf build`. It is in the repository, so that
# the check works in a shallow clone of one branch. A change that adds to the contract renews it in the same commit, which
# the check asks for: otherwise what was added could be changed again unseen. A break that is wanted (before 1.0 only)
# deletes the file first, and says in CHANGELOG.md what breaks.
#
# buf is taken from the PATH. Where there is none, it is installed under target/ from PyPI (buf-bin), else from npm.
set -euo pipefail
cd "$(dirname "$0")"
tools=../target/buf
version=1.75.0

find_buf() {
    local candidate
    for candidate in buf "$tools/venv/bin/buf" "$tools/node_modules/.bin/buf"; do
        if "$candidate" --version >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

install_buf() {
    mkdir -p "$tools"
    if python3 -m venv "$tools/venv" && "$tools/venv/bin/pip" install --quiet "buf-bin==$version"; then
        return
    fi
    echo "buf: not to be had from PyPI, trying npm" >&2
    npm install --silent --no-audit --no-fund --prefix "$tools" "@bufbuild/buf@$version"
} >&2

if ! buf=$(find_buf); then
    install_buf || true
    buf=$(find_buf) || {
        echo "buf is missing and could not be installed. Mend it with: pip install buf-bin, or: npm install -g @bufbuild/buf" >&2
        exit 1
    }
fi

echo "buf $("$buf" --version): lint"
"$buf" lint
if [ -e baseline.binpb ]; then
    echo "buf: breaking, against baseline.binpb"
    "$buf" breaking --against baseline.binpb
elif [ "${1:-}" != --renew ]; then
    echo "proto/baseline.binpb is missing. Mend it with: proto/check.sh --renew" >&2
    exit 1
fi

current=$(mktemp -d)
trap 'rm -rf "$current"' EXIT
# Without source info: a comment alone asks for no renewal.
"$buf" build --exclude-source-info -o "$current/image.binpb"
if [ "${1:-}" = --renew ]; then
    cp "$current/image.binpb" baseline.binpb
    echo "proto/baseline.binpb written"
elif ! cmp -s "$current/image.binpb" baseline.binpb; then
    echo "the contract has grown since proto/baseline.binpb was written. Mend it with: proto/check.sh --renew" >&2
    exit 1
fi
