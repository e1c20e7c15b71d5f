# Everything sets itself up: a fresh machine needs Python 3.11 with venv, and make.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-slow lint clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable ".[test]"
	touch $@

demo: $(VENV)/.installed
	$(RUN) main.py --dataset=synthetic --enable_fairness=True --fairness_sampling=True --rerank_fair=True

test: $(VENV)/.installed
	$(RUN) -m pytest

test-slow: $(VENV)/.installed
	$(RUN) -m pytest -m slow

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info
