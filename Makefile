# `make` alone prints the targets. `make demo` and `make test` need Python >= 3.11 and Rust, nothing
# else: they make a virtual environment, build the wheel, install it there and run what it says.
# What has been done is remembered in stamp files, so a second run starts at once.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DELETE_ON_ERROR:

# The interpreter to make the virtual environment with: by default the first that is new enough.
PYTHON ?=
VENV ?= .venv
# More arguments for pytest: make test PYTEST_ARGS="tests/unit/test_pool_life.py -k grow"
PYTEST_ARGS ?=
BENCH_ARGS ?=
STRESS_SECONDS ?= 60
FUZZ_SECONDS ?= 20

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# What is tested is the installed wheel, never the tree: nothing may point the interpreter at it.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP

SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md LICENSE \
	$(shell find src python \( -name '*.rs' -o -name '*.py' -o -name '*.pyi' -o -name py.typed \) | LC_ALL=C sort)

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# --- what people run ---------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.demo ## Build and install the wheel, then run the main job (examples/corpus.py)
	$(BIN)/python examples/corpus.py

.PHONY: test
test: test-python test-rust ## Build and install the wheel, then run the whole test suite

.PHONY: test-python
test-python: $(VENV)/.test
	$(BIN)/pytest $(PYTEST_ARGS)

.PHONY: test-rust
test-rust:
	cargo test --no-default-features

.PHONY: test-all
test-all: dist/.wheel ## The Python suite on every CPython from 3.11 on that this machine has
	@failed=; \
	while read -r version python; do \
		if [ "$$python" = - ]; then echo "== CPython $$version: not found, skipped"; continue; fi; \
		echo "== CPython $$version: $$python"; \
		$(MAKE) --no-print-directory test-python VENV=.venv-$$version PYTHON=$$python </dev/null \
			|| failed="$$failed $$version"; \
	done < <(scripts/pythons); \
	if [ -n "$$failed" ]; then echo "failed on CPython$$failed"; exit 1; fi

.PHONY: stress
stress: $(VENV)/.test ## Kill, stop and signal processes at random instants for STRESS_SECONDS
	BILLIARD_STRESS_SECONDS=$(STRESS_SECONDS) $(BIN)/pytest -m stress $(PYTEST_ARGS)

.PHONY: loom
loom: ## Model-check the lock-free parts
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --no-default-features --lib loom

# cargo-fuzz is made for a nightly compiler. The stable one has all that it takes, once it is told.
# What is fuzzed is safe code, for which a sanitizer would only take time.
FUZZ := RUSTC_BOOTSTRAP=1 cargo fuzz
.PHONY: fuzz
fuzz: ## Feed what decodes pickles, frames and rings with garbage, FUZZ_SECONDS each
	cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
	$(FUZZ) build --sanitizer none
	@for target in $$(cargo fuzz list); do \
		echo "== $$target"; \
		$(FUZZ) run --sanitizer none $$target -- -max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=1 || exit 1; \
	done

.PHONY: bench
bench: $(VENV)/.bench ## Side by side with billiard 4.3.2 (BENCH_ARGS="--help" tells more)
	$(BIN)/python benches/compare.py $(BENCH_ARGS)

.PHONY: bench-rust
bench-rust: ## What the words and rings cost without Python
	cargo bench --no-default-features --bench ipc

.PHONY: lint
lint: $(VENV)/.lint ## ruff, mypy, stubtest, cargo fmt and clippy, warnings denied
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples benches
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml billiard._core
	cargo fmt --check
	PYO3_PYTHON=$(abspath $(BIN)/python) cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --no-default-features -- -D warnings

.PHONY: wheel
wheel: dist/.wheel ## Build the wheel into dist/
	@ls dist/*.whl

.PHONY: develop
develop: ## Build the extension into python/billiard for work in the tree
	PYO3_BUILD_EXTENSION_MODULE=1 cargo build --profile fast
	cp target/fast/lib_core.so python/billiard/.core.tmp
	mv python/billiard/.core.tmp python/billiard/_core.abi3.so

.PHONY: clean
clean: ## Remove everything that the other targets made
	rm -rf .venv .venv-* dist target .pytest_cache .mypy_cache .ruff_cache
	rm -f python/billiard/_core.abi3.so python/billiard/.core.tmp
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- how it is made ----------------------------------------------------------------------------

$(VENV)/.made:
	@python="$(PYTHON)"; python="$${python:-$$(scripts/pythons --first)}" || exit 1; \
		echo "$$python -m venv $(VENV)"; rm -rf $(VENV); "$$python" -m venv $(VENV)
	@touch $@

# Newer than the wheel when a source was added or removed, which no time stamp of a file tells.
dist/.sources: FORCE
	@mkdir -p dist
	@printf '%s\n' $(SOURCES) | cmp -s - $@ || printf '%s\n' $(SOURCES) > $@

.PHONY: FORCE
FORCE:

dist/.wheel: $(SOURCES) dist/.sources | $(VENV)/.made
	rm -f dist/*.whl
	$(PIP) wheel --no-deps --wheel-dir dist .
	@touch $@

# The version never changes between builds, so the new wheel has to be forced over the old one.
$(VENV)/.wheel: dist/.wheel $(VENV)/.made
	$(PIP) install --force-reinstall --no-deps dist/*.whl
	@touch $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.bench: $(VENV)/.%: $(VENV)/.wheel
	$(PIP) install "$$(echo dist/*.whl)[$*]"
	@cd / && "$(abspath $(BIN))/python" -c 'import sys, billiard._core as c; sys.exit(not c.__file__.startswith(sys.prefix))' \
		|| { echo "billiard is not imported from $(VENV)"; exit 1; }
	@touch $@
