# Two commands need nothing but Python 3.11 and make:  make demo   and   make test
# Both set up .venv by themselves, once.

PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false .venv/bin/python -m pytest
ARGS ?=

.PHONY: help setup demo test check proof bench format constraints clean

help:            ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## ?/  make \1\t/' | expand -t 20

setup:           ## make .venv, or bring it up to date
	@scripts/setup

demo: setup      ## tune a real text encoder on a reverse dictionary, and show what it gained
	@.venv/bin/luthier demo $(ARGS)

test: setup      ## all tests but the long forms
	@scripts/setup_azure || echo "azure-ai-ml cannot be had: its tests are skipped"
	@$(PYTEST) -n auto --maxprocesses 8 --dist loadfile -m "not slow" $(ARGS)

check: setup     ## style, types, house rules and quick tests, in about a minute
	@scripts/check

proof: setup     ## the long forms: DeepSpeed, every test marked slow, the durability harness in full
	@.venv/bin/python -m pip install -qq -c constraints.txt 'deepspeed>=0.18'
	@$(PYTEST) --timeout 7200 tests/trainer/test_trainer_deepspeed.py
	@$(PYTEST) --timeout 7200 tests/component/test_component_deepspeed.py
	@$(PYTEST) --timeout 7200 tests/doors/test_deepspeed_runs.py
	@$(PYTEST) -m slow --timeout 7200 $(ARGS)
	@.venv/bin/python -m luthier.testing.durability --kills 1000

bench: setup     ## the measured figures of the docs, measured again: hours, on an idle machine
	@.venv/bin/luthier bench --write $(ARGS)
	@for file in benchmarks/*.py; do echo "== $$file"; .venv/bin/python $$file || exit 1; done

format: setup    ## put the code into shape
	@.venv/bin/ruff check --fix -q src tests scripts; .venv/bin/ruff format -q src tests scripts

constraints:     ## write constraints.txt from what is installed in .venv
	@{ head -2 constraints.txt; .venv/bin/pip freeze --exclude-editable 2>/dev/null \
	  | grep -E '^[A-Za-z0-9_.-]+==' | sed -E 's/\+[a-z0-9.]+$$//'; } > constraints.new \
	  && mv constraints.new constraints.txt

clean:           ## remove .venv and every cache
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
