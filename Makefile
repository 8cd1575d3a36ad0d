# The two commands: `make demo` and `make test`. Everything they need they install themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Outside the checkout, shared by all checkouts of a user: dependencies are built once.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/milepost/target

# One profile serves the demo and the tests, one package selection keeps DataFusion from being built
# twice: Cargo unifies features over the selected packages.
PROFILE := demo
HEAVY := -p milepost -p server -p lake
MILEPOST := $(CARGO_TARGET_DIR)/$(PROFILE)/milepost

PREFIX ?= $(HOME)/.local
VEHICLES ?= 50
DURATION ?=
FUZZ_SECONDS ?= 60
PYTHON_ENV := $(CARGO_TARGET_DIR)/python
# The MQTT clients that the tests run (paho, MQTT.js, AWS, aioquic), from PyPI and npm. Where these cannot
# be reached, the tests say that they are skipped.
CLIENTS := $(CARGO_TARGET_DIR)/clients

.PHONY: help setup setup-test demo build install test test-light test-heavy simulate lint docs bench bench-weather bench-connects bench-netem bench-tools bench-peers bench-peers-setup fuzz clean

help: ## Lists these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: ## Installs what building needs, where it is missing
	@scripts/setup.sh build

setup-test: setup
	@scripts/setup.sh test "$(PYTHON_ENV)"
	@scripts/setup.sh clients "$(CLIENTS)" || echo "warning: no real MQTT clients; their tests will be skipped" >&2

build: setup ## Builds the milepost binary, quick to build and quick enough to run
	@scripts/build-with-progress.sh cargo build --locked --profile $(PROFILE) $(HEAVY)

install: build ## Copies the milepost binary to PREFIX/bin (default ~/.local/bin)
	install -D -m 755 $(MILEPOST) $(PREFIX)/bin/milepost
	@echo "installed $(PREFIX)/bin/milepost"

demo: build ## A fleet with certificates drives, its data lands in the lake, SQL answers
	$(MILEPOST) demo --vehicles $(VEHICLES) $(if $(DURATION),--duration $(DURATION))

test: setup-test test-light test-heavy ## All tests

test-light:
	cargo test --locked --profile $(PROFILE)

test-heavy: build
	@# One of the clients, built with the light crates; see its first lines.
	cargo build --locked --profile $(PROFILE) --example rumqttc_client
	@if $(PYTHON_ENV)/bin/python -c 'import deltalake, duckdb' 2>/dev/null; \
	then export MILEPOST_TEST_PYTHON=$(PYTHON_ENV)/bin/python; fi; \
	if [ -f "$(CLIENTS)/complete" ]; then export MILEPOST_TEST_CLIENTS=$(CLIENTS); fi; \
	set -x; cargo test --locked --profile $(PROFILE) $(HEAVY)

lint: ## Format, clippy with warnings as errors, dependency audit
	cargo fmt --all --check
	cargo clippy --locked --profile $(PROFILE) --all-targets -- -D warnings
	cargo clippy --locked --profile $(PROFILE) $(HEAVY) --all-targets -- -D warnings
	@scripts/audit.sh

docs: ## API documentation; broken links are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --profile $(PROFILE) --no-deps
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --profile $(PROFILE) $(HEAVY) --no-deps

bench: ## Measures throughput, freshness and memory; see bench/README.md
	cargo build --locked --release $(HEAVY) --bin milepost --example ingest_bench
	cargo build --locked --release -p fleet-sim --example load --example sessions
	bench/run.py
	bench/sessions.py

bench-tools:
	cargo build --locked --release $(HEAVY) --bin milepost
	cargo build --locked --release -p fleet-sim --example load --example weather --example connects --example rough_road --example certificates

bench-weather: bench-tools ## What good clients notice while hostile ones do their worst; half an hour
	bench/weather.py $(if $(shell command -v mosquitto),--peer mosquitto)

bench-connects: bench-tools ## Connects per second and memory per connection, for every transport; a quarter of an hour
	bench/connects.py $(if $(shell command -v mosquitto),--peer mosquitto)

bench-netem: bench-tools ## QUIC against TLS on a road with loss and delay (root)
	bench/netem.py

bench-peers: ## Milepost beside other brokers, scenario by scenario; PEERS_OPTIONS="--scenario fan-in …"
	cargo build --locked --release $(HEAVY) --bin milepost
	cargo build --locked --release -p fleet-sim --example peers
	bench/peers.py $(PEERS_OPTIONS)

bench-peers-setup: ## Builds and fetches the brokers of other projects that bench-peers measures (long)
	bench/setup_peers.sh "$(CARGO_TARGET_DIR)/peers"

fuzz: ## Fuzzes the codec for FUZZ_SECONDS a target over the kept corpus
	@scripts/fuzz.sh $(FUZZ_SECONDS)

simulate: ## Runs the broker's simulation over new seeds until something breaks; see docs/simulation.md
	cargo run --locked --release -p broker --features simulation --example simulate -- --forever

clean: ## Removes what was built (the data folders stay)
	cargo clean
