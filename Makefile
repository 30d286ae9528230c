# Each target sets up its own .venv from nothing and skips that quickly when it is up to date.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo

.PHONY: install demo test check clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "manet needs Python >= 3.11; set PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,serve]'
	@touch $@

# The whole way on a rendered catalogue: train, describe, index, search, evaluate, compare, report.
demo: install
	$(BIN)/manet render --products 240 --queries 100 --size 320 --out $(DEMO)/shop
	$(BIN)/manet pipeline --catalog $(DEMO)/shop/catalog --queries $(DEMO)/shop/queries --size 320 --out $(DEMO)/run \
	  --set train.saliency_weights=own:saliency-lite0 --set train.frozen_saliency=true
	@echo "See it: $(BIN)/manet serve --index $(DEMO)/run/index   then open http://127.0.0.1:8000/"

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

clean:
	rm -rf .venv $(DEMO) .mypy_cache .ruff_cache .pytest_cache *.egg-info
