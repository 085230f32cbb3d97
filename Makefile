# make demo   pixels to recall on a drawn data set, about eight minutes on two CPU cores
# make test   tests, linter, formatter, type checker and the order of imports
# make fuzz   3,000 damaged and hostile inputs for every reader, some ten minutes on two CPU cores; runs/fuzz
# make trials commands killed at random moments and run again, results compared, some fifteen minutes; runs/trials
# make docs   the documentation site, into site/; a broken link is an error
# make bench  the measurements of docs/performance.md, some thirteen minutes on two CPU cores; make bench-gpu on a GPU
# make gpu-check  what to run first on a GPU, within ten minutes; installs nothing: PYTHON=... names the interpreter
# Each of the others sets itself up: python3 (3.11 to 3.13), pip, make and git are all it needs.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
DOCS_STAMP = $(VENV)/.installed-docs

.PHONY: setup demo test fuzz trials links docs bench bench-gpu gpu-check clean
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
	$(BIN)/python -m examples.scenes --out runs/demo

# Each benchmark adds its figures to benchmarks/results/MACHINE.json.
bench: setup
	$(BIN)/python -m benchmarks.scoring
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.training --model vse_infty --pairs 128
	$(BIN)/python -m benchmarks.training --model scan_t2i --pairs 128
	$(BIN)/python -m benchmarks.training --model scan_i2t --pairs 128
	$(BIN)/python -m benchmarks.training_shares --quick
	$(BIN)/python -m benchmarks.convolutions
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.reading
	$(BIN)/python -m benchmarks.joining

# The kernel of hard assignment needs gcc and Python's headers; its peers are compared where they are installed.
bench-gpu: setup
	$(BIN)/python -m benchmarks.kernel
	$(BIN)/python -m benchmarks.scoring --images 384 --captions 384 --precisions fp32 bf16 fp16
	$(BIN)/python -m benchmarks.evaluation --images 1000 5000 --precision bf16
	$(BIN)/python -m benchmarks.training --precision bf16
	$(BIN)/python -m benchmarks.training_shares --precision bf16
	$(BIN)/python -m benchmarks.convolutions --precision bf16
	$(BIN)/python -m benchmarks.loading
	rm -rf runs/demo
	$(BIN)/python -m benchmarks.pipeline --out runs/demo --record

# PYTHON where it is given, else the environment of `make setup` where there is one.
gpu-check:
	$(or $(if $(filter file,$(origin PYTHON)),$(wildcard $(BIN)/python)),$(PYTHON)) -m benchmarks.gpu_check

test: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --inputs 3000

# Needs a network.
links: setup
	$(BIN)/python -m tests.links

trials: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.trials.kill

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) runs site .mypy_cache .pytest_cache .ruff_cache .hypothesis
