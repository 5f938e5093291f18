PYTHON ?= python3
STUDY = .venv/bin/study

PACKED = results/reference/study
QUESTIONS = assignment noise_floor frequency_prior architectures own_rate one_step group_count guidance catanet_parts \
	group_size batch_size training_length scale_2

.PHONY: demo test soak study reports fresh check schema clean

demo: .venv/installed ## train the quickstart grid on this machine and write its report
	$(STUDY) run ablations/quickstart.yaml
	$(STUDY) report ablations/quickstart.yaml

test: .venv/installed ## all tests that need no GPU
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile

soak: .venv/installed ## faults at random on real runs, at length, with a table of what was lost
	.venv/bin/python -m tests.training.soak

study: .venv/installed ## train what is missing of the study at the reduced budget (hours), and pack what is finished
	@ended=0; \
	once() { $(STUDY) run "$$@" --placement packed:2 --cpu || ended=$$?; [ $$ended -eq 130 ] || $(STUDY) pack "$$@" --to $(PACKED) || ended=$$?; \
		[ $$ended -ne 130 ] || exit 130; }; \
	for grid in quickstart published_weights; do once ablations/$$grid.yaml; done; \
	for pilot in learning_rate batch_size; do once ablations/$$pilot.yaml --budget pilot; done; \
	for question in $(QUESTIONS); do once ablations/$$question.yaml --budget reduced; done; \
	exit $$ended

reports: .venv/installed ## README.md, FINDINGS.md, docs/findings.md and reports/rendered/, from the packed results and reports/templates/
	rm -rf build/study
	$(STUDY) unpack $(PACKED) --results build/study
	.venv/bin/python scripts/write_reports.py build/study

fresh: .venv/installed ## are those pages what `make reports` would write now?
	rm -rf build/study build/fresh
	$(STUDY) unpack $(PACKED) --results build/study
	.venv/bin/python scripts/write_reports.py build/study build/fresh
	.venv/bin/python scripts/check_reports.py build/fresh

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
