#!/usr/bin/env bash
# deploy/compose.yaml as it stands, behind each balancer: under load all nodes restart, one after another, and one is killed. Says what
# became of records and streams, and takes everything down. Usage: scripts/compose.sh [--stand-ins] [haproxy|nginx|envoy]...
# Needs a Docker engine that this user may use, docker compose, and port 7070. Where no registry of images is reached, --stand-ins
# makes images of packages first: scripts/stand-ins.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "compose: $*" >&2; exit 1; }

balancers=() stand_ins=
for word in "$@"; do
  case $word in
    --stand-ins) stand_ins=yes ;;
    haproxy | nginx | envoy) balancers+=("$word") ;;
    *) fail "there is no $word; usage: [--stand-ins] [haproxy|nginx|envoy]..." ;;
  esac
done
[ ${#balancers[@]} -gt 0 ] || balancers=(haproxy nginx envoy)
docker version >/dev/null || fail "no Docker engine answers: start one, and be root or in the group docker"
docker compose version >/dev/null || fail "docker compose is missing: https://docs.docker.com/compose/install"
[ -x target/debug/under-load ] || fail "target/debug/under-load is missing: \`make compose\` builds it"
[ -z "$stand_ins" ] || scripts/stand-ins.sh
most=$(ulimit -Hn)
[ "$most" = unlimited ] || [ "$most" -ge 65536 ] || export NOFILE=${NOFILE:-$most}

work=$(mktemp -d)
export work
compose() { docker compose --progress quiet --project-name sluice-compose --project-directory deploy --file "$work/compose.yaml" "$@"; }
end() {
  [ "$1" = 0 ] || compose logs --tail 20 >&2
  compose down --volumes
  rm -rf "$work"
}
trap 'end $?' EXIT
trap 'exit 130' INT TERM

# Until each node sees all of them.
together() {
  local node seen
  for node in sluice-0 sluice-1 sluice-2; do
    for _ in {1..60}; do
      seen=$(compose exec -T $node sluice nodes 2>&1 || true)
      [ "$(grep -c '^orders  *sluice-[012] ' <<<"$seen")" = 3 ] && continue 2
      sleep 1
    done
    fail "$node does not find the others: $seen"
  done
}
# A node that is told to end does so by itself, with status 0, before the engine kills it.
restart() {
  local status
  compose stop "$1"
  status=$(docker inspect --format '{{.State.ExitCode}}' "$(compose ps --all --quiet "$1")")
  [ "$status" = 0 ] || fail "$1 ended with status $status"
  compose up --detach --wait --no-deps "$1"
  together
}
# Until the others own all of its partitions: Kafka waits for a member that says nothing more.
kill_node() {
  docker kill "$(compose ps --quiet "$1")" >/dev/null
  local others
  for _ in {1..120}; do
    others=$(compose exec -T sluice-0 sluice nodes | awk -v dead="$1" '$2 != dead { owned += $4 } END { print owned }')
    [ "$others" = 6 ] && break
    sleep 1
  done
  [ "$others" = 6 ] || fail "the others own $others of 6 partitions after $1 was killed"
  compose up --detach --wait --no-deps "$1"
  together
}
export -f fail compose together restart kill_node

produce="docker run --rm --interactive --network sluice-compose_default sluice produce --brokers kafka:9092 --topic orders --timeout 60s"
under_load() { # what, what for the shell to do, flags
  printf '%-8s %-18s ' "$balancer" "$1"
  target/debug/under-load "${@:3}" 127.0.0.1:7070 orders "$produce" bash -euo pipefail -c "$2"
}

for balancer in "${balancers[@]}"; do
  # One balancer's lines are there, and the others' commented out.
  sed -e 's/^    \(image: haproxy\|volumes: .*haproxy\)/    # \1/' \
    -e "s/^    # \(image: .*$balancer\|volumes: .*$balancer\)/    \1/" deploy/compose.yaml >"$work/compose.yaml"
  compose up --build --detach --wait
  together
  addresses=$(compose exec -T sluice-0 getent ahostsv4 sluice-peers | cut -d ' ' -f 1 | sort -u | wc -l)
  [ "$addresses" = 3 ] || fail "sluice-peers has $addresses addresses, not 3"
  for node in sluice-0 sluice-1 sluice-2; do
    under_load "$node restarts" "restart $node"
  done
  under_load "sluice-1 is killed" "kill_node sluice-1" --killed
  compose down --volumes
done
