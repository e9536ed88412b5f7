# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
# Another interpreter that has the dependencies already: make gpu-check PY=python3
PY ?= $(VENV)/bin/python
INSTALLED := $(if $(filter $(VENV)/%,$(PY)),$(VENV)/.installed)

.PHONY: demo test test-slow lint gpu-check

demo: $(INSTALLED)
	$(PY) -m tfanet_eval.demo --out demo

test: $(INSTALLED)
	$(PY) -m pytest -m "not slow"

test-slow: $(INSTALLED)
	$(PY) -m pytest -m slow

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

gpu-check: $(INSTALLED)
	$(PY) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'no CUDA device here')"
	$(PY) -m pytest -m gpu
	$(PY) -m tfanet_eval.demo --out demo
	$(PY) benchmarks/scan_gpu.py
	$(PY) benchmarks/engines_gpu.py
	$(PY) benchmarks/training_gpu.py

$(VENV)/.installed: pyproject.toml $(wildcard tfanet/ops/csrc/*)
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or later is needed; try make PYTHON=python3.11' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -e ".[dev]"
	touch $@
