# make help lists the verbs. CI runs the same ones.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run test test-starknet-devnet lint audit fmt bench bench-ponder doc soak build clean install-deps

# More arguments for the program (make run), the tests (make test, make soak) or the benches (make bench).
ARGS ?=
# How long make soak goes on.
SOAK_SECONDS ?= 600
# CI waits longer for a slow test.
PROFILE := $(if $(filter true,$(CI)),ci,default)

help: ## Lists these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Builds and runs it; with no ARGS, a small built-in chain. ARGS="--source evm --url http://127.0.0.1:8545" follows a real one
	@scripts/install-deps run
	cargo build --release --locked
	./target/release/ebbtide run $(ARGS)

test: ## Runs every test beside a throwaway Postgres. ARGS="-E 'test(reorg)'" picks some
	@scripts/install-deps test
	@# Built first, so that the server stands only while it is used.
	cargo nextest run --no-run $(if $(filter true,$(CI)),--locked)
	scripts/with-postgres cargo nextest run --profile $(PROFILE) $(ARGS)

# The node is built once, which takes tens of minutes; EBBTIDE_STARKNET_DEVNET names another one.
STARKNET_DEVNET := $(or $(EBBTIDE_STARKNET_DEVNET),$(CURDIR)/.tools/bin/starknet-devnet)

$(CURDIR)/.tools/bin/starknet-devnet:
	cargo install starknet-devnet --version 0.10.1 --locked --root .tools

test-starknet-devnet: $(STARKNET_DEVNET) ## Follows a real starknet-devnet, which it builds into .tools (tens of minutes, once)
	@scripts/install-deps test
	EBBTIDE_STARKNET_DEVNET=$(STARKNET_DEVNET) scripts/with-postgres \
		cargo nextest run --test starknet --run-ignored only -E 'test(devnet::)' $(ARGS)

lint: ## Format, clippy and documentation, warnings as errors; what dependencies may be (deny.toml)
	@scripts/install-deps lint
	cargo fmt --check
	.tools/bin/cargo-deny --locked check licenses bans sources
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps

audit: ## What is known against the dependencies: fetches the advisories of RustSec
	@scripts/install-deps lint
	.tools/bin/cargo-deny --locked check advisories

fmt: ## Formats the code
	cargo fmt

bench: ## Runs the benches against a Postgres of their own, durable as a real one
	@scripts/install-deps test
	cargo bench $(ARGS)

bench-ponder: ## The same transfers through Ebbtide and through Ponder, which it installs by npm in benches/ponder
	@scripts/install-deps test
	npm ci --prefix benches/ponder --ignore-scripts --no-audit --no-fund
	cargo bench --bench postgres ponder

doc: ## Builds the documentation: target/doc/ebbtide/index.html
	cargo doc --no-deps

soak: ## Runs the soak tests for SOAK_SECONDS (600)
	@scripts/install-deps test
	cargo nextest run --release --no-run
	EBBTIDE_SOAK_SECONDS=$(SOAK_SECONDS) scripts/with-postgres \
		cargo nextest run --release --profile soak -E 'test(soak)' $(ARGS)

build: ## Builds the release program: target/release/ebbtide
	cargo build --release

clean: ## Removes what was built; the data in .ebbtide stays
	cargo clean
	rm -rf node_modules

install-deps: ## Installs what is missing for run and test
	@scripts/install-deps test
