# `make run` and `make test` do everything that a fresh Debian machine with rustup and a C compiler needs: setup.sh
# installs what is missing and says so.

PLUGINS := $(notdir $(wildcard plugins/*))
BUILT   := $(PLUGINS:%=target/wasm32-wasip2/plugin/%.wasm)

.PHONY: run test lint fuzz plugins setup bench deny image

run: plugins
	cargo build --release
	mkdir -p target/release/plugins
	cp $(BUILT) target/release/plugins/
	@./run.sh

# Every plugin, built from source. The hostile ones of the tests come along; they are not served.
plugins: setup
	cargo plugins

setup:
	@./setup.sh

# Everything; or some steps of it: make test STEPS='lint unit'.
test:
	@./setup.sh test
	@tests/run.sh $(STEPS)

lint:
	@./setup.sh test
	@tests/run.sh lint

# Made-up input for the parsers of untrusted data, for a minute.
fuzz:
	@./setup.sh test
	fuzz/run.sh

# Which crates may be used, and what is known against them.
deny:
	tests/deny.sh

# Both container images, built and used.
image:
	tests/image.sh

# Scouter and its peers measured side by side, on a quiet machine and as root; see bench/README.md. The report is
# target/bench/measurements.md; `make bench OUT=docs` makes it that of the documentation.
OUT := target/bench
bench:
	@./setup.sh bench
	cargo plugins
	cargo build --release -p scouter -p bench
	mkdir -p target/release/plugins target/release/hostile
	cp $(BUILT) target/release/plugins/
	cp target/wasm32-wasip2/plugin/hostile.wasm target/release/hostile/
	target/release/bench --out $(OUT)
