# Every target makes .venv on first use, from the pinned requirements; nothing else is needed.
PYTHON ?= python3
MODEL ?= qwen2.5-coder-0.5b
ARGS ?=
RUNS ?= runs/adapter

SUPPORTED := 3.11 3.12 3.13
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# jax 0.11 dropped Python 3.11; what 3.12 resolves to installs on 3.13 as well.
REQUIREMENTS := requirements.txt requirements-test.txt
CONSTRAINTS := $(if $(filter 3.11,$(VERSION)),constraints-py311.txt,constraints-py312.txt)
# Another interpreter has another stamp, so it is installed anew.
STAMP := .venv/installed-py$(VERSION)
RUN := .venv/bin/python -m
# Scripts of your own may lie beside them.
CODE := configs kvpacket_jax launch models tests
# A worker that is replaced gets no tests, and the run hangs: it ends at a worker's crash instead.
# Files run in the order that conftest.py gives them.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

.PHONY: help demo adapter test test-fast test-all faults plan lint format
.DEFAULT_GOAL := help

help:  ## Lists the targets.
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "  PYTHON=python3.12 chooses the interpreter ($(SUPPORTED)), now $(PYTHON)"

demo: $(STAMP)  ## Answers questions from cached documents with a real model. MODEL=, ARGS=--json=demo.json
	$(RUN) launch.demo --model=$(MODEL) $(ARGS)

adapter: $(STAMP)  ## Trains an adapter in RUNS=runs/adapter; stopped, it goes on when given again.
	$(RUN) launch.train --config=configs/train.py --workdir=$(RUNS)

test: lint  ## Lint, format and the tests; fetches the demo models it needs.
	$(RUN) pytest $(PARALLEL) --durations=20 $(ARGS)

test-fast: $(STAMP)  ## The tests that need no download.
	$(RUN) pytest $(PARALLEL) -m "not slow and not model" $(ARGS)

test-all: lint  ## All tests, the long versions too.
	$(RUN) pytest $(PARALLEL) -m "" --durations=20 $(ARGS)

faults: $(STAMP)  ## Injects 24,000 faults into what is read, and soaks it with 5,000 requests; ARGS=--scale=0.1 --seed=1
	$(RUN) tests.support.faults $(ARGS)

# libtpu, the TPU's compiler: beside it every import of jax asks for a TPU, so it has its own place.
plan: .venv-tpu/installed-py$(VERSION)  ## Compiles training and answering of a 7B and an 8B model for a v5e:2x4 slice.
	@for model in llama-3.1-8b qwen2.5-7b; do \
	  .venv-tpu/bin/python -m launch.plan --config.model=random:$$model --config.batch_size=8 \
	    --topology=v5e:2x4 --mesh=data:2,model:4 $(ARGS) || exit 1; done

lint: $(STAMP)  ## Checks style and format with ruff.
	$(RUN) ruff check $(CODE)
	$(RUN) ruff format --check $(CODE)

format: $(STAMP)  ## Puts style and format right where ruff can.
	$(RUN) ruff check --fix $(CODE)
	$(RUN) ruff format $(CODE)

.venv-tpu/installed-py$(VERSION): $(REQUIREMENTS) $(CONSTRAINTS)
	@echo "Installing the pinned requirements and libtpu into .venv-tpu (some minutes, 1.7 GB)"
	@rm -rf .venv-tpu && $(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/pip install --quiet --disable-pip-version-check "jax[tpu]" $(REQUIREMENTS:%=-r %) \
	  -c $(CONSTRAINTS)
	@touch $@

$(STAMP): $(REQUIREMENTS) $(CONSTRAINTS)
	@$(if $(filter $(VERSION),$(SUPPORTED)),:,\
	  echo "$(PYTHON) is Python $(or $(VERSION),not found); supported: $(SUPPORTED)." \
	    "Choose one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1)
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python cannot make virtual environments here. Install what is missing, then again:"; \
	  echo "  sudo apt-get install $(notdir $(PYTHON))-venv"; exit 1; }
	@echo "Installing the pinned requirements into .venv (a minute or two, 1.3 GB)"
	@.venv/bin/python -c 'import pip, sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' \
	  2>/dev/null || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	.venv/bin/pip install --quiet --disable-pip-version-check $(REQUIREMENTS:%=-r %) -c $(CONSTRAINTS)
	@touch $@
