# Everything a newcomer needs: `make demo`, `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test check format bench clean

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m examples.demo

test: $(STAMP) check
	$(BIN)/pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.curate

# MediaPipe and insightface each ask for another of two OpenCV packages that overwrite each other's
# files; the pins make both one version, and putting the larger one in last leaves one whole set.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps opencv-contrib-python==5.0.0.93
	@$(BIN)/python -c 'import cv2, mediapipe' || { \
	  echo 'System libraries are missing. On Debian: apt-get install libegl1 libgles2 libgl1 libglib2.0-0'; exit 1; }
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo-out .mypy_cache .ruff_cache .pytest_cache
