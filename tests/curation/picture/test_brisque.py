"""The published regression, and images that are degraded step by step."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from examples.portraits import portrait
from talkforge.curation.face.landmarks import FaceLandmarker
from talkforge.curation.media import read_frames
from talkforge.curation.media.probe import content_hash, probe
from talkforge.curation.picture import brisque
from talkforge.curation.picture.brisque import Brisque
from talkforge.curation.weights import registry
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Input
from tests.conftest import RealClip

TOY = "svm_type epsilon_svr\nkernel_type rbf\ngamma 0.5\nnr_class 2\ntotal_sv 2\nrho -7\nSV\n"


@pytest.fixture(scope="module")
def judge() -> Brisque:
    try:
        return Brisque(registry.weights("brisque"))
    except ModelError as error:
        pytest.skip(str(error))


def portrait_face() -> np.ndarray:
    head = portrait("collins")
    (x0, y0), (x1, y1) = head.face.box.round().astype(int)
    return head.picture[y0 - 20 : y1 + 20, x0 - 20 : x1 + 20]


def noisy(rgb: np.ndarray, level: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, level, rgb.shape)
    return np.clip(rgb + noise, 0, 255).astype(np.uint8)


def compressed(rgb: np.ndarray, quality: int) -> np.ndarray:
    data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (np.linspace(0.1, 0.9, 36), 48.79656205),
        (np.linspace(0.9, 0.1, 36), 95.19620222),
        (np.full(36, 0.3), -13.12595911),
    ],
)
def test_scores_are_those_of_libsvm(judge: Brisque, places: np.ndarray, expected: float) -> None:
    """LIBSVM 3.37 on the same file, for features at these places of their ranges."""
    features = brisque._LEAST + (brisque._MOST - brisque._LEAST) * places
    assert judge.regress(features) == pytest.approx(expected, abs=1e-6)


def test_the_regression_is_a_sum_of_radial_kernels(tmp_path: Path) -> None:
    path = tmp_path / "toy.txt"
    path.write_text(f"{TOY}10 1:1 \n-4 36:-1 \n")
    features = (brisque._LEAST + brisque._MOST) / 2
    assert Brisque(path).regress(features) == pytest.approx(6 * np.exp(-0.5) + 7)


@pytest.mark.parametrize(
    "text", ["", "<html>", TOY.replace("rbf", "linear") + "1 1:1\n", TOY + "1 37:1\n", TOY + "1 1:x\n"]
)
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.txt"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"brisque: \S+other\.txt: expected an epsilon_svr with rbf"):
        Brisque(path)


def test_every_degradation_raises_the_score_and_more_of_it_raises_it_more(judge: Brisque) -> None:
    face = portrait_face()
    ladders = {
        "blur": [cv2.GaussianBlur(face, (0, 0), sigma) for sigma in (1.0, 2.0)],
        "noise": [noisy(face, level) for level in (15, 40)],
        "compression": [compressed(face, quality) for quality in (20, 6)],
    }
    clean = judge.score(face)
    assert clean is not None
    for name, rungs in ladders.items():
        slight, strong = (judge.score(rung) for rung in rungs)
        assert slight is not None and strong is not None
        assert clean + 5 < slight < strong - 5, name


def test_flat_or_tiny_images_have_no_score(judge: Brisque) -> None:
    assert judge.score(np.full((64, 64, 3), 90, np.uint8)) is None
    assert judge.score(portrait_face()[:31, :64]) is None


def test_a_good_clip_scores_below_a_poor_one(judge: Brisque, real_clip: RealClip) -> None:
    landmarker = FaceLandmarker(registry.weights("face_landmarker"))
    scores = {}
    for name in ("st_katie.mp4", "vr_1.mp4"):
        path = real_clip(name)
        video = probe(path, Input(uri=name), content_hash(path))
        rgb = next(read_frames(path, video, 1.0, 1.1)).rgb(512, 512)
        found = landmarker.detect(rgb)
        assert found is not None
        score = judge.score(brisque.face_square(rgb, found.points))
        assert score is not None
        scores[name] = score
    assert scores["st_katie.mp4"] < 20 < 30 < scores["vr_1.mp4"]


def test_the_face_is_cut_out_with_a_margin_and_at_the_edge_what_there_is() -> None:
    rgb = np.arange(100 * 80, dtype=np.uint8).reshape(100, 80, 1).repeat(3, 2)
    points = np.zeros((478, 3), np.float32)
    points[:, 0], points[:, 1] = np.linspace(30, 50, 478), np.linspace(30, 70, 478)
    assert np.array_equal(brisque.face_square(rgb, points), rgb[24:76, 14:66])
    points[:, 0] -= 30
    assert np.array_equal(brisque.face_square(rgb, points), rgb[24:76, 0:36])
