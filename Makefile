# Each target installs what it needs into .venv; nothing else has to be done first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Tests start many processes, and without it each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-vllm check format

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" python recipes/mini/demo.py

# Two processes of one thread each: torch's own threads gain nothing on models this small.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-all: test
	$(BIN)/pip install -q -c constraints.txt -e '.[deepspeed]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m 'slow and not gpu and not vllm' --ignore tests/test_demo.py
	$(BIN)/python -m pytest -q -m slow tests/test_demo.py

# VLLM_SERVE is a program that serves a model in an environment of its own: $(VLLM_SERVE) FOLDER PORT [FLAGS].
test-vllm: $(VENV)/installed
	@test -n "$(VLLM_SERVE)" || { echo "set VLLM_SERVE to a program that serves a model: VLLM_SERVE FOLDER PORT [FLAGS]"; exit 2; }
	VLLM_SERVE="$(VLLM_SERVE)" $(BIN)/python -m pytest -q -m vllm tests/vllm

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
