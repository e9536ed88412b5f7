# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
# Another interpreter that has the dependencies already: make gpu-check PY=python3
PY ?= $(VENV)/bin/python
INSTALLED := $(if $(filter $(VENV)/%,$(PY)),$(VENV)/.installed)

# The suite runs in parallel processes of one thread each: several busy OpenMP pools slow each other many times.
JOBS ?= auto
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses $(JOBS) --dist worksteal

.PHONY: setup demo test test-slow check lint gpu-check weights

setup: $(INSTALLED)

demo: $(INSTALLED)
	$(PY) -m tfanet_eval.demo --out demo

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED)
	$(PY) -m pytest -m slow

check: lint
	$(PYTEST) -m "not slow and not integration"

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

# The bundled model again, from nothing, into runs/tiny; interrupted, the same command goes on.
STAGE = $(PY) -m tfanet.training.cli --half-weights --resume auto --out runs/tiny
SCENES = $(PY) -m tfanet.data.cli make
RELATIONS = relations,relations,relations,all,all,shapes,attributes,positions
weights: $(INSTALLED)
	$(SCENES) data/simple --levels attributes,positions
	$(STAGE)/simple --data data/simple
	$(SCENES) data/all --train 15000
	$(STAGE)/all --start runs/tiny/simple/model.safetensors --data data/all --epochs 2 --lr 2e-3 --decay-from 0
	$(SCENES) data/shapes-alone --levels shapes --train 2500
	$(STAGE)/shapes --start runs/tiny/all/model.safetensors --data data/shapes-alone --epochs 1 --lr 2e-3
	$(SCENES) data/mixed --levels shapes,attributes,positions,relations,all --train 15000
	$(STAGE)/mixed --start runs/tiny/shapes/model.safetensors --data data/mixed --epochs 1 --lr 1e-3 --decay-from 0
	$(SCENES) data/relations --train 20000 --levels $(RELATIONS)
	$(STAGE)/relations --start runs/tiny/mixed/model.safetensors --data data/relations --epochs 1 --lr 1e-3 --decay-from 0

$(VENV)/.installed: pyproject.toml $(wildcard tfanet/ops/csrc/*)
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or later is needed; try make PYTHON=python3.11' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -e ".[dev]"
	touch $@
