# The one door: every target does all of its own set-up. It needs make, a Rust toolchain and Python 3.11 or later.
# What Debian can add (for the demo and the tests) is installed where this runs as root; elsewhere, what is missing is
# named and the tests that need it are skipped.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

venv := .venv
bin := $(venv)/bin
requirements := $(venv)/requirements.txt
extension := python/blockcow/_blockcow.abi3.so
rust_sources := Cargo.toml Cargo.lock $(shell find rust -name target -prune -o \( -name '*.rs' -o -name '*.toml' \) -print)

export PIP_QUIET := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# How long a soak takes.
TIME := 10m
# Most tests wait for something, so two run at a time.
side_by_side := --numprocesses 2 --dist worksteal
simulation := cargo test -p blockcow-engine --features simulation --test simulation -- --nocapture

# Set QUICK=1 for a run of the benchmarks that takes a minute and proves nothing but that they work.
bench_options := $(if $(QUICK),--quick)

.PHONY: help demo test proof soak lint bench build clean debian-for-build debian-for-demo debian-for-tests

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

demo: $(extension) | debian-for-demo  ## Back up a device under full write load and prove the result
	$(bin)/blockcow demo

test: $(extension) | debian-for-tests  ## Run the tests of the engine, the package and the documents
	cargo test --workspace --exclude blockcow-bindings
	$(simulation)
	$(bin)/python -m pytest tests $(side_by_side)
	$(bin)/python -m pytest bench/test_baseline.py

lint: $(extension)  ## Check format, lints, types, the extension's stub and the layers
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p blockcow-engine --features mutants --lib -- -D warnings
	cargo clippy -p blockcow-engine --features shuttle --lib --test schedules -- -D warnings
	cargo clippy -p blockcow-engine --features simulation --lib --test simulation -- -D warnings
	RUSTFLAGS="--cfg loom" cargo clippy --target-dir target/loom -p blockcow-engine --lib --test models -- -D warnings
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy --strict python
	$(bin)/mypy --strict tests
	$(bin)/mypy --strict bench
	$(bin)/mypy --strict scripts
	$(bin)/python -m mypy.stubtest blockcow._blockcow
	$(bin)/python -m pytest -q tests/test_layering.py

# Each step leaves records in target/proof; the last one sums them up and fails if a budget was not reached.
proof: $(extension) | debian-for-tests  ## Search for a broken promise: schedules, faults, kills, power cuts, planted faults
	rm -rf target/proof
	RUSTFLAGS="--cfg loom" cargo test --release --target-dir target/loom -p blockcow-engine --test models
	cargo test -p blockcow-engine --features shuttle --test schedules -- --ignored
	$(simulation) --ignored histories_of_many_seeds
	cargo test --workspace --exclude blockcow-bindings -- --ignored
	$(bin)/python -m pytest tests/python -m proof $(side_by_side)
	$(bin)/python -m pytest tests/python/test_golden.py
	$(bin)/python scripts/proof_table.py

soak:  ## Run the engine in virtual time with fresh seeds until the time is over (TIME=10m) or a promise is broken
	BLOCKCOW_SOAK=$(TIME) $(simulation) --ignored --exact soak

bench: $(extension) | debian-for-tests  ## Measure beside dd, pure Python and QEMU (QUICK=1: only see that it works)
	scripts/newest-qemu target/qemu
	$(bin)/python -m pytest bench --ignore bench/test_baseline.py --timeout=0 --benchmark-quiet $(bench_options)

build: $(extension)  ## Build the extension and install the package into .venv

clean:  ## Remove everything that was built
	rm -rf target $(venv) $(extension)
	find . -name __pycache__ -prune -exec rm -rf {} +

$(extension): $(rust_sources) pyproject.toml $(requirements) | debian-for-build
	$(bin)/maturin develop --release
	touch $@

$(requirements): pyproject.toml scripts/requirements.py | $(bin)/python
	$(bin)/python scripts/requirements.py > $@
	$(bin)/pip install --requirement $@

$(bin)/python:
	scripts/make-venv $(venv)

debian-for-build:
	@command -v cc > /dev/null || scripts/install-debian-packages gcc libc6-dev

debian-for-demo:
	@scripts/install-debian-packages e2fsprogs util-linux

debian-for-tests:
	@scripts/install-debian-packages btrfs-progs curl e2fsprogs fdisk fio fuse3 libnbd-bin nbdkit postgresql-15 \
		qemu-system-x86 qemu-utils systemd strace util-linux xfsprogs
