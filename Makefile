# Every way to build, try and check Atoll. `make` alone lists the targets.
# One build profile for all of them (docs/decisions/0003-one-build-profile.md): RocksDB is compiled once.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# rustup's folder, for shells whose profile does not name it (cron, CI, sudo).
export PATH := $(PATH):$(HOME)/.cargo/bin
BIN := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/release

.PHONY: help deps build demo test bench soak fmt doc clean

help: ## list the targets
	@echo 'Atoll: static sites served from your own machines'
	@echo
	@grep -hE '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16
	@echo
	@echo 'Folders: README.md. How to work on it: docs/CONTRIBUTING.md.'

deps: ## install what the build and the tests need (apt; sudo only if you are not root)
	@scripts/deps.sh

build: deps ## build the release binary `atoll` (the first time with RocksDB: 10 to 20 minutes on 2 cores)
	cargo build --release --locked --workspace --bins --example atoll_shim
	@echo "built $(BIN)/atoll"

demo: build ## start a local cluster and serve a site: SITE=dir yours, ONCE=1 stop after checking, DATA=dir keep it there
	@ATOLL='$(BIN)/atoll' SITE='$(SITE)' ONCE='$(ONCE)' DATA='$(DATA)' scripts/demo.sh

test: deps ## every check a change must pass: what CI runs
	@scripts/gate.sh

bench: build ## measure: deploys, requests, mount, storage under faults; ARGS="…" are passed on
	@'$(BIN)/atoll-bench' --atoll '$(BIN)/atoll' $(ARGS)

soak: build ## workloads under faults for MINUTES=10, then ROUNDS=200 power cuts, 50 rounds of every other fault, 500 of publishes, 200 of masters; fsx for long
	@'$(BIN)/atoll-bench' --atoll '$(BIN)/atoll' soak --minutes '$(or $(MINUTES),10)' $(ARGS)
	@'$(BIN)/atoll-bench' --atoll '$(BIN)/atoll' scenario --kind power-cut --rounds '$(or $(ROUNDS),200)'
	@for kind in kill-loop corruption partition full-disk; do \
		'$(BIN)/atoll-bench' --atoll '$(BIN)/atoll' scenario --kind "$$kind" --rounds "$$(( ($(or $(ROUNDS),200) + 3) / 4 ))"; done
	@'$(BIN)/atoll-bench' --atoll '$(BIN)/atoll' publishes --clusters "$$(( ($(or $(ROUNDS),200) + 15) / 16 ))"
	@'$(BIN)/atoll-bench' --atoll '$(BIN)/atoll' publishes --clusters "$$(( ($(or $(ROUNDS),200) + 15) / 16 ))" --masters 3
	@'$(BIN)/atoll-bench' --atoll '$(BIN)/atoll' failover --clusters "$$(( ($(or $(ROUNDS),200) + 19) / 20 ))"
	scripts/suites.sh '$(BIN:release=tools)'
	ATOLL_FSX_SEEDS=20 ATOLL_FSX_OPERATIONS=100000 cargo test --release --locked --workspace --test e2e fsx_ -- --nocapture

fmt: ## format the sources
	cargo fmt --all

doc: deps ## build the API documentation of every crate, private items too
	cargo doc --release --locked --workspace --no-deps --document-private-items
	@echo "open $(BIN:release=doc)/atoll_proto/index.html"

clean: ## remove build results; the demo's data in .atoll stays
	cargo clean
