"""Cepstra are those of the published definition."""

from __future__ import annotations

import numpy as np
import pytest

from talkforge.curation.audio.cepstra import mfcc


def test_cepstra_are_those_of_python_speech_features() -> None:
    n = np.arange(1600)
    tones = np.rint(8000 * np.sin(2 * np.pi * 220 * n / 16000) + 3000 * np.sin(2 * np.pi * 1810 * n / 16000))
    found = mfcc((tones / 32768).astype(np.float32))
    # Of python_speech_features 0.6: mfcc(tones.astype(int16), 16000)[0] and [-1].
    first = [19.976342, 8.42271, -17.204211, 15.197756, 36.95097, -7.975739, -43.798268, -14.710582]
    first += [7.767204, -26.41758, -47.858316, -17.389457, 4.419275]
    last = [19.742621, 9.952888, -16.372865, 15.642611, 37.5123, -5.626584, -40.013884, -11.886345]
    last += [9.582016, -23.088642, -42.916337, -13.685391, 6.229751]
    assert found.shape == (9, 13)
    assert np.abs(found[0] - first).max() < 1e-6
    assert np.abs(found[-1] - last).max() < 1e-6


@pytest.mark.parametrize(("num_samples", "rows"), [(0, 1), (1, 1), (400, 1), (401, 2), (16000, 99)])
def test_digital_silence_is_the_log_of_the_smallest_step(num_samples: int, rows: int) -> None:
    found = mfcc(np.zeros(num_samples, np.float32))
    assert found.shape == (rows, 13)
    assert np.allclose(found[:, 0], np.log(np.finfo(np.float64).eps))
    assert np.abs(found[:, 1:]).max() < 1e-9
