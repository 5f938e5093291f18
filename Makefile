PYTHON ?= python3
STUDY = .venv/bin/study

.PHONY: demo test soak check schema clean

demo: .venv/installed ## train the quickstart grid on this machine and write its report
	$(STUDY) run ablations/quickstart.yaml
	$(STUDY) report ablations/quickstart.yaml

test: .venv/installed ## all tests that need no GPU
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile

soak: .venv/installed ## faults at random on real runs, at length, with a table of what was lost
	.venv/bin/python -m tests.training.soak

check: .venv/installed ## style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

schema: .venv/installed ## regenerate the JSON Schema of grid files
	.venv/bin/python scripts/write_schema.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet -e '.[dev]'
	touch $@

clean: ## remove what was built; results stay
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
