"""Speaks the transcriber's protocol without a model: a real process, for tests of who drives it.

STAND_IN (JSON) says at which clips it dies, hangs, fails or talks nonsense, and what it says of others.
"""

import base64
import json
import os
import sys
import time
from pathlib import Path

asked = json.loads(sys.stdin.readline())
orders = json.loads(os.environ.get("STAND_IN", "{}"))


def answer(**fields):
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if asked["model"] == "missing":
    answer(error="OSError: no such model")
    sys.exit()
about = {"transcriber": "stand-in", "version": "1", "model": asked["model"], "model_sha256": "0" * 64}
answer(protocol=orders.get("protocol", asked["protocol"]), **about)
for line in sys.stdin:
    clip = json.loads(line)
    key = clip["id"]
    if key in orders.get("dies", []) or orders.get("dies") == "always":
        sys.stderr.write("chatter\nout of memory\n")
        sys.stderr.flush()
        os._exit(3)
    if key in orders.get("hangs", []):
        Path(orders["mark"]).touch()
        time.sleep(600)
    if key in orders.get("fails", []):
        answer(id=key, error="ValueError: too quiet")
    elif key in orders.get("raves", []):
        answer(id=key, words="many")
    else:
        num_samples = len(base64.b64decode(clip["pcm"])) // 2
        text = orders.get("text", f"heard {num_samples} samples")
        words = [[word, float(n), n + 0.5, 0.9] for n, word in enumerate(text.split())]
        language = orders.get("language", asked["language"] or "en")
        answer(
            id=key, language=language, language_probability=0.75, text=text, words=words,
            word_times="attention", turns=[["A", 0.0, 1.0]] if asked["diarize"] else None,
        )  # fmt: skip
