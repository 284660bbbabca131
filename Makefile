# Everything a developer does. `make app` and `make test` need only make and Python 3.11 to 3.13:
# the first run sets up .venv, later runs start in seconds.

VENV := .venv
BIN := $(VENV)/bin
MODEL ?= demo
PYTHONS ?= python3.13 python3.12 python3.11 python3 python
STATED := pyproject.toml requirements.txt

# The first of PYTHONS that runs and fits; empty when none does.
FITS = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON = $(shell for p in $(PYTHONS); do if $$p -c "$(FITS)" >/dev/null 2>&1; then echo $$p; break; fi; done)
NEEDED = gemma3vl_app needs Python 3.11, 3.12 or 3.13, and none is on PATH: install one and run make again

.PHONY: help app test test-web test-notebooks stress sabotage notebooks screenshots lint format bench bench-small demo-model demo-eval demo-maps clean
help:
	@echo "make app        open the chat page with the demo model (MODEL=folder for a checkpoint of yours)"
	@echo "make test       run the tests, without a browser"
	@echo "make test-web   run the tests that drive the page in chromium"
	@echo "make notebooks  open the notebooks in JupyterLab"
	@echo "make test-notebooks  execute the notebooks on the demo, and use JupyterLab in chromium"
	@echo "make screenshots  renew the pictures of README.md and docs/explain.md"
	@echo "make stress     thousands of bad inputs, kills and too many clients (an hour; downloads Pillow's sources once)"
	@echo "make sabotage   take out each control and see its test fail; renews docs/security.md"
	@echo "make lint       ruff and mypy"
	@echo "make bench      measure speed and write docs/bench.json (about ten minutes)"
	@echo "make demo-model train the demo model from nothing (hours; goes on where it was ended)"
	@echo "make demo-eval  see what the demo model gets right and write docs/demo-eval.json"
	@echo "make demo-maps  see whether maps fall on what was asked about and write docs/explain.json"
	@echo "make bench-small  the measurements that fit into CI, at 70 % of their targets"

app: $(VENV)/ready-app
	$(BIN)/gemma3vl app --model $(MODEL)

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m "not web and not notebook and not stress" -n 2 --dist loadfile

test-web: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m web

test-notebooks: $(VENV)/ready-notebook
	$(BIN)/python -m pytest -m notebook --durations 12

stress: $(VENV)/ready-dev
	$(BIN)/python -m pytest -m stress -rA

sabotage: $(VENV)/ready-dev
	$(BIN)/python -m tests.sabotage

notebooks: $(VENV)/ready-notebook
	$(BIN)/jupyter lab notebooks

screenshots: $(VENV)/ready-dev
	$(BIN)/python -m tests.web.screenshots
	$(BIN)/python -m tests.web.explanations

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/ready-dev
	$(BIN)/python -m gemma3vl_app.benchmark

bench-small: $(VENV)/ready-dev
	$(BIN)/python -m gemma3vl_app.benchmark --small

demo-model: $(VENV)/ready-dev
	$(BIN)/python -m gemma3vl_app.finetune.demo

demo-eval: $(VENV)/ready-dev
	$(BIN)/python -m gemma3vl_app.finetune.demo_eval

demo-maps: $(VENV)/ready-dev
	$(BIN)/python -m gemma3vl_app.finetune.demo_maps

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# --- set-up: a stamp per extra, renewed when the stated dependencies change ---

$(BIN)/python:
	$(if $(PYTHON),,$(error $(NEEDED)))
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready-app: $(STATED) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/ready-dev: $(STATED) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@ $(VENV)/ready-app

$(VENV)/ready-notebook: $(STATED) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,notebook]"
	@touch $@ $(VENV)/ready-dev $(VENV)/ready-app
