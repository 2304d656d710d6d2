# `make demo` and `make test` need only make and Python 3.11 or newer.
# PYTHON=python3.12 picks another Python; PIP_FLAGS=... goes to pip, ARGS=... to unboxed demo, pytest or a benchmark.
PYTHON ?= python3
OUT ?= out
BIN := .venv/bin
# Compiled modules are kept: without them each worker, and each process that a test starts, compiles 600 files again.
TEST_ENV := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS)

.PHONY: help demo test contracts lint bench pictures
.DELETE_ON_ERROR:

help:
	@echo "make demo    train a small network on real digits, open it, write $(OUT)/"
	@echo "make test    all tests"
	@echo "make contracts  every method on every awkward model, and every Hugging Face classifier (about 40 minutes)"
	@echo "make lint    ruff and mypy"
	@echo "make bench   the benchmarks"
	@echo "make pictures  README's pictures again"

demo: .venv/user.stamp
	$(BIN)/unboxed demo -o $(OUT) $(ARGS)

test: .venv/dev.stamp
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

contracts: .venv/dev.stamp
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 tests/contracts/test_contracts.py tests/contracts/test_contract_values.py \
	  tests/contracts/test_multi_input.py \
	  tests/loading/test_huggingface.py \
	  tests/test_diagnosis.py tests/plots/test_figures.py --all-pairs $(ARGS)

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy

# The table comes last: it is made of what the others wrote.
bench: .venv/dev.stamp
	@set -e; for file in $$(grep -lE '^if __name__ ==' benchmarks/*.py | grep -v '/table\.py$$'); do \
	  echo "$$file"; $(BIN)/python $$file $(ARGS); done
	@if [ -f benchmarks/table.py ]; then $(BIN)/python benchmarks/table.py; fi

# A stamp is newer than what it was made from, so that a second call installs nothing.
.venv/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Unboxed needs Python 3.11 or newer; $(PYTHON) is missing or older. Name another: make demo PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { \
	  echo "$(PYTHON) can't make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/user.stamp: .venv/made.stamp pyproject.toml constraints.txt
	@echo "installing (torch is large: the first time takes a while)"
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

.venv/dev.stamp: .venv/user.stamp
	@echo "installing what the tests need"
	$(PIP) --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

methods-page: .venv/user.stamp
	$(BIN)/python docs/build_methods.py --figures

# README's pictures are the demo's own.
pictures: .venv/user.stamp
	$(BIN)/unboxed demo -o $(OUT) --quiet
	mkdir -p docs/pictures
	cp $(addprefix $(OUT)/pictures/,class-images.png confused.png inversions.png channels.png) docs/pictures/
	cp "$$(ls $(OUT)/pictures/morph-*-to-8.png | head -n 1)" docs/pictures/morph.png
