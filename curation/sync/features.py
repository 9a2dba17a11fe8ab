"""Inputs of the sync estimator: audio bands and mouth measures, one row for each frame of a clip."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from talkforge.curation.audio.mel import mel_filters
from talkforge.schemas.arrays import Doubles, Floats, Landmarks
from talkforge.schemas.units import AUDIO_HZ

SYNC_HZ = 25.0
"""Frame rate of the estimator. Features of clips at other rates are interpolated to it."""

HIGH_PASS = 8.0
"""Sigma of the Gaussian low-pass that is subtracted, in frames of `SYNC_HZ` (0.32 s). This removes the
posture of the head and the resting face of the speaker."""

NUM_BANDS = 26
"""Mel bands of the audio."""

PHONE_SPREAD = 2.5
"""About the standard deviation of a phone's log probability: brings phones to the scale of the bands."""

POWER_FLOOR = 1e-6
"""Added to the band power before the logarithm, so that digital silence is a constant."""

_WINDOW_S, _FFT_SAMPLES, _LOW_HZ, _HIGH_HZ = 0.04, 1024, 60.0, 7600.0

_EYES = (33, 263)
"""Landmarks of the outer eye corners, whose distance is the unit of the others."""

_DISTANCES: tuple[tuple[tuple[int, int], ...], ...] = (
    ((13, 14),),  # opening between the lips, middle
    ((82, 87), (312, 317)),
    ((81, 178), (311, 402)),
    ((80, 88), (310, 318)),  # ... to the corners
    ((0, 17),),  # outer height
    ((37, 84), (267, 314)),
    ((61, 291),),  # outer width
    ((78, 308),),  # inner width
    ((0, 13),),  # thickness of the upper lip
    ((14, 17),),  # and of the lower
    ((168, 152),),  # nose bridge to chin: the jaw
    ((168, 0),),  # to the lips' four edges
    ((168, 13),),
    ((168, 14),),
    ((168, 17),),
    ((61, 152), (291, 152)),  # corners to chin
)
"""For each measure the pairs of landmarks whose mean distance it is; left and right partners are averaged.
Source: MediaPipe's canonical face mesh."""

_SHAPES: tuple[tuple[int, ...], ...] = (
    (25,),  # jawOpen
    (27,),  # mouthClose
    (32,),  # mouthFunnel
    (38,),  # mouthPucker
    (40,),  # mouthRollLower
    (41,),  # mouthRollUpper
    (42,),  # mouthShrugLower
    (43,),  # mouthShrugUpper
    (36, 37),  # mouthPress
    (34, 35),  # mouthLowerDown
    (48, 49),  # mouthUpperUp
    (46, 47),  # mouthStretch
    (44, 45),  # mouthSmile
)
"""For each measure the indices into MediaPipe's 52 blendshapes whose mean it is."""

NUM_MEASURES = len(_DISTANCES) + len(_SHAPES)


