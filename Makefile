# Every target makes the environment it needs; PYTHON is what makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# Processes of the tests; each may start both frameworks (about 1.5 GB).
WORKERS ?= 2

.PHONY: help demo test test-all lint bench faults clean

help:
	@echo "make demo      run both twins for 10 traced iterations and compare them"
	@echo "make test      the tests (minutes)"
	@echo "make test-all  the tests and the slow ones (gigabytes of traces; HARNESS_DATA for PTB)"
	@echo "make lint      ruff and mypy"
	@echo "make bench     time twins, tracing, diff and start-up against peers (logs/)"
	@echo "make faults    score the harness on planted faults and random injections (logs/)"
	@echo "make clean     remove the environment, caches, traces"

$(READY): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $(READY)

demo: $(READY)
	$(BIN)/harness weights init traces/params.npz --model zaremba-small --seed 1
	$(BIN)/python -m harness.run --trace 10 --weights traces/params.npz

test: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test-all: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m harness bench

faults: $(READY)
	$(BIN)/harness faults bench
	$(BIN)/harness faults fuzz

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf traces/*.trace traces/*.npz traces/*.npy traces/*.log traces/*.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
