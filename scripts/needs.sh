#!/usr/bin/env bash
# Looks for what the build and the tests need beyond this repository, before minutes of compiling, and prints the one
# line that installs what is missing. Usage: scripts/needs.sh build|test|bench
set -u
what=${1:-build}
missing=() packages=()
need() { # command, what for, Debian package
  command -v "$1" >/dev/null 2>&1 || { missing+=("$1 ($2)"); packages+=("$3"); }
}
rust_min=90
if ! command -v cargo >/dev/null 2>&1; then
  echo "needs: cargo is missing: install Rust 1.$rust_min or later (https://rustup.rs)" >&2
  exit 1
fi
minor=$(rustc --version | sed -n 's/^rustc 1\.\([0-9]*\)\..*/\1/p')
if [ -n "$minor" ] && [ "$minor" -lt "$rust_min" ]; then
  echo "needs: rustc 1.$minor is too old, 1.$rust_min or later is needed: rustup update stable" >&2
  exit 1
fi
need cc "librdkafka is compiled from source" gcc
need c++ "librdkafka is compiled from source" g++
need make "librdkafka is compiled from source" make
need pkg-config "finds OpenSSL" pkg-config
if command -v pkg-config >/dev/null 2>&1 && ! pkg-config --exists openssl; then
  missing+=("OpenSSL headers (TLS to Kafka)")
  packages+=(libssl-dev)
fi
if command -v pkg-config >/dev/null 2>&1 && ! pkg-config --exists zlib; then
  missing+=("zlib headers (compressed records)")
  packages+=(zlib1g-dev)
fi
# Debian keeps servers where not every user's path leads.
PATH=$PATH:/usr/sbin
if [ "$what" != build ]; then
  need haproxy "the tests lead clients through it" haproxy
  need nginx "the tests lead clients through it" nginx
  need java "the tests run a real Apache Kafka" openjdk-17-jre-headless
  need mvn "the tests fetch Apache Kafka's jars" maven
  need python3 "the tests run a stock gRPC client" python3
  if command -v python3 >/dev/null 2>&1 && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=("python3 venv (the tests run a stock gRPC client)")
    packages+=(python3-venv)
  fi
  need curl "the README's commands use it" curl
fi
if [ "$what" = bench ]; then
  need valgrind "the benchmark counts instructions" valgrind
fi
if [ ${#missing[@]} -gt 0 ]; then
  printf 'needs: missing: %s\n' "${missing[@]}" >&2
  sudo=; [ "$(id -u)" = 0 ] || sudo="sudo "
  echo "needs: on Debian or Ubuntu this installs it:" >&2
  echo "  ${sudo}apt-get update && ${sudo}apt-get install -y ${packages[*]}" >&2
  exit 1
fi
