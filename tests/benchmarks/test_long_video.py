"""Drift and seams of videos whose drift and seams are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.long_video import borders, drift, embedding, frame_points, identity, seams, strip
from examples.portraits import frame
from talkforge.curation.face.identity import load_embedder
from talkforge.schemas.config import IdentityConfig
from talkforge.training.generate.long_video import following, overlapping
from talkforge.training.generate.portrait import faces, portrait_of


def still(frames: int) -> np.ndarray:
    """Noise that stands still."""
    image = np.random.default_rng(0).integers(60, 180, (16, 16, 3)).astype(np.uint8)
    return np.repeat(image[None], frames, axis=0)


def test_what_stands_still_does_not_drift() -> None:
    found = drift(still(100), 10)
    assert (found.colour, found.last_colour) == (0, 0)
    assert found.sharpness == pytest.approx(1) and found.likeness == pytest.approx(1)


def test_a_video_that_darkens_and_blurs_drifts() -> None:
    rgb = still(100).astype(float)
    fade = np.linspace(0, 1, 100)[:, None, None, None]
    mean = rgb.mean(axis=(1, 2), keepdims=True)
    faded = ((1 - fade / 2) * rgb + fade / 2 * mean - 20 * fade).round().astype(np.uint8)
    found = drift(faded, 10)
    assert found.last_colour == pytest.approx(10, abs=1) and found.colour == pytest.approx(14, abs=2)
    # The mean of (1 - x / 2)^2 for x in 0.5..1 over that for x in 0..0.5.
    assert found.sharpness == pytest.approx(0.3958 / 0.7708, abs=0.02)


def test_the_borders_of_windows_are_found() -> None:
    assert borders(overlapping(9, 6, 2), 9) == [12, 20]  # latent frames 4 and 6 begin after these
    assert borders(following(9, 6, 2), 9) == [12, 20]
    assert borders(overlapping(4, 6, 2), 4) == []


def test_a_seam_stands_out() -> None:
    rgb = still(41)
    rgb[21:] += 7
    found = seams(rgb, [20])
    assert found.at_borders == pytest.approx((7, 7), abs=0.01) and found.elsewhere == (0, 0)
    assert strip([rgb, rgb], 4).shape == (48, 96, 3)


def test_a_face_that_becomes_another_loses_its_identity() -> None:
    pytest.importorskip("dlib", reason="the extra dlib is not installed")
    embedder = load_embedder(IdentityConfig(model="dlib"))
    assert embedder is not None
    pictures = [frame(name, 192, 192).picture for name in ("collins", "hopper")]
    portraits = [portrait_of(picture, faces(picture)) for picture in pictures]
    own, other = (portrait.framed([(64, 64)]) for portrait in portraits)
    points = [frame_points(portrait, 64) for portrait in portraits]
    assert all(one.min() > 0 and one.max() < 64 for one in points)
    stranger = embedding(other[None], points[1], embedder)
    stays = np.repeat(own[None], 40, axis=0)
    same, far = identity(stays, 10, points[0], stranger, embedder)
    assert same == pytest.approx(1, abs=1e-4) and far < 0.95
    changes = np.concatenate([stays[:20], np.repeat(other[None], 20, axis=0)])
    changed, near = identity(changes, 10, points[1], stranger, embedder)
    assert near == pytest.approx(1, abs=1e-4) and changed < 0.95
