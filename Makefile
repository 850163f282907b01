# `make demo` and `make test` are all that a newcomer needs; see README.md.
PYTHON ?= $(shell command -v python3.11 || command -v python3.10)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check clean

# The environment: made once, made again when the pins or the dependencies change.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,benchmark,tune,finetune,onnx]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/run_recbole --model=HybridFusion --dataset=ml-100k

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) log log_tensorboard saved
