# Two commands need nothing but Python 3.10+, make and git: `make run` and `make test`. The tests of the JavaScript
# modules need Node 18.18 or newer, too; without it, `make test` and `make types` say that they left them out.

HOST ?= 127.0.0.1
PORT ?= 8000
VENV ?= .venv
# Which Python makes the environment. Empty: the first on PATH that runs and is new enough.
PYTHON ?=
# Passed on to pytest, e.g. make test ARGS="-k resume -x"
ARGS ?=

bin := $(VENV)/bin
export HOST PORT VENV PYTHON

.DEFAULT_GOAL := help
.PHONY: help run react test nightly lint types format bench screenshots matrix wheel clean

help: ## what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-12s %s\n' "$$name" "$$text"; done

# Stamps: a second run costs a look at two dates, an edit of pyproject.toml installs anew. `make run` does not wait for
# what only tests need, nor `make test` for what only benchmarks need. What tests need includes what the site needs.
$(VENV)/.stamp-site: pyproject.toml scripts/environment
	@scripts/environment site
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml scripts/environment
	@scripts/environment dev
	@touch $(VENV)/.stamp-site $@

$(VENV)/.stamp-bench: pyproject.toml scripts/environment
	@scripts/environment bench
	@touch $(VENV)/.stamp-site $@

run: $(VENV)/.stamp-site ## the demo site at http://127.0.0.1:8000/ (HOST and PORT change it)
	@scripts/run

react: ## the demo's React page, built into static/; needs Node 18.18 or newer
	@scripts/react

test: $(VENV)/.stamp-dev ## all tests, with coverage; with ARGS only pytest runs, and gets them
	@scripts/programs
	@scripts/test $(ARGS)

nightly: $(VENV)/.stamp-dev ## the tests that take minutes: engines that sleep for long, a log of a million events
	@scripts/programs
	@scripts/test -m nightly $(ARGS)

lint: $(VENV)/.stamp-dev ## formatting, ruff, layers, bandit, known vulnerabilities of dependencies
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/lint-imports --cache-dir .cache/import-linter
	$(bin)/bandit --quiet --configfile pyproject.toml --recursive events sse_site
	$(bin)/python scripts/audit.py

types: $(VENV)/.stamp-dev ## mypy, strict, and tsc over the JavaScript modules
	$(bin)/mypy
	@scripts/node-packages tsc; case $$? in \
		0) echo node_modules/.bin/tsc --project .; node_modules/.bin/tsc --project . ;; \
		3) ;; \
		*) exit 1 ;; \
	esac

format: $(VENV)/.stamp-dev ## put the code into shape
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

bench: $(VENV)/.stamp-bench ## speed and memory, beside other packages in the same run
	@scripts/programs bench
	$(bin)/python -m bench $(ARGS)

screenshots: $(VENV)/.stamp-dev ## docs/images/, from the demo site in Chromium
	@scripts/programs
	$(bin)/python scripts/screenshots.py $(ARGS)

matrix: $(VENV)/.stamp-dev ## the tests with every Python and Django found; ARGS="3.12:6.0" for some
	@scripts/programs
	$(bin)/python scripts/matrix.py $(ARGS)

wheel: $(VENV)/.stamp-dev ## dist/
	$(bin)/python -m build --no-isolation

clean: ## away with everything made, but not with the site's data in var/
	rm -rf $(VENV) .cache build dist htmlcov node_modules static/sse_site/built
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
