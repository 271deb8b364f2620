# make run [RUN=quick] [DATA=folder] [MODEL=name]   one run of the notebooks; report in results/<RUN>/report.html
# make test | test-slow                             tests and notebooks | torture and simulations
# make lab | notebooks | bench | lint | lines | clean

PYTHON ?= python3
VENV   ?= .venv
RUN    ?= quick
DATA   ?=
MODEL  ?=

BIN := $(VENV)/bin
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9][0-9]*_*.ipynb))
NBVAL := --nbval --nbval-sanitize-with tests/nbval.cfg --nbval-current-env --nbval-cell-timeout=600
LAB_SETTINGS := $(VENV)/share/jupyter/lab/settings

.PHONY: run test test-slow lab notebooks browser-check bench lint lines clean env

run: env
	@$(BIN)/python -m steerlib run params/$(RUN).yaml $(if $(DATA),--data '$(DATA)') $(if $(MODEL),--model '$(MODEL)')

# A fresh results folder, or the notebooks would replay a finished sweep and could not fail.
test: env
	@results=$$(mktemp -d) && trap 'rm -rf "$$results"' EXIT && \
	STEERLIB_RESULTS=$$results PLOTLY_RENDERER=plotly_mimetype \
	$(BIN)/python -m pytest -m 'not slow' tests $(if $(NOTEBOOKS),$(NOTEBOOKS) $(NBVAL))

test-slow: env
	@$(BIN)/python -m pytest -m slow tests

lab: env
	@$(BIN)/python -m jupyterlab --notebook-dir . $(if $(filter 0,$(shell id -u)),--allow-root)

notebooks: env
	@$(BIN)/python tests/stored.py

# Notebook 06 in a real Chromium: installs what it needs where it may, else says how and ends well.
browser-check: env
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[browser]'
	@command -v chromium chromium-browser >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || echo "Chromium is missing: apt-get install chromium, or name one in CHROMIUM"
	@$(BIN)/python tests/browser/check_slider.py $(if $(PICTURES),'$(PICTURES)')

# Peers stand beside the pins without their dependencies, see benchmarks/peers.txt; without them they are not measured.
bench: env
	@$(BIN)/python -m pip install -q --no-deps -r benchmarks/peers.txt || echo "peers are not installed, so not measured"
	@$(BIN)/python -m benchmarks

lint: env
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/ty check --python $(VENV) steerlib

lines:
	@$(PYTHON) tests/lines.py

# Results stay: a sweep may have cost hours.
clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "Python 3.11 or newer is needed; $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" % v[:2])'
	@echo "setting up $(VENV): about two minutes and 2 GB, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,ray]'
	@$(BIN)/python -m steerlib fetch
	@mkdir -p $(LAB_SETTINGS)
	@printf '%s' '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' > $(LAB_SETTINGS)/overrides.json
	@touch $@
