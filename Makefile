# Needs Python 3.11 or newer and make; everything else is installed into .venv, at the versions in constraints.txt.
# Another Python: make demo PYTHON=python3.12. More options for a command: make test ARGS="-k solvers -x".

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
# pip would compile sixteen thousand files, of which a run imports a tenth: Python compiles those as it imports them.
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --constraint constraints.txt --editable

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow gpu check docs format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## pretrain, fine-tune and trace on real digits into runs/demo (about a minute after the set-up)
	$(BIN)/stagetrace demo $(ARGS)

test: $(VENV)/.dev ## the tests, and the examples in the docstrings
	$(BIN)/python -m pytest -n logical --dist loadfile $(ARGS)

test-slow: $(VENV)/.dev ## the tests that take long: whole small experiments, second calls, other kernels, more models
	$(BIN)/python -m pytest -n logical --dist loadfile -m slow $(ARGS)

# DATA: the folder that holds the data set `mnist`; without it the tests run alone. Together at most 8 minutes.
gpu: $(VENV)/.dev ## the tests that need a GPU and, with DATA=DIR, the benchmark of it beside the CPU
	timeout 240 $(BIN)/python -m pytest -n 4 -m gpu tests/gpu $(ARGS)
	$(if $(DATA),timeout 240 $(BIN)/python -m benchmarks gpu --data $(DATA) --out build/gpu.json)

check: $(VENV)/.dev ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: $(VENV)/.dev ## run the examples in README.md and docs, and build the site into build/site
	$(BIN)/python -m pytest --doctest-glob='*.md' README.md docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -d build/doctrees docs build/site
	@echo "to look at it, open build/site/index.html"

format: $(VENV)/.dev ## put the code in its format and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## other libraries beside this one, each in its own environment: make bench ARGS="--data DIR"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks bench $(ARGS)

clean: ## remove the environment, caches and builds
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "stagetrace needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot create environments: its venv or ensurepip module is missing." >&2; \
	  echo "On Debian and Ubuntu: apt install python3-venv. Or name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# Stamps: a set-up is repeated only when its inputs change.
$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.created
	@echo "Installing stagetrace and what the demo needs into $(VENV) (PyTorch is large: minutes the first time)"
	@$(INSTALL) '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.created
	@echo "Installing stagetrace and its development tools into $(VENV) (PyTorch is large: minutes the first time)"
	@$(INSTALL) '.[dev]'
	@touch $(VENV)/.demo $@
