# Everything one must know is `make test` and `make quality`; each target sets up what it needs.
# Another interpreter for a new .venv: make install PYTHON=python3.12. More test processes: make test WORKERS=8.

VENV := .venv
WORKERS ?= 2

# The first interpreter on PATH that is new enough and can make a virtual environment.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)

# .venv is up to date when it holds this stamp, named after what was installed and where: a changed requirement or a copied
# folder asks for another.
STAMP := $(VENV)/.installed-$(shell { pwd; cat requirements.txt setup.py; } | cksum | cut -d ' ' -f 1)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
# A process of the tests that crashes ends the run: pytest-xdist would wait for its remaining tests for ever.
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-long test-browser docs quality format build clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

install: $(STAMP)  ## make .venv with the pinned requirements and this package (does nothing when up to date)
	@:

# -qq: errors only. An environment that does not run, or that was copied from another folder, is made anew.
$(STAMP):
	@if [ -z "$(PYTHON)" ]; then echo "make: no Python 3.11 or newer with venv and ensurepip on PATH" >&2; exit 1; fi
	@if [ -L $(VENV) ]; then echo "make: $(VENV) is a link, and what it leads to would be replaced: remove the link" >&2; exit 1; fi
	@if ! { $(PIP) --version >/dev/null 2>&1 && grep -qF "$(CURDIR)/$(VENV)" $(VENV)/bin/activate; }; then \
		echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); fi
	@echo "installing PyTorch"
	@$(PIP) install -qq "$$(grep '^torch==' requirements.txt)"
	@echo "installing the other requirements"
	@$(PIP) install -qq -r requirements.txt
	@$(PIP) install -qq --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.installed-*
	@touch $(STAMP)

demo: install  ## sample the shipped model, train a small one, write pictures and numbers to demo/
	$(VENV)/bin/python examples/demo.py

test: install  ## run the tests, fast and slow, but not the long ones and not those of the browser
	$(PYTEST) -m "not long and not browser"

test-fast: install  ## run the fast tests, in about two minutes
	$(PYTEST) -m "not slow and not long and not browser"

test-long: install  ## run the long tests
	$(PYTEST) -m long

# Where apt-get may install, it gets the browser; elsewhere the tests say what is missing, and fail.
test-browser: install  ## run the tests in Chromium, which Debian's package is installed for if it may be
	@if ! command -v chromedriver >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium chromium-driver >/dev/null; fi
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 0 -m browser tests/browser

docs: install  ## build the site of the documents into build/site; a broken link is an error
	$(VENV)/bin/python -m sphinx -q -W --keep-going -b html -c docs . build/site
	@echo "open build/site/index.html"

quality: install  ## check style, format, types and import directions
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q --noconftest tests/test_architecture.py

format: install  ## put style, format and the lines that docs/paper_to_code.md links to right, where that is mechanical
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/python docs/link_symbols.py

build: install  ## build the wheel and the sdist into dist/, and check that the wheel holds code only
	rm -rf build dist
	$(VENV)/bin/python -m build --no-isolation
	$(VENV)/bin/python -m build --no-isolation --wheel --outdir dist/emoji examples/assets
	@! $(VENV)/bin/python -m zipfile -l dist/*.whl | grep -Ev '^File Name|^dit_hf/.*\.py |^dit_hf/py.typed |\.dist-info/'

clean:  ## remove what builds, checks and tests leave; .venv, out/ and demo/ stay
	rm -rf build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -rf docs/reference
