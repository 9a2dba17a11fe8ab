# `make help` lists the targets. Everything a newcomer needs: `make demo`, `make learn`, `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

ASR := .venv-asr
READERS := .readers

# Schedules of `make faults`; `make test` runs a few.
SEEDS ?= 50

# What `make quick` leaves out: whole runs, Ray, faults, child processes, networks that are slow on a CPU, and
# what measures, selects and reports again and again.
SLOW := end_to_end examples benchmarks faults docs/test_python.py training/run training/test_train.py \
	pipeline/test_annotate.py pipeline/test_caption.py pipeline/test_cluster.py pipeline/test_executor.py \
	curation/media/test_odd_files.py curation/shots/test_transnet.py curation/sync/test_active_speaker.py \
	curation/sync/test_syncnet.py pipeline/test_transcribe.py

.DEFAULT_GOAL := help
.PHONY: help install demo learn faces test quick nightly faults check format bench asr readers lock dist clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: $(STAMP) ## make .venv with everything that the other targets need

demo: $(STAMP) ## generate talking videos with known truth, curate them, show what came out
	$(BIN)/python -m examples.demo

learn: $(STAMP) ## generate, curate, train both stages on a CPU and measure whether lips follow (20 min)
	$(BIN)/python -m examples.learn

faces: $(STAMP) ## the same for identity and motion, on people who lie between two others (10 min)
	$(BIN)/python -m examples.learn --faces

test: $(STAMP) check ## ruff, mypy and the whole test suite
	$(BIN)/pytest

quick: $(STAMP) check ## ruff, mypy and the tests that are fast (about 3 min on two cores)
	$(BIN)/pytest $(SLOW:%=--ignore=tests/%)

nightly: $(STAMP) check readers ## everything in full: the whole suite with its long proofs, then `make learn` (over an hour)
	SEEDS=$(SEEDS) $(BIN)/pytest --full
	$(BIN)/python -m examples.learn

faults: $(STAMP) ## what breaks while a data set is made: seeded schedules and failing stores (SEEDS=50)
	SEEDS=$(SEEDS) $(BIN)/pytest --full tests/faults

check: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --implicit-reexport --cache-dir .mypy_cache/tests tests

format: $(STAMP) ## let ruff mend and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure how fast footage is curated
	$(BIN)/python -m benchmarks.curate

lock: $(STAMP) ## write the versions in .venv to constraints.txt
	{ sed -n '/^#/p' constraints.txt; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v ' @ '; } > constraints.new
	mv constraints.new constraints.txt

dist: $(STAMP) ## build sdist and wheel into dist/
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

# The constraints hold every package at the version that the tests ran with, torch above all: where an
# index has a CPU build of that version beside it, as pip's find-links, it is taken.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import cv2, mediapipe' || { \
	  echo 'System libraries are missing. On Debian: apt-get install libegl1 libgles2 libgl1 libglib2.0-0'; exit 1; }
	touch $(STAMP)

# WhisperX in an environment of its own. Its pin of torch 2.8 is passed over: as wheels that is CUDA and
# gigabytes, and it runs on the torch that Talkforge uses as well. torchaudio does without
# its compiled part, which is only built for CUDA and does not load beside a CPU build of torch.
asr: $(ASR)/.installed ## make .venv-asr, in which `talkforge transcribe` runs WhisperX

$(ASR)/.installed: configs/asr.txt
	$(PYTHON) -m venv $(ASR)
	$(ASR)/bin/python -m pip install --quiet --upgrade pip
	$(ASR)/bin/python -m pip install --quiet -r configs/asr.txt
	$(ASR)/bin/python -m pip install --quiet --no-deps whisperx==3.8.6
	@$(ASR)/bin/python -c 'import torchaudio' 2>/dev/null || rm -f $(ASR)/lib/python*/site-packages/torchaudio/lib/*.so
	$(ASR)/bin/python -W ignore -c 'import whisperx.asr'
	touch $@

# Tests of exports then run the loaders of the tools themselves, and are skipped without them.
readers: $(READERS)/.installed ## fetch the trainers' own readers of exports, for the tests (no training parts)

$(READERS)/.installed: tests/pipeline/exports/readers.txt $(STAMP)
	rm -rf $(READERS)
	$(BIN)/python -m pip install --quiet --no-deps --target $(READERS) -r tests/pipeline/exports/readers.txt
	touch $@

clean: ## remove environments, caches, and what demo and learn left
	rm -rf $(VENV) $(ASR) $(READERS) build dist talkforge.egg-info demo-out learn-out .mypy_cache .ruff_cache .pytest_cache
