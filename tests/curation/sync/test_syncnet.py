"""SyncNet on random weights of its published layout, against an independent slow computation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from talkforge.curation.audio.cepstra import mfcc
from talkforge.curation.sync import syncnet
from talkforge.curation.sync.syncnet import SyncNet, compare
from talkforge.curation.weights import registry
from talkforge.curation.weights.torch import inference
from talkforge.schemas.errors import ModelError

LAYOUT: dict[str, dict[int, tuple[int, ...]]] = {
    "netcnnaud": {
        0: (64, 1, 3, 3),
        4: (192, 64, 3, 3),
        8: (384, 192, 3, 3),
        11: (256, 384, 3, 3),
        14: (256, 256, 3, 3),
        18: (512, 256, 5, 4),
    },
    "netcnnlip": {
        0: (96, 3, 5, 7, 7),
        4: (256, 96, 1, 5, 5),
        8: (256, 256, 1, 3, 3),
        11: (256, 256, 1, 3, 3),
        14: (256, 256, 1, 3, 3),
        18: (512, 256, 1, 6, 6),
    },
    "netfcaud": {0: (512, 512), 3: (1024, 512)},
    "netfclip": {0: (512, 512), 3: (1024, 512)},
}
"""Places and shapes of the published weights; a batch normalisation follows every layer but the last
of the two heads."""


def random_state() -> dict[str, torch.Tensor]:
    """A state dict of that layout, as old as the published one: without `num_batches_tracked`."""
    rng = np.random.default_rng(5)
    state: dict[str, np.ndarray] = {}
    for part, layers in LAYOUT.items():
        for place, shape in layers.items():
            key, outside = f"{part}.{place}", shape[0]
            state[f"{key}.weight"] = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
            state[f"{key}.bias"] = rng.normal(0, 0.1, outside)
            if outside != 1024:
                norm = f"{part}.{place + 1}"
                state[f"{norm}.weight"] = rng.uniform(0.8, 1.2, outside)
                state[f"{norm}.bias"] = rng.normal(0, 0.1, outside)
                state[f"{norm}.running_mean"] = rng.normal(0, 0.1, outside)
                state[f"{norm}.running_var"] = rng.uniform(0.5, 1.5, outside)
    # Pixels reach 255 and cepstra some 40: the first layers bring them down, as trained ones do.
    state["netcnnlip.0.weight"] /= 100
    state["netcnnaud.0.weight"] /= 20
    return {key: torch.from_numpy(value.astype(np.float32)) for key, value in state.items()}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_state()


@pytest.fixture(scope="module")
def model(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> SyncNet:
    path = tmp_path_factory.mktemp("weights") / "syncnet_v2.model"
    torch.save(state, path)
    return SyncNet(path)


@pytest.fixture(scope="module")
def footage() -> tuple[np.ndarray, np.ndarray]:
    """11 frames of moving noise and their sound, with 100 samples to spare."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (11, 28, 28, 3), np.uint8)
    sound = rng.normal(0, 0.1, 11 * 640 + 100) * np.repeat(rng.uniform(0, 2, 12), 640)[: 11 * 640 + 100]
    return coarse.repeat(8, axis=1).repeat(8, axis=2), sound.astype(np.float32)


# --------------------------------------------------------------------------- the slow way


def _layer(state: dict[str, Any], part: str, place: int, x: Any, **how: Any) -> Any:
    """Convolution or matrix, batch normalisation of inference, and rectifier."""
    weight, bias = state[f"{part}.{place}.weight"], state[f"{part}.{place}.bias"]
    apply = {2: functional.linear, 4: functional.conv2d, 5: functional.conv3d}[weight.dim()]
    x = apply(x, weight, bias, **how)
    norm = f"{part}.{place + 1}"
    if f"{norm}.weight" not in state:
        return x
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean, variance, gain, shift = (
        state[f"{norm}.{name}"].reshape(shape) for name in ("running_mean", "running_var", "weight", "bias")
    )
    return torch.clamp((x - mean) / torch.sqrt(variance + 1e-5) * gain + shift, min=0)


def slow_mouth(state: dict[str, Any], window: np.ndarray) -> Any:
    """Embedding [1024] of one window, RGB [5, 224, 224, 3]."""
    planes = [[frame[:, :, channel] for frame in window] for channel in (2, 1, 0)]
    x = torch.tensor(np.array(planes, np.float32))[None]
    x = _layer(state, "netcnnlip", 0, x, stride=(1, 2, 2))
    x = functional.max_pool3d(x, (1, 3, 3), (1, 2, 2))
    x = _layer(state, "netcnnlip", 4, x, stride=(1, 2, 2), padding=(0, 1, 1))
    x = functional.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for place in (8, 11, 14):
        x = _layer(state, "netcnnlip", place, x, padding=(0, 1, 1))
    x = functional.max_pool3d(x, (1, 3, 3), (1, 2, 2))
    x = _layer(state, "netcnnlip", 18, x).reshape(1, -1)
    return _layer(state, "netfclip", 3, _layer(state, "netfclip", 0, x))[0]


def slow_sound(state: dict[str, Any], window: np.ndarray) -> Any:
    """Embedding [1024] of one window, cepstra [20, 13]."""
    x = torch.tensor(window.T.astype(np.float32))[None, None]
    x = _layer(state, "netcnnaud", 0, x, padding=1)
    x = functional.max_pool2d(_layer(state, "netcnnaud", 4, x, padding=1), (3, 3), (1, 2))
    for place in (8, 11, 14):
        x = _layer(state, "netcnnaud", place, x, padding=1)
    x = _layer(state, "netcnnaud", 18, functional.max_pool2d(x, (3, 3), (2, 2))).reshape(1, -1)
    return _layer(state, "netfcaud", 3, _layer(state, "netfcaud", 0, x))[0]


