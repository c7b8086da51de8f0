#!/usr/bin/env bash
# The dependency rules of deny.toml: licenses, bans, sources. Takes cargo-deny from PATH, or builds it once into target/.
set -eu
cd "$(dirname "$0")/.."
version=0.20.2
tools=${SLUICE_TOOLS:-$PWD/target/tools}
deny=$(command -v cargo-deny || true)
if [ -z "$deny" ]; then
  deny=$tools/bin/cargo-deny
  # --debug: it runs for a second, and an optimised build of it takes minutes.
  "$deny" --version 2>/dev/null | grep -q "$version" ||
    cargo install --quiet --debug --locked --no-default-features --root "$tools" --target-dir "$tools/build" "cargo-deny@$version"
  rm -rf "$tools/build"
fi
exec "$deny" --all-features check bans licenses sources
