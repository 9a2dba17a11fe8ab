# Everything a newcomer needs: `make demo`, `make learn`, `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

ASR := .venv-asr

.PHONY: install demo learn test check format bench asr clean

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m examples.demo

learn: $(STAMP)
	$(BIN)/python -m examples.learn

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

# WhisperX in an environment of its own. Its pin of torch 2.8 is passed over: as wheels that is CUDA and
# gigabytes, and it runs on the torch that Talkforge uses as well. torchaudio does without
# its compiled part, which is only built for CUDA and does not load beside a CPU build of torch.
asr: $(ASR)/.installed

$(ASR)/.installed: configs/asr.txt
	$(PYTHON) -m venv $(ASR)
	$(ASR)/bin/python -m pip install --quiet --upgrade pip
	$(ASR)/bin/python -m pip install --quiet -r configs/asr.txt
	$(ASR)/bin/python -m pip install --quiet --no-deps whisperx==3.8.6
	@$(ASR)/bin/python -c 'import torchaudio' 2>/dev/null || rm -f $(ASR)/lib/python*/site-packages/torchaudio/lib/*.so
	$(ASR)/bin/python -W ignore -c 'import whisperx.asr'
	touch $@

clean:
	rm -rf $(VENV) $(ASR) demo-out learn-out .mypy_cache .ruff_cache .pytest_cache
