from __future__ import annotations

import zipfile

import cv2
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from talkforge.curation.weights import blaze
from talkforge.curation.weights.blaze import BlazeDetector, Region, TfliteNetwork
from talkforge.schemas.errors import ModelError
from tests.conftest import Packaged


def mesh(packaged: Packaged) -> bytes:
    with zipfile.ZipFile(packaged("face_landmarker")) as bundle:
        return bundle.read("face_landmarks_detector.tflite")


@pytest.mark.parametrize("rounded", [False, True])
def test_a_region_is_cut_and_mapped_back(rounded: bool) -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:24, 50:54] = 255  # its middle lies at (52, 22), counted from the edge
    for angle_deg in (0, 30, 90, -120):
        region = Region(45, 25, 40, 40, np.radians(angle_deg))
        bright = region.cut(image, 160, border=cv2.BORDER_CONSTANT, rounded=rounded)[..., 0].astype(float)
        y, x = (np.indices(bright.shape) * bright).sum((1, 2)) / bright.sum()
        (found,) = region.to_image(np.array([[x, y]], np.float32) / 160)
        np.testing.assert_allclose(found, (52, 22), atol=0.6)  # half a pixel: MediaPipe's cut has its origin


def test_a_turned_region_has_its_own_axes_and_sides() -> None:
    region = Region(10, 20, 8, 4, np.radians(90))  # clockwise: its x axis points down
    corners = region.to_image(np.array([[0, 0], [1, 0], [1, 1], [0.5, 0.5]], np.float32))
    np.testing.assert_allclose(corners, [(12, 16), (12, 24), (8, 24), (10, 20)], atol=1e-5)


def test_outside_of_the_image_is_what_the_border_says() -> None:
    image = np.full((16, 16, 3), 90, np.uint8)
    region = Region(16, 8, 16, 16)  # its right half lies outside
    black = region.cut(image, 16, border=cv2.BORDER_CONSTANT)
    assert (black[:, :7] == 90).all()
    assert (black[:, 9:] == 0).all()
    assert (region.cut(image, 16, border=cv2.BORDER_REPLICATE) == 90).all()


def test_overlapping_detections_are_their_mean_by_score_and_others_stay() -> None:
    def box(x: float, keypoint: float) -> list[list[float]]:
        return [[x, 0], [x + 10, 10], [keypoint, 5]]

    points = np.array([box(50, 55), box(0, 4), box(2, 8)], np.float32)
    first, second = blaze._merged(points, np.array([0.6, 0.9, 0.6]), 5)
    np.testing.assert_allclose(first, [[0.8, 0], [10.8, 10], [5.6, 5]], rtol=1e-6)
    np.testing.assert_allclose(second, points[0])
    assert len(blaze._merged(points, np.array([0.6, 0.9, 0.6]), 1)) == 1


class _Fixed:
    """A network with one answer for every image."""

    input_shape = (1, 16, 16, 3)

    def __init__(self, logit: float) -> None:
        self.boxes = np.zeros((1, 5, 8), np.float32)
        self.boxes[0, 4] = [0, 0, 8, 4, 2, 0, 0, 1]  # centre, size and two keypoints, in pixels of the input
        self.logits = np.full((1, 5, 1), -50, np.float32)
        self.logits[0, 4] = logit

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        assert batch.shape == self.input_shape
        assert -1 <= batch.min() <= batch.max() <= 1
        return [self.boxes, self.logits]


def test_a_detection_lies_at_its_anchor_in_the_image_without_the_borders() -> None:
    # Anchors: four cells of 8 px, then one of 16 px, whose centre is that of the input.
    found = BlazeDetector(_Fixed(3.0), {8: 1, 16: 1}).detect(np.zeros((40, 80, 3), np.uint8), 3)  # type: ignore[arg-type]
    np.testing.assert_allclose(found[0].box, [20, 10, 60, 30])
    np.testing.assert_allclose(found[0].keypoints, [[50, 20], [40, 25]])
    none = BlazeDetector(_Fixed(-0.1), {8: 1, 16: 1}).detect(np.zeros((40, 80, 3), np.uint8), 3)  # type: ignore[arg-type]
    assert none == []


def test_what_is_cut_off_changes_nothing_in_the_rest(packaged: Packaged) -> None:
    content, points, presence, tongue = mesh(packaged), (1, 1, 1, 1434), (1, 1, 1, 1), (1, 1)
    image = np.random.default_rng(0).random((1, 256, 256, 3)).astype(np.float32)
    whole = TfliteNetwork(content, "mesh", (points, presence, tongue))(image)
    less = TfliteNetwork(content, "mesh", (presence, points))(image)
    counts = [
        schema.Model.GetRootAsModel(tflite, 0).Subgraphs(0).OperatorsLength()
        for tflite in (content, blaze._pruned(content, (points, presence)))
    ]
    assert counts[1] == counts[0] - 5
    np.testing.assert_array_equal(less[0], whole[1])
    np.testing.assert_array_equal(less[1], whole[0])


def test_a_file_of_another_kind_is_named(packaged: Packaged) -> None:
    with pytest.raises(ModelError, match=r"mesh: is not a TFLite model that runs"):
        TfliteNetwork(b"not a model at all, but long enough to look at", "mesh", ((1, 1),))
    with pytest.raises(ModelError, match=r"mesh: expected outputs of shapes \[\(1, 7\)\], found"):
        TfliteNetwork(mesh(packaged), "mesh", ((1, 1), (1, 7)))
