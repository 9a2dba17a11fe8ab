"""What is not its weights is refused by every loader in one line, and code in it is never run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from talkforge.curation.audio import quality
from talkforge.curation.audio.speech_encoders import TransformersEncoder
from talkforge.curation.audio.voice import VoiceEncoder
from talkforge.curation.body.dwpose import DwPose
from talkforge.curation.body.mediapipe_pose import MediaPipePose
from talkforge.curation.face import detect, identity
from talkforge.curation.face.landmarks import FaceLandmarker
from talkforge.curation.picture.brisque import Brisque
from talkforge.curation.picture.hands import HandDetector
from talkforge.curation.picture.text import TextDetector
from talkforge.curation.shots import transnet
from talkforge.curation.sync import syncnet
from talkforge.curation.sync.active_speaker import LightAsd
from talkforge.curation.weights import registry
from talkforge.curation.weights.mediapipe_bundles import load_task
from talkforge.schemas.config import AudioQualityConfig
from talkforge.schemas.errors import ModelError

PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"


class Code:
    """A pickle of this would make a file, if anybody read it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def onnx_of(input_shape: list[int]) -> bytes:
    """A sound ONNX model of another input and one constant output."""
    value = numpy_helper.from_array(np.zeros((1, 3), np.float32))
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=value)],
        "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    opset = [helper.make_opsetid("", 13)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def dnsmos(path: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "weights", lambda _: path)
        return quality.AudioScorer(AudioQualityConfig(dnsmos=True))


ONNX: dict[str, tuple[Callable[[Path], object], str]] = {
    "centerface": (lambda path: detect.CenterFace(path, 0.5), r"expected one input \[any, 3, any, any\]"),
    "scrfd": (lambda path: detect.Scrfd(path, 0.5), r"expected one input \[any, 3, any, any\]"),
    "arcface": (
        lambda path: identity.ArcFace("arcface", path, ""),
        r"expected input \[1, 3, 112, 112\], found \[1, 1, 64, 64\]",
    ),
    "text detector": (TextDetector, r"expected input \[any, 3, any, any\]"),
    "dwpose": (DwPose, r"expected input \[3, 384, 288\], found \[1, 64, 64\]"),
    "dnsmos": (dnsmos, r"expected input \[any, 144160\], found \[\[1, 64, 64\]\]"),
}

TORCH: dict[str, tuple[Callable[[Path], object], str]] = {
    "light_asd": (LightAsd, "expected a torch state dict"),
    "resemblyzer": (VoiceEncoder, "expected a torch state dict"),
    "syncnet_v2": (syncnet.SyncNet, "expected a torch state dict"),
    "transnetv2": (transnet.TransNet, "expected a torch state dict"),
}

BUNDLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "face": (FaceLandmarker, "expected a bundle for FaceLandmarker"),
    "hands": (HandDetector, "expected a bundle for HandLandmarker"),
    "pose bundle": (lambda path: load_task("PoseLandmarker", path), "expected a bundle for PoseLandmarker"),
    "pose detector": (
        lambda path: MediaPipePose(path, path),
        "pose detector: is not a TFLite model that runs",
    ),
    "pose landmarks": (
        lambda path: MediaPipePose(registry.weights("pose_detector"), path),
        "pose landmarks: is not a TFLite model that runs",
    ),
}


@pytest.fixture
def bad(tmp_path: Path) -> dict[str, bytes]:
    """Contents that are nobody's weights; the pickles would make the file `ran`."""
    mark = tmp_path / "ran"
    torch.save({"weight": Code(mark)}, tmp_path / "saved")
    sound = onnx_of([1, 1, 64, 64])
    return {
        "page": PAGE,
        "nothing": b"",
        "truncated": sound[:-40],
        "pickle": pickle.dumps(Code(mark), protocol=2),
        "torch": (tmp_path / "saved").read_bytes(),
    }


def refusal(load: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (path.parent / "ran").exists()
    return str(caught.value)


def test_the_pickle_is_dangerous(bad: dict[str, bytes], tmp_path: Path) -> None:
    pickle.loads(bad["pickle"])
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ONNX)
def test_onnx_models(name: str, bad: dict[str, bytes], tmp_path: Path) -> None:
    load, expected = ONNX[name]
    path = tmp_path / "bad.onnx"
    for content in bad.values():
        path.write_bytes(content)
        message = refusal(load, path)
        assert message.startswith(f"{name}: {path}: ")
        assert "is not an ONNX model that runs" in message or "expected one input" in message
    path.write_bytes(onnx_of([1, 1, 64, 64]))
    with pytest.raises(ModelError, match=rf"^{name}: {path}: {expected}"):
        load(path)


@pytest.mark.parametrize("name", ["centerface", "scrfd"])
def test_a_detector_with_other_outputs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(onnx_of([1, 3, 64, 64]))
    message = refusal(ONNX[name][0], path)
    assert message in (
        f"centerface: {path}: expected maps of 1, 2 and 2 channels, found [['y_1']]",
        f"centerface: {path}: expected maps of 1, 2 and 2 channels, found [[3]]",
        f"scrfd: {path}: expected (6, 9, 10, 15) outputs, found 1",
    )


@pytest.mark.parametrize("name", TORCH)
def test_torch_models(name: str, bad: dict[str, bytes], tmp_path: Path) -> None:
    load, expected = TORCH[name]
    path = tmp_path / "bad.model"
    for content in (*bad.values(), onnx_of([1, 3, 112, 112])):
        path.write_bytes(content)
        assert refusal(load, path).startswith(f"{name}: {path}: {expected}")


@pytest.mark.parametrize("name", BUNDLES)
def test_bundles(name: str, bad: dict[str, bytes], tmp_path: Path) -> None:
    load, expected = BUNDLES[name]
    for kind, content in bad.items():
        path = tmp_path / f"{kind}.task"
        path.write_bytes(content)
        assert refusal(load, path).startswith(f"{path}: {expected}")


def test_the_regression_of_brisque(bad: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    for content in (*bad.values(), onnx_of([1, 3, 64, 64])):
        path.write_bytes(content)
        assert refusal(Brisque, path).startswith(f"brisque: {path}: expected an epsilon_svr with rbf over 36")


def test_a_folder_of_pickled_weights_is_refused(bad: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "wav2vec2"}')
    (folder / "preprocessor_config.json").write_text(
        '{"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000}'
    )
    (folder / "pytorch_model.bin").write_bytes(bad["torch"])
    for safe in (None, PAGE):
        if safe:
            (folder / "model.safetensors").write_bytes(safe)
        with pytest.raises(ModelError, match=rf"^speech encoder {folder}: ") as caught:
            TransformersEncoder(str(folder), "cpu")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "ran").exists()
