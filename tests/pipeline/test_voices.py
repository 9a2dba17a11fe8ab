"""Whose voice is heard: names of voices, and faces with another voice than usual."""

from __future__ import annotations

import numpy as np

from talkforge.pipeline.voices import Voice, compare


def vector(*parts: float) -> np.ndarray:
    found = np.array([*parts, 0.0], np.float32)
    found[-1] = np.sqrt(1 - np.sum(found**2))
    return found


ANNA, BEN = vector(1.0, 0.0), vector(0.0, 1.0)


def test_clips_with_one_voice_have_one_name() -> None:
    found = compare({"b": BEN, "a": ANNA, "c": vector(0.9, 0.0), "d": BEN}, {})
    assert found["a"].person == found["c"].person != found["b"].person == found["d"].person
    assert {voice.similarity for voice in found.values()} == {None}
    alone = compare({"a": ANNA, "c": vector(0.9, 0.0)}, {})
    assert alone["a"].person == found["a"].person  # named after the smallest clip id


def test_a_dubbed_clip_is_unlike_the_usual_voice_of_its_face() -> None:
    vectors = {"a": ANNA, "b": ANNA, "c": BEN, "d": ANNA}
    found = compare(vectors, dict.fromkeys(vectors, "p1"))
    assert {key: voice.similarity for key, voice in found.items()} == {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0}
    assert found["c"].person != found["a"].person


def test_two_clips_have_no_usual_voice_and_nobody_has_none() -> None:
    vectors = {"a": ANNA, "b": ANNA, "c": BEN, "d": BEN, "e": BEN}
    found = compare(vectors, {"a": "p1", "b": "p1", "c": "p2", "d": "p2", "e": ""})
    assert {voice.similarity for voice in found.values()} == {None}
    assert compare({}, {}) == {}


def test_of_many_clips_some_are_compared() -> None:
    vectors = {f"{k:04d}": ANNA if k % 10 else BEN for k in range(600)}
    found = compare(vectors, dict.fromkeys(vectors, "p1"))
    assert all(found[f"{k:04d}"].similarity == (1.0 if k % 10 else 0.0) for k in range(600))
    assert isinstance(found["0001"], Voice) and len({voice.person for voice in found.values()}) == 2
