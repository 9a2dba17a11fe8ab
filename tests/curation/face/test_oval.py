"""The face oval: where it lies, when it is there, and what is inside of it."""

from __future__ import annotations

import numpy as np
from mediapipe.tasks.python.vision import FaceLandmarksConnections

from talkforge.curation.face import oval
from talkforge.curation.face.lips import rasterise_all
from talkforge.schemas.arrays import OVAL_POINTS


def moving_circle(frames: int) -> np.ndarray:
    """Landmarks [F, 478, 3] whose oval is a circle of radius 20 px that moves 3 px a frame."""
    points = np.zeros((frames, 478, 3), np.float32)
    angles = 2 * np.pi * np.arange(OVAL_POINTS) / OVAL_POINTS
    points[:, oval.FACE_OVAL, 0] = 40 + 20 * np.sin(angles) + 3 * np.arange(frames)[:, None]
    points[:, oval.FACE_OVAL, 1] = 50 - 20 * np.cos(angles)
    return points


def test_the_oval_is_one_closed_way_through_the_landmarks_that_mediapipe_connects() -> None:
    edges = {(edge.start, edge.end) for edge in FaceLandmarksConnections.FACE_LANDMARKS_FACE_OVAL}
    assert edges == set(zip(oval.FACE_OVAL, (*oval.FACE_OVAL[1:], oval.FACE_OVAL[0]), strict=True))
    assert len(oval.FACE_OVAL) == OVAL_POINTS


def test_short_gaps_are_interpolated_and_long_ones_are_missing() -> None:
    points = moving_circle(20)
    wanted = points[:, oval.FACE_OVAL, :2].copy()
    points[:2] = points[5:9] = points[12:17] = np.nan
    contour, valid = oval.trace(points)
    assert valid.tolist() == [0] * 2 + [2] * 3 + [1] * 4 + [2] * 3 + [0] * 5 + [2] * 3
    np.testing.assert_allclose(contour[2:12], wanted[2:12], atol=1e-4)
    assert np.isnan(contour[valid == 0]).all()


def test_the_mask_is_the_inside_of_the_oval() -> None:
    contour, _ = oval.trace(moving_circle(3))
    masks = rasterise_all(contour, 100, 120)
    area = OVAL_POINTS / 2 * 20**2 * np.sin(2 * np.pi / OVAL_POINTS)  # of a regular polygon
    for k, mask in enumerate(masks):
        assert abs(mask.sum() - area) < 0.02 * area
        y, x = np.nonzero(mask)
        np.testing.assert_allclose((x.mean(), y.mean()), (40 + 3 * k, 50), atol=0.1)
    contour[1] = np.nan
    assert rasterise_all(contour, 100, 120).any((1, 2)).tolist() == [True, False, True]
