"""open_nsfw: what it is given, what it answers, and which files are refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import skimage.data
from onnx import TensorProto, helper
from PIL import Image

from talkforge.curation.picture.nsfw import MEAN_BGR, NsfwClassifier
from talkforge.curation.weights import registry
from talkforge.schemas.errors import ModelError


def toy(path: Path, size: int = 224) -> Path:
    """A network that answers with the mean of blue and of red, less their means."""
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", size, size, 3])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["n", 2])
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gather", ["mean", "which"], ["answer"], axis=1),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("which", TensorProto.INT64, [2], [0, 2]),
    ]
    graph = helper.make_graph(nodes, "toy", [given], [answer], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    return path


def test_the_network_sees_the_middle_of_the_frame_as_its_authors_fed_it(tmp_path: Path) -> None:
    """Scaled to 256 px, cropped to 224, through JPEG, in BGR, less the means. The toy answers with red."""
    rgb = skimage.data.astronaut()
    image = Image.fromarray(rgb).resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    stored = io.BytesIO()
    image.save(stored, format="JPEG")
    red = np.asarray(Image.open(stored), np.float64)[..., 0].mean() - MEAN_BGR[2]
    assert NsfwClassifier(toy(tmp_path / "toy.onnx")).probability(rgb) == pytest.approx(red, abs=1e-2)


def test_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"open_nsfw: \S+: expected an image \[224, 224, 3\] in and 2 prob"):
        NsfwClassifier(toy(tmp_path / "toy.onnx", 128))
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"open_nsfw: \S+bad\.onnx: is not an ONNX model that runs"):
        NsfwClassifier(tmp_path / "bad.onnx")


def test_portraits_and_things_are_safe_for_work() -> None:
    try:
        classifier = NsfwClassifier(registry.weights("open_nsfw"))
    except ModelError as error:
        pytest.skip(str(error))
    for rgb in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()):
        assert 0 <= classifier.probability(rgb) < 0.2
