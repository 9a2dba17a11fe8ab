"""DWPose with a network of the published layout and a known output: the positions of coloured blobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from talkforge.curation.body import motion
from talkforge.curation.body.dwpose import DwPose
from talkforge.curation.body.joints import JOINTS
from talkforge.curation.body.pose import PoseTracer, load_estimator
from talkforge.curation.weights import registry
from talkforge.pipeline.needs import gather
from talkforge.schemas.arrays import Bytes
from talkforge.schemas.config import MeasureConfig, MotionConfig
from talkforge.schemas.errors import ModelError
from tests.records import clip_of

RED, GREEN, BLUE, NOTHING = range(4)
BLOB_OF = [RED] * 5 + [GREEN] * 12 + [NOTHING] * 6 + [NOTHING] * 68 + [BLUE] * 21 + [NOTHING] * 21
"""Which blob each of COCO-WholeBody's keypoints lies on: the head, the body, the left hand."""

HEAD, BODY, LEFT_HAND, UNSEEN = slice(0, 5), slice(5, 17), slice(23, 44), [*range(17, 23), *range(44, 65)]
"""The same in our order."""

FACE_PX = 40


def blob_network(path: Path, height_px: int = 384, width_px: int = 288, num_points: int = 133) -> Path:
    """Answers for each keypoint where its colour is brightest in its input, two bins a pixel, with
    about 0.9 for full brightness; nothing is below zero everywhere."""
    arrays = {
        "brightest": np.array([0.4, 0.38, 0.34], np.float32).reshape(1, 3, 1, 1),
        "nothing": np.array([[[0.0]]], np.float32),
        "blobs": np.array(BLOB_OF[:num_points], np.int64),
        "twice": np.array([1, 1, 2], np.float32),
        "no_roi": np.zeros(0, np.float32),
    }
    nodes = [helper.make_node("Mul", ["input", "brightest"], ["levels"])]
    for axis, name in ((2, "simcc_x"), (3, "simcc_y")):
        arrays[f"axis_{name}"] = np.array([axis], np.int64)
        nodes += [
            helper.make_node("ReduceMax", ["levels", f"axis_{name}"], [f"{name}_max"], keepdims=0),
            helper.make_node(
                "Resize", [f"{name}_max", "no_roi", "twice"], [f"{name}_fine"],
                mode="linear", coordinate_transformation_mode="asymmetric",
            ),
            helper.make_node("ReduceMin", [f"{name}_fine"], [f"{name}_least"], keepdims=1),
            helper.make_node("Mul", [f"{name}_fine", "nothing"], [f"{name}_zeros"]),
            helper.make_node("Slice", [f"{name}_zeros", "from", "to", "along"], [f"{name}_zero"]),
            helper.make_node("Add", [f"{name}_zero", f"{name}_least"], [f"{name}_dark"]),
            helper.make_node("Concat", [f"{name}_fine", f"{name}_dark"], [f"{name}_all"], axis=1),
            helper.make_node("Gather", [f"{name}_all", "blobs"], [name], axis=1),
        ]  # fmt: skip
    arrays |= {"from": np.array([0]), "to": np.array([1]), "along": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "blobs",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, height_px, width_px])],
        [
            helper.make_tensor_value_info("simcc_x", TensorProto.FLOAT, ["batch", num_points, "bins_x"]),
            helper.make_tensor_value_info("simcc_y", TensorProto.FLOAT, ["batch", num_points, "bins_y"]),
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DwPose:
    return DwPose(blob_network(tmp_path_factory.mktemp("network") / "blobs.onnx"))


def picture(width: int, height: int, **blobs: tuple[float, float]) -> Bytes:
    """Black, with a blob of each colour at its place."""
    y, x = np.mgrid[:height, :width]
    rgb = np.zeros((height, width, 3))
    for name, (at_x, at_y) in blobs.items():
        rgb[..., ("red", "green", "blue").index(name)] = 255 * np.exp(
            -((x - at_x) ** 2 + (y - at_y) ** 2) / (2 * 5.0**2)
        )
    return rgb.round().astype(np.uint8)


def face_at(x: float, y: float) -> np.ndarray:
    half = FACE_PX / 2
    return np.array([x - half, y - half, x + half, y + half], np.float32)


@pytest.mark.parametrize(
    ("size", "head", "body", "hand"),
    [
        ((640, 480), (320.0, 120.0), (262.0, 200.0), (371.0, 287.0)),  # the region within the picture
        ((640, 480), (41.0, 32.0), (12.0, 118.0), (97.0, 205.0)),  # cut off at the left and the top
        ((200, 500), (150.0, 300.0), (110.0, 411.0), (190.0, 480.0)),  # at the right and the foot
    ],
)
def test_points_come_back_to_the_pixel_they_were_seen_at(
    model: DwPose, size: tuple[int, int], head: tuple[float, float], body: tuple[float, float],
    hand: tuple[float, float],
) -> None:  # fmt: skip
    tracer = PoseTracer(model, clip_of(1, *size), 5)
    tracer.push(0, picture(*size, red=head, green=body, blue=hand), face_at(*head))
    (joints,) = tracer.finish()
    for joint, at in ((HEAD, head), (BODY, body), (LEFT_HAND, hand)):
        np.testing.assert_allclose(joints[joint, :2], np.broadcast_to(at, joints[joint, :2].shape), atol=1)
        np.testing.assert_allclose(joints[joint, 2], 0.88, atol=0.06)
    assert np.isnan(joints[UNSEEN]).all()


def test_a_faint_joint_is_not_seen(model: DwPose) -> None:
    rgb = picture(640, 480, red=(320, 120), green=(262, 200))
    rgb[..., 1] //= 2  # about 0.1
    tracer = PoseTracer(model, clip_of(1, 640, 480), 5)
    tracer.push(0, rgb, face_at(320, 120))
    (joints,) = tracer.finish()
    assert np.isfinite(joints[HEAD]).all()
    assert np.isnan(joints[BODY]).all()


def test_a_pose_whose_head_is_not_at_the_face_is_not_the_persons(model: DwPose) -> None:
    tracer = PoseTracer(model, clip_of(1, 640, 480), 5)
    tracer.push(0, picture(640, 480, red=(380, 120), green=(320, 200)), face_at(320, 120))
    assert np.isnan(tracer.finish()).all()


def test_a_swinging_body_has_its_variance(model: DwPose) -> None:
    """Ears stand still; shoulders, elbows, wrists and hips swing together, as one blob."""
    swing = [round(20 * np.sin(2 * np.pi * k / 10)) for k in range(20)]
    tracer = PoseTracer(model, clip_of(20, 640, 480), 1)
    for k, x in enumerate(swing):
        tracer.push(k, picture(640, 480, red=(320, 120), green=(320 + x, 220)), face_at(320, 120))
    # All in one place: the width of the shoulders is its least, 1 px, and 8 of 10 joints move.
    found = motion.body_motion(tracer.finish(), tracer.camera())[0]
    assert found == pytest.approx(0.8 * np.var(swing), rel=0.05)


def test_the_same_picture_gives_the_same_bytes(model: DwPose) -> None:
    rgb = np.random.default_rng(7).integers(0, 255, (480, 640, 3)).astype(np.uint8)
    first, second = (model.detect(rgb, (100, 50, 500, 400)).tobytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"height_px": 256, "width_px": 192}, r"expected input \[3, 384, 288\], found \[3, 256, 192\]$"),
        (
            {"num_points": 17},
            r"expected outputs .\(1, 133, 576\), \(1, 133, 768\)\], found \[\(1, 17, 576\), \(1, 17, 768\)\]",
        ),
    ],
)
def test_another_network_is_refused(tmp_path: Path, layout: dict[str, int], message: str) -> None:
    path = blob_network(tmp_path / "other.onnx", **layout)
    with pytest.raises(ModelError, match=rf"^dwpose: \S+other\.onnx: {message}"):
        DwPose(path)


