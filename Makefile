# make demo   pixels to recall on a drawn data set, about eight minutes on two CPU cores
# make test   tests, linter, formatter and type checker
# make bench  the measurements of docs/performance.md, about ten minutes on two CPU cores; make bench-gpu on a GPU
# Each sets itself up: python3 (3.11 to 3.13), pip, make and git are all it needs.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: setup demo test bench bench-gpu clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# A venv without pip needs no python3-venv package; the machine's own pip fills it.
$(STAMP): pyproject.toml constraints.txt extract/install_detectron2.py
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m extract.install_detectron2
	touch $@

demo: setup
	rm -rf runs/demo
	$(BIN)/python -m benchmarks.demo --out runs/demo

test: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

clean:
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache .hypothesis