def slow_score(mouth: list[Any], sound: list[Any]) -> tuple[float, float, int]:
    """Sync-C, Sync-D and offset, one window and one shift at a time."""
    means = []
    for shift in range(-15, 16):
        total = 0.0
        for w, here in enumerate(mouth):
            there = sound[w + shift] if 0 <= w + shift < len(sound) else torch.zeros(len(here))
            total += math.sqrt(
                sum((float(a) - float(b) + 1e-6) ** 2 for a, b in zip(here, there, strict=True))
            )
        means.append(total / len(mouth))
    least = means.index(min(means))
    return sorted(means)[15] - means[least], means[least], 15 - least


# --------------------------------------------------------------------------- tests


def test_the_score_is_that_of_the_slow_computation(
    model: SyncNet, state: dict[str, Any], footage: tuple[np.ndarray, np.ndarray]
) -> None:
    faces, samples = footage
    cepstra = mfcc(samples)
    # 11 frames hold 7 windows, of which the published evaluation leaves the last out.
    mouth = [slow_mouth(state, faces[w : w + 5]) for w in range(6)]
    sound = [slow_sound(state, cepstra[4 * w : 4 * w + 20]) for w in range(6)]
    embedded = model.embed(faces, samples)
    assert embedded is not None
    assert embedded[0].shape == embedded[1].shape == (6, 1024)
    assert np.abs(embedded[0] - torch.stack(mouth).numpy()).max() < 1e-3
    assert np.abs(embedded[1] - torch.stack(sound).numpy()).max() < 1e-3
    assert np.abs(embedded[0][0] - embedded[0][5]).max() > 0.1
    expected = slow_score(mouth, sound)
    found = model.score(faces, samples)
    assert found is not None
    assert found[:2] == pytest.approx(expected[:2], abs=2e-3)
    assert found.offset_frames == expected[2]


def test_chunks_and_rates_do_not_change_the_score(
    model: SyncNet, footage: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    faces, samples = footage
    whole = model.embed(faces, samples)
    monkeypatch.setattr(syncnet, "_CHUNK_WINDOWS", 4)
    parts = model.embed(np.repeat(faces, 2, axis=0), samples, fps=50.0)
    assert whole is not None
    assert parts is not None
    for one, other in zip(whole, parts, strict=True):
        assert np.abs(one - other).max() < 1e-3


def test_too_short_a_clip_has_no_score(model: SyncNet, footage: tuple[np.ndarray, np.ndarray]) -> None:
    faces, samples = footage
    assert model.score(faces[:5], samples) is None
    assert model.score(faces, samples[: 6 * 640 - 1]) is None
    assert model.score(faces[:6], samples[: 6 * 640]) is not None


@pytest.mark.parametrize("late_frames", [-9, -4, 0, 1, 9])
def test_the_offset_is_the_delay_that_the_sound_needs(model: SyncNet, late_frames: int) -> None:
    """What the mouth should hear is what the sound gives before it is moved."""
    rng = np.random.default_rng(3)
    samples = (rng.normal(0, 0.1, 60 * 640) * np.repeat(rng.uniform(0, 2, 60), 640)).astype(np.float32)
    moved = np.roll(samples, late_frames * 640)
    mouth = sound_embeddings(model, samples)
    found = compare(mouth, sound_embeddings(model, moved))
    assert found.offset_frames == -late_frames
    delayed = np.roll(moved, found.offset_frames * 640)
    assert compare(mouth, sound_embeddings(model, delayed)).offset_frames == 0


def sound_embeddings(model: SyncNet, samples: np.ndarray) -> np.ndarray:
    cepstra = mfcc(samples).astype(np.float32)
    with inference():
        return model._embed_audio(cepstra, 0, len(samples) // 640 - 5)


def test_confidence_is_the_median_less_the_least() -> None:
    """One number per window, so that every distance can be written down."""
    mouth, sound = np.full((40, 1), 10, np.float32), np.full((40, 1), 7, np.float32)
    found = compare(mouth, sound)
    # At shift s, |s| windows of 40 face silence at 10, the others sound at 3: the median |s| is 8.
    assert found.sync_d == pytest.approx(3, abs=1e-5)
    assert found.sync_c == pytest.approx((8 * 10 + 32 * 3) / 40 - 3, abs=1e-5)
    assert found.offset_frames == 0


def test_weights_of_another_layout_are_refused(state: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "syncnet_v2.model"
    altered = {key.replace("netfclip.3", "netfclip.4"): value for key, value in state.items()}
    torch.save(altered, path)
    with pytest.raises(ModelError) as caught:
        SyncNet(path)
    assert str(caught.value) == (
        f"syncnet_v2: {path}: is not this model's state dict: missing: netfclip.3.bias, netfclip.3.weight; "
        "unexpected: netfclip.4.bias, netfclip.4.weight"
    )
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ModelError, match="expected a torch state dict: Weights only load failed"):
        SyncNet(path)


def test_without_weights_there_is_no_sync_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path))
    monkeypatch.delenv("TALKFORGE_MODELS", raising=False)
    with pytest.raises(ModelError, match=r"syncnet_v2: no package carries syncnet_v2\.model: put it"):
        registry.weights("syncnet_v2")
    (tmp_path / "syncnet_v2.model").write_bytes(b"<html>")
    with pytest.raises(ModelError, match=r"expected sha256 961e8696.*\(an HTML page\): not used"):
        registry.weights("syncnet_v2")
