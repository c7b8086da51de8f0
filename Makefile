# The front door. `make dev` runs the main job, `make test` passes every test, `make check` and
# `make bench` are everything else that CI asks.
.PHONY: dev test check bench netns compose fmt

dev:
	@scripts/needs.sh build
	cargo run --locked -p sluice -- dev $(ARGS)

test:
	@scripts/needs.sh test
	cargo build --locked --workspace --all-targets
	cargo test --locked --workspace

check:
	@scripts/needs.sh test
	cargo fmt --all --check
	proto/check.sh
	scripts/deny.sh
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

# The short form of the benchmark: instruction counts of the engine, and one pair of drains, as ratios with wide limits.
bench:
	@scripts/needs.sh bench
	gateway/core/benches/instructions.sh --check
	cargo run --locked --release -p sluice-bench -- ci

# A cluster in network namespaces, with faults that only a network has: see CONTRIBUTING.md. It needs root.
netns:
	@scripts/needs.sh build
	cargo build --locked -p sluice -p sluice-tests --bin sluice --bin netns
	$(if $(filter 0,$(shell id -u)),,sudo) env SLUICE_BIN=$(CURDIR)/target/debug/sluice target/debug/netns $(ARGS)

# deploy/compose.yaml under load, with nodes that restart and die: see CONTRIBUTING.md. It needs a Docker engine.
compose:
	@scripts/needs.sh build
	cargo build --locked -p sluice-tests --bin under-load
	scripts/compose.sh $(ARGS)

fmt:
	cargo fmt --all
