# The front door. `make dev` runs the main job, `make test` passes every test, `make check` and
# `make bench` are everything else that CI asks.
.PHONY: dev test check bench fmt

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

fmt:
	cargo fmt --all
