# make demo PROMPT="a red apple"    pictures from a prompt, in outputs/demo
# make serve                        Studio, the page to paint on, opened in the browser
# make test                         the test suite, a few minutes
# make test-slow                    what it leaves out for its length, two minutes
# make test-long                    the campaigns that both leave out, half an hour
# make bench                        speed beside other packages, in benchmarks/results.md, 20 minutes
# All set up .venv first, on a machine that has nothing but Python 3.11 or newer.

VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.installed-demo
STUDIO := $(VENV)/.installed-studio
DEV := $(VENV)/.installed-dev
UNCHECKED := $(VENV)/.unchecked

# The prompt reaches the program through the environment, word for word: $(value) keeps make from
# reading its dollar signs, and the shell never parses it.
PROMPT ?= a red apple
override PROMPT := $(value PROMPT)
export PROMPT
unexport PYTHONPATH PYTHONHOME
# Without the bytecode beside the sources each process of the tests, and each test file, would compile all of it anew.
unexport PYTHONDONTWRITEBYTECODE

OUT ?= outputs/demo
SERVE_ARGS ?= --open
PYTEST_ARGS ?=

INSTALLED := pyproject.toml constraints.txt src/codebrush/version.py # what pip reads; another of these, and it installs again
# What pip installed is compared with hashes.txt, by a Python that runs nothing of it; on CI another file is an error. pip reports
# what it adds and not what is there: what was not compared to the end is not built on, and no rule counts as done beside it.
INSTALL = touch $(UNCHECKED) && rm -f $(DEMO) $(STUDIO) $(DEV) $(VENV)/report.json && $(BIN)/python -m pip install --quiet \
    --disable-pip-version-check --report $(VENV)/report.json -c constraints.txt -e
CHECK = $(BIN)/python -I -S scripts/check_hashes.py $(VENV)/report.json $(if $(CI),--strict) && rm $(UNCHECKED)

.PHONY: help demo serve test test-slow test-long bench lint format types audit docs clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:
	@echo 'make demo PROMPT="a red apple"   pictures from a prompt, in $(OUT)'
	@echo 'make serve                       Studio, the page to paint on, opened in the browser'
	@echo 'make test                        the test suite, a few minutes'
	@echo 'make test-slow                   what it leaves out for its length, two minutes'
	@echo 'make test-long                   the campaigns that both leave out'
	@echo 'make bench                       speed beside other packages, in benchmarks/results.md'
	@echo 'make lint | format | types       ruff check, ruff format, pyright'
	@echo 'make audit                       known faults of the pinned packages, from PyPI'
	@echo 'make docs                        the documentation as a site, in site/index.html'
	@echo 'make clean                       remove .venv, caches and outputs'

demo: $(DEMO)
	@$(BIN)/codebrush generate --out "$(OUT)" -- "$$PROMPT"
	@echo "make serve opens Studio, a page to paint on, in your browser."

serve: $(STUDIO)
	@$(BIN)/codebrush serve $(SERVE_ARGS)

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test-slow: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m 'slow and not long' $(PYTEST_ARGS)

test-long: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m long --input-seed $$(date +%s) $(PYTEST_ARGS)

bench: $(DEV)
	$(BIN)/python benchmarks/table.py

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV)
	$(BIN)/pyright

# Asks PyPI for what is known of the pinned versions. Needs the network; before each release.
audit: $(DEV)
	@$(BIN)/python -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html in your browser."

clean:
	rm -rf $(VENV) outputs build site .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks recipes -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO): $(INSTALLED)
	@$(call make_venv)
	@echo "Installing Codebrush into $(VENV) (the first time takes a few minutes) ..."
	@$(INSTALL) .
	@$(CHECK)
	@touch $@

$(STUDIO): $(INSTALLED)
	@$(call make_venv)
	@echo "Installing Codebrush and what its page needs into $(VENV) (the first time takes a few minutes) ..."
	@$(INSTALL) ".[studio,search]"
	@$(CHECK)
	@touch $(DEMO) $@

$(DEV): $(INSTALLED)
	@$(call make_venv)
	@echo "Installing Codebrush and its development tools into $(VENV) (the first time takes a few minutes) ..."
	@$(INSTALL) ".[dev]"
	@$(CHECK)
	@touch $(DEMO) $(STUDIO) $@

# A candidate is tried by running it: a name on the PATH may be a launcher of a version that is not installed.
define make_venv
if [ ! -e $(UNCHECKED) ] && \
    { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null 2>&1; }; then exit 0; fi; \
found=; bare=; \
for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
    "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
    "$$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1 || { bare=$$candidate; continue; }; \
    found=$$candidate; break; \
done; \
if [ -z "$$found" ] && [ -n "$$bare" ]; then \
    echo "$$bare cannot make a virtual environment: its venv or ensurepip module is missing." \
         "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
fi; \
if [ -z "$$found" ]; then \
    echo "Codebrush needs Python 3.11 or newer and found none on the PATH." \
         "Install one, or say where it is: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; \
fi; \
echo "Making $(VENV) with $$found"; \
"$$found" -m venv --clear $(VENV)
endef
