"""The mel filter bank against values of the published filter banks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from talkforge.curation.audio.mel import mel_filters


def mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def hz(mel: float) -> float:
    return 700 * (10 ** (mel / 2595) - 1)


def test_corners_are_even_on_the_mel_scale_and_sides_straight_over_frequency() -> None:
    filters = mel_filters(3, 1024, low_hz=1000.0, high_hz=5000.0)
    corners = [hz(mel(1000) + k * (mel(5000) - mel(1000)) / 4) for k in range(5)]
    assert filters.shape == (3, 513)
    for band, (low, peak, high) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
        for k in range(513):
            at = k * 15.625
            height = (at - low) / (peak - low) if at < peak else (high - at) / (high - peak)
            assert filters[band, k] == pytest.approx(max(0.0, height), abs=1e-12)


def test_corners_rounded_to_bins_are_those_of_python_speech_features() -> None:
    filters = mel_filters(26, 512, linear_in="bins")
    # Of python_speech_features 0.6: get_filterbanks(26, 512, 16000)
    peaks = [2, 4, 7, 10, 13, 16, 20, 24, 29, 34, 40, 46, 53, 60, 68, 77, 87, 97, 109, 122, 136, 152, 169]
    peaks += [188, 209, 231]
    assert filters.argmax(axis=1).tolist() == peaks
    assert (filters.max(axis=1) == 1).all()
    assert filters[0, :5].tolist() == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert filters[25, 254:].tolist() == [0.08, 0.04, 0.0]


def test_sides_straight_on_the_mel_scale_add_up_to_one_between_the_first_and_the_last_peak() -> None:
    filters = mel_filters(80, 512, low_hz=20.0, linear_in="mel")
    low, top = 1127 * math.log1p(20 / 700), 1127 * math.log1p(8000 / 700)
    step = (top - low) / 81
    mels = 1127 * np.log1p(np.arange(257) * 31.25 / 700)
    between = (mels >= low + step) & (mels <= top - step)
    assert between.sum() > 240
    assert np.allclose(filters.sum(axis=0)[between], 1.0, rtol=0, atol=1e-12)
    at = (mels[32] - low) / step  # 1000 Hz, in filters
    assert filters[int(at) - 1, 32] == pytest.approx(1 - at % 1, abs=1e-9)


@pytest.mark.parametrize(("bands", "fft"), [(80, 1024), (26, 1024)])
def test_every_band_has_weight(bands: int, fft: int) -> None:
    filters = mel_filters(bands, fft)
    assert filters.shape == (bands, fft // 2 + 1)
    assert (filters.max(axis=1) > 0.4).all()
    assert filters.min() == 0.0 and filters.max() <= 1.0


def test_equal_calls_share_filters_that_nobody_can_change() -> None:
    filters = mel_filters(26, 1024)
    assert mel_filters(26, 1024) is filters
    with pytest.raises(ValueError, match="read-only"):
        filters[0, 0] = 1.0
