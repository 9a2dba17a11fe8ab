"""Detection on real and empty frames, and linking of synthetic samples with known truth."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from talkforge.curation.face import detect
from talkforge.schemas.arrays import Detections
from talkforge.schemas.config import ScanConfig
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Scene
from tests.conftest import RealClip


@pytest.fixture(scope="module")
def detector() -> detect.FaceDetector:
    try:
        return detect.load_detector(ScanConfig())
    except ModelError as error:
        pytest.skip(f"CenterFace's weights are not available: {error}")


def first_frame(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def scene(start_s: float, end_s: float, index: int = 0) -> Scene:
    return Scene(video_id="0" * 12, index=index, start_s=start_s, end_s=end_s, opened_by="start")


def sample(time_s: float, *centres: tuple[float, float, float]) -> Detections:
    """Square faces given by centre and size."""
    boxes = [[x - size / 2, y - size / 2, x + size / 2, y + size / 2] for x, y, size in centres]
    scores = [0.9] * len(centres)
    return Detections(time_s, np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32))


# --- the decoding of CenterFace, on a model that answers what it is told ---------------------


def told_model(path: Path, heat: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> Path:
    """An ONNX model that ignores its input and gives these maps; sizes frozen as in the real one."""
    maps = {"heat": heat, "scale": scale, "offset": offset}
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array.astype(np.float32)))
        for name, array in maps.items()
    ]
    graph = helper.make_graph(
        nodes,
        "told",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [10, 3, 32, 32])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [10, a.shape[1], 8, 8])
            for name, a in maps.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


def test_centerface_decodes_its_maps(tmp_path: Path) -> None:
    heat = np.zeros((1, 1, 16, 24))
    scale, offset = np.zeros((1, 2, 16, 24)), np.zeros((1, 2, 16, 24))
    heat[0, 0, 5, 10] = 0.75
    scale[0, :, 5, 10] = np.log([6, 4])  # height 24, width 16 pixels
    offset[0, :, 5, 10] = 0.25, 0.5
    heat[0, 0, 5, 11] = 0.7  # the same face, seen from the next cell: suppressed
    scale[0, :, 5, 11] = np.log([6, 4])
    offset[0, :, 5, 11] = 0.25, -0.5
    heat[0, 0, 15, 0] = 0.95  # reaches over the corner: cut off at the picture's edge
    scale[0, :, 15, 0] = np.log([8, 8])
    heat[0, 0, 0, 20] = 0.49  # not certain enough
    detector = detect.CenterFace(told_model(tmp_path / "told.onnx", heat, scale, offset), 0.5)
    boxes, scores = detector.detect(np.zeros((62, 90, 3), np.uint8))
    assert scores.tolist() == pytest.approx([0.95, 0.75])
    assert boxes[0].tolist() == pytest.approx([0, 46, 18, 62])
    # centre: x (10 + 0.5 + 0.5) * 4 = 44, y (5 + 0.25 + 0.5) * 4 = 23
    assert boxes[1].tolist() == pytest.approx([36, 11, 52, 35], abs=1e-4)


def test_centerface_finds_one_speaker(detector: detect.FaceDetector, real_clip: RealClip) -> None:
    rgb = first_frame(real_clip("grid_bbaf2n.mpg"))
    boxes, scores = detector.detect(rgb)
    assert len(boxes) == 1
    assert scores[0] > 0.8
    x0, y0, x1, y1 = boxes[0]
    assert 100 < x1 - x0 < 150
    assert 125 < y1 - y0 < 175
    assert abs((x0 + x1) / 2 - 180) < 30  # the speaker sits in the middle of 360 pixels


def test_centerface_box_follows_the_face(detector: detect.FaceDetector, real_clip: RealClip) -> None:
    rgb = first_frame(real_clip("grid_bbaf2n.mpg"))
    padded = np.full((321, 461, 3), 128, np.uint8)
    padded[33:, 101:] = rgb
    (before,), _ = detector.detect(rgb)
    (after,), _ = detector.detect(padded)
    assert after - before == pytest.approx([101, 33, 101, 33], abs=6)


def test_centerface_finds_two_side_by_side(detector: detect.FaceDetector, real_clip: RealClip) -> None:
    rgb = first_frame(real_clip("grid_bbaf2n.mpg"))
    boxes, _ = detector.detect(np.concatenate([rgb, rgb[:, ::-1]], axis=1))
    assert len(boxes) == 2


def test_centerface_finds_nobody_in_noise(detector: detect.FaceDetector) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    boxes, scores = detector.detect(cv2.GaussianBlur(noise, (0, 0), 3))
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_detecting_twice_gives_the_same_bytes(detector: detect.FaceDetector, real_clip: RealClip) -> None:
    rgb = first_frame(real_clip("grid_brbk7n.mpg"))
    again = detect.load_detector(ScanConfig()).detect(rgb)
    for a, b in zip(detector.detect(rgb), again, strict=True):
        assert a.tobytes() == b.tobytes()


# --- SCRFD, on a small model of its kind --------------------------------------------------------


def told_scrfd(path: Path) -> Path:
    """Six maps of a 64 x 64 input as SCRFD has them: scores and distances at strides 8, 16, 32."""
    nodes, outputs = [], []
    for kind, channels in (("score", 1), ("box", 4)):
        for stride in (8, 16, 32):
            array = np.zeros(((64 // stride) ** 2 * 2, channels), np.float32)
            if stride == 16:
                # Anchor point x = 16, y = 32; distances left, top, right, bottom in strides.
                array[2 * (2 * 4 + 1)] = 0.8 if kind == "score" else [0.5, 1, 1, 1.5]
            name = f"{kind}{stride}"
            nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, channels]))
    picture = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, None, None])
    graph = helper.make_graph(nodes, "told", [picture], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


def test_scrfd_gives_the_box_that_its_maps_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = told_scrfd(tmp_path / "det_10g.onnx")
    monkeypatch.setattr(detect.registry, "weights", {"scrfd": path}.__getitem__)
    detector = detect.load_detector(ScanConfig(detector="scrfd"))
    boxes, scores = detector.detect(np.zeros((64, 64, 3), np.uint8))
    assert detector.name == "scrfd"
    assert scores.tolist() == pytest.approx([0.8])
    assert boxes.tolist() == [[8, 16, 32, 56]]


def test_scrfd_below_the_score_finds_nothing(tmp_path: Path) -> None:
    detector = detect.Scrfd(told_scrfd(tmp_path / "det_10g.onnx"), 0.81)
    boxes, scores = detector.detect(np.zeros((64, 64, 3), np.uint8))
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


# --- linking ----------------------------------------------------------------------------------


def test_two_people_keep_their_numbers() -> None:
    samples = [sample(0.5 * i, (300 - 10 * i, 100, 80), (100 + 10 * i, 100, 90)) for i in range(6)]
    left, right = detect.link(samples, [scene(0, 3)], "test")
    assert (left.track, right.track) == (0, 1)
    assert left.boxes[:, 0].tolist() == [55, 65, 75, 85, 95, 105]
    assert right.boxes[:, 0].tolist() == [260, 250, 240, 230, 220, 210]
    assert (left.start_s, left.end_s) == (0, 3)
    assert left.detector == "test"


def test_assignment_is_best_overall_not_greedy() -> None:
    """The left face moves to where it is nearest to the right one's old place."""
    samples = [sample(0, (100, 100, 80), (170, 100, 80)), sample(0.5, (160, 100, 80), (230, 100, 80))]
    left, right = detect.link(samples, [scene(0, 1)], "test")
    assert left.boxes[:, 0].tolist() == [60, 120]
    assert right.boxes[:, 0].tolist() == [130, 190]


