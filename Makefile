# The front door. `make dev` runs the main job, `make test` passes every test, `make check` is everything else that CI asks.
.PHONY: dev test check fmt

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

fmt:
	cargo fmt --all
