# orch: `make demo` and `make test` need Linux, make and Python 3.11, 3.12 or 3.13; they set up the rest in .venv.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first of these that runs and is new enough; PYTHON=/path/to/python overrides it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo "$$python" && break; done)

.PHONY: help setup demo test faults soak lint fmt bench audit lock picture clean

help: ## says what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## makes .venv with everything in it, once; the other targets do it by themselves

$(READY): requirements.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "orch needs Python 3.11, 3.12 or 3.13, and none of python3.11, python3.12, python3.13 and python3 is one." >&2; \
		echo "Install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv) or name it: make PYTHON=/path/to/python" >&2; \
		exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "PYTHON=$(PYTHON) is not there, or not Python 3.11, 3.12 or 3.13." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module with ensurepip. Debian, Ubuntu: apt-get install $(notdir $(PYTHON))-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$("$(PYTHON)" --version): a few minutes the first time; torch is most of it."
	@$(BIN)/python -c 'import pip' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## starts a cluster on this machine, trains on real digits with two ranks, shows the run, stops it all
	@scripts/demo.sh

# Unit tests side by side, then what needs the machine for itself; the last lines count both.
test: $(READY) ## runs every test, of the faults some; what this machine lacks (PostgreSQL, network namespaces) is skipped and named
	@units=0; reports="$$(mktemp)"; trap 'rm -f "$$reports"' EXIT; some='not fault or representative'; \
	$(BIN)/python -m pytest -q -n logical --maxprocesses 8 -m "$$some" --write-reports="$$reports" tests/unit || units=$$?; \
	$(BIN)/python -m pytest -q --durations=15 -m "$$some" --add-reports="$$reports" --ignore=tests/unit tests; exit $$units

# What is in simulated time side by side, then what needs the machine for itself.
faults: $(READY) ## brings about every fault of docs/reliability.md that this machine can, and renews the table there; many minutes
	@went=0; simulated=tests/faults/test_crash_points.py; \
	$(BIN)/python -m pytest -q -n logical -m fault --fault-results=.orch/faults.jsonl $$simulated || went=$$?; \
	ORCH_FUZZ_EXAMPLES=1000 $(BIN)/python -m pytest -q -m fault --fault-results=.orch/faults.jsonl --ignore=$$simulated tests || went=$$?; \
	$(BIN)/python scripts/reliability_table.py .orch/faults.jsonl; exit $$went

soak: $(READY) ## 200 runs on four hosts while something breaks every 10 to 30 s (ORCH_SOAK_SEED=N, ORCH_SOAK_RUNS=N); a quarter of an hour
	@went=0; ORCH_SOAK_RUNS=$${ORCH_SOAK_RUNS:-200} \
	$(BIN)/python -m pytest -q -rA --fault-results=.orch/faults.jsonl tests/faults/test_soak.py || went=$$?; \
	$(BIN)/python scripts/reliability_table.py .orch/faults.jsonl; exit $$went

lint: $(READY) ## ruff, mypy and import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fmt: $(READY) ## formats the code and repairs what ruff can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY) ## measures orch beside torchrun and Ray; minutes
	@$(BIN)/python benchmarks/run_all.py

audit: $(READY) ## asks whether a package of requirements.lock has a known hole; fails where that could not be found out
	@test -x $(VENV)/audit/bin/pip-audit || { $(BIN)/python -m venv $(VENV)/audit && \
		$(VENV)/audit/bin/python -m pip install -qq --disable-pip-version-check "pip-audit>=2.10"; }
	@$(BIN)/python scripts/audit.py --tool $(VENV)/audit/bin/pip-audit

lock: $(READY) ## resolves pyproject.toml anew into requirements.lock
	@$(BIN)/python scripts/lock.py

picture: $(READY) ## records docs/images/demo.svg from a real run, and draws the table of states in docs/architecture.md
	@$(BIN)/python scripts/draw_states.py
	@$(BIN)/python scripts/draw_causes.py
	@ORCH_HOME="$(CURDIR)/.orch/picture" PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/record.py docs/images/demo.svg \
		--title "orch: two ranks, real digits" -- \
		"orch submit jobs/digits.yaml --follow" "orch runs" "orch show digits"
	@ORCH_HOME="$(CURDIR)/.orch/picture" $(BIN)/orch down

clean: ## removes .venv, caches and the demo's cluster files
	@rm -rf $(VENV) .orch build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