def audio_bands(samples: Floats, num_frames: int, fps: float) -> Floats:
    """Log-mel power of the audio around each frame.

    The 40 ms Hann window is centred on the frame's time. Beyond the ends of the audio there is silence.

    Args:
        samples: float32 [N] in [-1, 1] at 16 kHz; sample 0 belongs to frame 0.
        num_frames: frames of the clip, F.
        fps: frame rate of the clip.

    Returns:
        float32 [F, 26], row k for second k / fps.
    """
    width = round(_WINDOW_S * AUDIO_HZ)
    centres = np.floor(np.arange(num_frames) / fps * AUDIO_HZ + 0.5).astype(np.int64)
    missing = max(int(centres[-1]) + width - len(samples), 0) if num_frames else 0
    # With half a window before the first sample, the window of sample c begins at index c.
    padded = np.pad(samples.astype(np.float64), (width // 2, width // 2 + missing))
    hann = np.hanning(width)
    windows = padded[centres[:, None] + np.arange(width)] * hann
    power = np.abs(np.fft.rfft(windows, _FFT_SAMPLES)) ** 2 / np.sum(hann**2)
    filters = mel_filters(NUM_BANDS, _FFT_SAMPLES, low_hz=_LOW_HZ, high_hz=_HIGH_HZ)
    return np.log(power @ filters.T + POWER_FLOOR).astype(np.float32)


def mouth_measures(landmarks: Landmarks) -> Floats:
    """Shape of the mouth in each frame.

    The measures are 16 distances of lips and jaw in three dimensions, over the distance of the outer eye
    corners, and 13 blendshapes, left and right averaged. Column 0 is the opening between the lips.

    Args:
        landmarks: face landmarks of F frames.

    Returns:
        float32 [F, 29]; NaN where no face was found.
    """
    points = landmarks.points.astype(np.float64)

    def distance(pair: tuple[int, int]) -> Doubles:
        return np.asarray(np.linalg.norm(points[:, pair[0]] - points[:, pair[1]], axis=1))

    eyes = np.maximum(distance(_EYES), 1e-6)
    columns = [np.mean([distance(pair) for pair in pairs], axis=0) / eyes for pairs in _DISTANCES]
    columns += [landmarks.blendshapes[:, list(shapes)].mean(axis=1) for shapes in _SHAPES]
    return np.stack(columns, axis=1).astype(np.float32)


def at_sync_rate(features: Floats, fps: float) -> Doubles:
    """Features [frames, n] at `fps`, interpolated linearly to `SYNC_HZ`; NaN next to a missing frame.

    Args:
        features: one row a frame.
        fps: their frame rate.
    """
    if fps == SYNC_HZ or not len(features):
        return features.astype(np.float64)
    times = np.arange(int((len(features) - 1) / fps * SYNC_HZ + 1e-6) + 1) / SYNC_HZ
    before = np.minimum((times * fps + 1e-9).astype(np.int64), len(features) - 1)
    after = np.minimum(before + 1, len(features) - 1)
    weight = np.clip(times * fps - before, 0, 1)[:, None]
    # A frame of weight zero must not spread its NaN.
    late = np.where(weight > 1e-6, features[after], 0)
    return np.asarray(features[before] * (1 - weight) + late * weight, np.float64)


def mouth_input(measures: Doubles) -> tuple[Doubles, NDArray[np.bool_]]:
    """Mouth measures as the network takes them: motion and posture, each of unit power within the clip.

    Args:
        measures: [F, M] at `SYNC_HZ`; NaN where no face was found.

    Returns:
        [F, 2 M]: the measures after a high-pass, then the measures minus their mean; 0 where no face was
        found and where a measure is constant. And [F], where a face was found.
    """
    seen = np.asarray(np.isfinite(measures).all(axis=1))
    known = np.where(seen[:, None], measures, 0)
    # The low-pass is a weighted mean over the frames that are present: both sums use the same Gaussian.
    weight = gaussian_filter1d(seen.astype(np.float64), HIGH_PASS, mode="constant")
    slow = gaussian_filter1d(known, HIGH_PASS, axis=0, mode="constant") / np.maximum(weight, 1e-6)[:, None]
    count = max(int(seen.sum()), 1)
    columns = np.concatenate([known - slow, known - known.sum(axis=0) / count], axis=1)
    columns = np.where(seen[:, None], columns, 0)
    power = np.sqrt((columns**2).sum(axis=0) / count)
    return columns / np.where(power > 1e-6, power, np.inf), seen


def audio_input(bands: Doubles, phones: Doubles | None = None) -> Doubles:
    """Audio as the network takes it: bands minus their means, all together of unit power, and phones.

    Args:
        bands: [F, B] at `SYNC_HZ`.
        phones: [F, P] of `phones.PhoneRecogniser` at `SYNC_HZ`; None for networks that know only bands.

    Returns:
        [F, B], or [F, B + P] with the phones minus their means, over `PHONE_SPREAD`; 0 in constant audio.
    """
    centred = bands - bands.mean(axis=0) if len(bands) else bands
    power = float(np.sqrt((centred**2).mean())) if centred.size else 0.0
    found = np.asarray(centred / (power if power > 1e-6 else np.inf))
    if phones is None:
        return found
    return np.concatenate([found, phone_input(phones) * (power > 1e-6)], axis=1)


def phone_input(phones: Doubles) -> Doubles:
    """Log probabilities of phones [F, P] minus their means, over `PHONE_SPREAD`."""
    return (phones - phones.mean(axis=0)) / PHONE_SPREAD if len(phones) else phones
