# Every target sets up what it needs. The interpreter for new environments: make test PYTHON=python3.12

PYTHON ?= python3
# At most so many test processes, each of one thread (tests/conftest.py) and about 1 GB.
WORKERS ?= 4

VENV := .venv
VENV4 := .venv-4
PYTEST := -m pytest -n logical --maxprocesses $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-shapes test-bridge test-all notebooks outputs lint format bench clean distclean

help:
	@echo 'make demo         trains a small model, operates on it, prints the table and writes demo.html'
	@echo 'make test         runs the tests, notebooks included'
	@echo 'make test-shapes  runs some of them, with every call checked against its annotated types and shapes'
	@echo 'make test-bridge  runs the tests against TransformerLens 4, which has the bridge only'
	@echo 'make test-all     runs all, checked, with many more random cases, then ten minutes of soak.py'
	@echo 'make notebooks    executes the notebooks, and leaves the files as they are'
	@echo 'make outputs      executes them and stores what they print and draw; needs Chromium for the pictures'
	@echo 'make lint         checks style and types'
	@echo 'make format       formats the code'
	@echo 'make bench        runs the benchmarks (half an hour) and writes benchmarks/results.md'
	@echo 'make clean        deletes what was built or cached'
	@echo 'make distclean    the same, and the environments $(VENV) and $(VENV4)'

demo: $(VENV)/ready
	$(VENV)/bin/python -m examples.demo

test: $(VENV)/ready
	$(VENV)/bin/python $(PYTEST)

# One kind of model, the examples in docstrings and the README: every public function is called.
test-shapes: $(VENV)/ready
	SURGERY_CHECK_SHAPES=1 $(VENV)/bin/python $(PYTEST) -k 'gpt2 or docstring_examples or readme or test_project'

# What may differ with TransformerLens.
test-bridge: $(VENV4)/ready
	$(VENV4)/bin/python $(PYTEST) tests/test_hooks tests/test_surgery tests/test_attribution \
	    tests/test_metrics tests/test_laser tests/test_papers tests/test_engines tests/test_house/test_readme.py

test-all: $(VENV)/ready
	SURGERY_CHECK_SHAPES=1 SURGERY_THOROUGH=1 HYPOTHESIS_PROFILE=thorough $(VENV)/bin/python $(PYTEST)
	$(VENV)/bin/python benchmarks/soak.py --minutes 10

notebooks: $(VENV)/ready
	$(VENV)/bin/python $(PYTEST) -m notebook

# Pictures rather than plotly's own output: anyone's viewer shows them, at a tenth of the size.
outputs: $(VENV)/ready
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[notebooks]'
	folder=$$(mktemp -d) && cp notebooks/*.ipynb $$folder && cd $$folder && HF_HUB_OFFLINE=1 TQDM_DISABLE=1 \
	    PLOTLY_RENDERER=png $(CURDIR)/$(VENV)/bin/jupyter nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False *.ipynb && cp *.ipynb $(CURDIR)/notebooks

lint: $(VENV)/ready
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright

format: $(VENV)/ready
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

bench: $(VENV)/ready
	$(VENV)/bin/python benchmarks/run.py

# An environment is ready when its stamp is newer than what it was installed from.
$(VENV)/ready: pyproject.toml constraints.txt
	$(call set-up,$(VENV),constraints.txt,dev)

$(VENV4)/ready: pyproject.toml constraints-4.txt
	$(call set-up,$(VENV4),constraints-4.txt,test)

# $(call set-up,environment,constraints,extra)
define set-up
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Python 3.11 or newer is needed, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Name another interpreter: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo 'Setting up $(1): a few minutes, once.'
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --disable-pip-version-check -c $(2) -e '.[$(3)]'
	@touch $(1)/ready
endef

clean:
	rm -rf build dist demo.html .surgery-cache .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(VENV4)
