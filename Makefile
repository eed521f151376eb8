# The two commands of the README: `make demo` and `make test`. Both say what they install.
# Caches live in the user's cache folder, so that a fresh clone builds in seconds.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rackwright
export CARGO_TARGET_DIR ?= $(CACHE)/target
BIN := $(CARGO_TARGET_DIR)/x86_64-unknown-linux-gnu/release
CARGO := cargo
TOOLS := protobuf-compiler curl
DEMO_TOOLS := python3-numpy # to recompute the best score outside the pods
.PHONY: demo demo-down test tools build lint unit stories bench golden

demo: TOOLS += $(DEMO_TOOLS)
demo: build ## Raise five servers, build the cluster, run jobs, print the table (needs root)
	@$(BIN)/rackwright-demo up $(if $(DATA),--data '$(DATA)') $(if $(TARGET),--target '$(TARGET)')

demo-down: ## Remove everything that `make demo` made on this machine
	@if [ -x $(BIN)/rackwright-demo ]; then $(BIN)/rackwright-demo down; else $(MAKE) build && $(BIN)/rackwright-demo down; fi

test: lint unit stories ## Everything that CI runs

tools:
	@missing=(); for p in $(TOOLS); do dpkg -s $$p >/dev/null 2>&1 || missing+=($$p); done; \
	if [ $${#missing[@]} -gt 0 ]; then \
	  echo "installing Debian packages: $${missing[*]}"; \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$${missing[@]}" >/dev/null; \
	  else echo "error: not root; run: sudo apt-get install $${missing[*]}" >&2; exit 1; fi; fi

build: tools
	@echo "building (12 minutes the first time, seconds after)"
	@$(CARGO) build --release --locked --workspace

lint: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings

# One set of features for programs and tests: always the whole workspace. Most of their time tests wait.
unit: tools
	$(CARGO) test --release --locked --workspace --tests -- --test-threads=8

stories: build ## End-to-end stories on a rack of their own (needs root)
	@if [ "$$(id -u)" = 0 ]; then $(CARGO) test --release --locked --workspace --test stories -- --test-threads=2; \
	else echo "skipped: the rack stories need root (sudo make stories)"; [ -z "$${CI:-}" ]; fi

bench: tools ## Submits a second, memory with 10,000 jobs, decisions a second
	$(CARGO) build --release --locked --workspace --examples
	$(BIN)/examples/submit_bench
	$(BIN)/examples/submit_rate $(CACHE) 64 10000 500
	$(BIN)/examples/sched_rate

golden: ## Regenerate every golden file, then look at `git diff`
	INSTA_UPDATE=always $(CARGO) test --release --locked --workspace --tests