def test_a_file_that_is_no_onnx_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.onnx"
    path.write_text("<html>sign in</html>")
    with pytest.raises(ModelError, match=r"^dwpose: \S+page\.onnx: is not an ONNX model that runs"):
        DwPose(path)


def test_the_configuration_names_the_estimator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = blob_network(tmp_path / "blobs.onnx")
    monkeypatch.setattr(registry, "weights", {"dwpose": path}.__getitem__)
    assert isinstance(load_estimator(MotionConfig(body="dwpose")), DwPose)
    assert load_estimator(MotionConfig(body="none")) is None


def test_without_weights_the_run_says_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKFORGE_MODELS", str(tmp_path))
    config = MeasureConfig.model_validate({"motion": {"body": "dwpose"}, "identity": {"model": "none"}})
    with pytest.raises(ModelError) as caught:
        gather(config)
    head, line, *_ = str(caught.value).split("\n")
    assert head == "weights are missing:"
    assert line.startswith("  dwpose: no package carries dw-ll_ucoco_384.onnx: put it into the folder")
    assert "https://huggingface.co/yzd-v/DWPose/" in line
    assert line.endswith("for research only")


def test_every_kept_point_has_its_name() -> None:
    kept = [BLOB_OF[i] for i in (*range(23), *range(91, 133))]
    blue = [name for name, blob in zip(JOINTS, kept, strict=True) if blob == BLUE]
    assert blue == [name for name in JOINTS if name.startswith("left_") and name in JOINTS[23:44]]