def test_a_gap_of_two_samples_is_bridged_and_of_three_is_not() -> None:
    face = (100.0, 100.0, 80.0)
    bridged = [sample(0, face), sample(0.5), sample(1), sample(1.5, face)]
    (track,) = detect.link(bridged, [scene(0, 2)], "test")
    assert track.times_s.tolist() == [0, 1.5]
    broken = [sample(0, face), sample(0.5), sample(1), sample(1.5), sample(2, face)]
    first, second = detect.link(broken, [scene(0, 2.5)], "test")
    assert (first.start_s, first.end_s) == (0, 0.25)
    assert (second.start_s, second.end_s) == (1.75, 2.5)


def test_a_single_sample_is_a_track_half_way_to_its_neighbours() -> None:
    samples = [sample(1.0), sample(1.5, (50, 50, 40)), sample(2.1)]
    (track,) = detect.link(samples, [scene(1, 2.5)], "test")
    assert (track.start_s, track.end_s) == pytest.approx((1.25, 1.8))


def test_no_track_crosses_a_cut() -> None:
    face = (100.0, 100.0, 80.0)
    samples = [sample(t, face) for t in (0.0, 0.5, 1.0, 1.5)]
    first, second = detect.link(samples, [scene(0, 0.8), scene(0.8, 2, index=1)], "test")
    assert (first.scene, first.start_s, first.end_s) == (0, 0, 0.8)
    assert (second.scene, second.start_s, second.end_s) == (1, 0.8, 2)
    assert (first.track, second.track) == (0, 1)


@pytest.mark.parametrize("other", [(190.0, 100.0, 80.0), (100.0, 100.0, 140.0)])
def test_a_face_too_far_or_too_large_is_another(other: tuple[float, float, float]) -> None:
    tracks = detect.link([sample(0, (100, 100, 80)), sample(0.5, other)], [scene(0, 1)], "test")
    assert [t.times_s.tolist() for t in tracks] == [[0], [0.5]]


def test_every_detection_is_in_exactly_one_track() -> None:
    rng = np.random.default_rng(7)
    samples = [
        sample(0.5 * i, *(tuple(rng.uniform([0, 0, 30], [600, 300, 90])) for _ in range(rng.integers(0, 5))))
        for i in range(40)
    ]
    tracks = detect.link(samples, [scene(0, 7.3), scene(7.3, 20, index=1)], "test")
    linked = sorted(
        (t, *box) for track in tracks for t, box in zip(track.times_s, track.boxes.tolist(), strict=True)
    )
    assert linked == sorted((d.time_s, *box) for d in samples for box in d.boxes.tolist())
    assert [t.track for t in tracks] == list(range(len(tracks)))
