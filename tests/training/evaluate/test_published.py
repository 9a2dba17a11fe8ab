"""The paper's metrics: layouts of the published weights, and what is said where they are missing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from talkforge.curation.face import identity
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import Landmarks
from talkforge.schemas.errors import ModelError
from talkforge.training.evaluate import inception, published
from talkforge.training.evaluate.measures import VideoTrace
from talkforge.training.evaluate.published import (
    NOT_READ,
    WEIGHTS,
    PaperNetworks,
    consistency,
    distance,
    span_starts,
)


class StandInI3d(torch.nn.Module):  # type: ignore[misc]
    """Takes what the published TorchScript file takes; its features are means of the video."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert not rescale and not resize and return_features
        return x.mean(dim=(3, 4)).flatten(1)


def trace(frames: int) -> VideoTrace:
    seen = Landmarks(
        np.random.default_rng(0).uniform(10, 50, (frames, 478, 3)).astype(np.float32),
        np.zeros((frames, 52), np.float32),
        np.zeros((frames, 3), np.float32),
    )
    boxes = np.tile(np.float32([8, 8, 56, 56]), (frames, 1))
    return VideoTrace(25.0, seen, boxes, np.zeros((0, 0), np.float32), np.zeros(0), {})


def test_the_inception_network_has_the_tensors_of_the_published_file() -> None:
    state = inception.FidInception().state_dict()
    # The published file has 95,628,359 bytes. What is no tensor in it is the names and the zip archive.
    tensors = sum(t.numel() * t.element_size() for t in state.values())
    assert 0 < registry.MODELS["fid_inception"].num_bytes - tensors < 250_000
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert shapes["Mixed_6e.branch7x7dbl_5.conv.weight"] == (192, 192, 1, 7)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert shapes["fc.weight"] == (1008, 2048)


def test_inception_is_loaded_whole_and_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.manual_seed(0)
    network = inception.FidInception().eval()
    torch.save(network.state_dict(), path)
    images = torch.randint(0, 256, (1, 60, 80, 3), dtype=torch.uint8)
    with torch.inference_mode():
        found = inception.load(path)(images)
        assert found.shape == (1, inception.DIM) and torch.equal(found, network(images))
    torch.save({"fc.weight": torch.zeros(3)}, path)
    with pytest.raises(
        ModelError, match=r"^fid_inception: .* is not this model's state dict: missing: Conv2d"
    ):
        inception.load(path)


def test_average_pooling_leaves_padding_out() -> None:
    """Torch's default counts it; TensorFlow's, and so the published network, does not."""
    assert torch.allclose(inception._mean(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))


def test_metrics_without_weights_are_not_computed_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path))
    found = PaperNetworks.load()
    assert set(found.why_not) == {*NOT_READ, *WEIGHTS}
    assert found.why_not["fvd"].startswith("fvd_i3d: no package carries i3d_torchscript.pt: put it into")
    assert "talkforge models --fetch syncnet_v2" in found.why_not["sync_c"] == found.why_not["sync_d"]
    values, features = found.of_video([], trace(20), np.zeros(16_000, np.float32))
    assert values == {"sync_c": None, "sync_d": None, "es": None} and features == {}
    assert found.described() == []


def test_a_file_with_another_sha256_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "i3d_torchscript.pt").write_bytes(b"other")
    monkeypatch.setenv("TALKFORGE_MODELS", str(tmp_path))
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path / "none"))
    why = PaperNetworks.load().why_not["fvd"]
    assert "expected sha256 bec6519f66ea534e" in why and why.endswith("not used")


def test_fvd_takes_spans_of_sixteen_frames_from_the_registered_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = registry.MODELS["fvd_i3d"]
    path = tmp_path / model.file
    torch.jit.script(StandInI3d()).save(str(path))
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(
        registry.MODELS, "fvd_i3d", type(model)(**{**vars(model), "sha256": own, "num_bytes": 1})
    )
    monkeypatch.setenv("TALKFORGE_MODELS", str(tmp_path))
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path / "none"))
    networks = PaperNetworks.load()
    assert "fvd" not in networks.why_not
    assert networks.described() == [{"name": "fvd_i3d", "sha256": own, "licence": model.licence}]
    frames = [np.full((64, 64, 3), 5 * k, np.uint8) for k in range(40)]
    _, features = networks.of_video(frames, trace(40), None)
    spans = features["fvd"].reshape(2, 3, published.FVD_FRAMES)
    shown = np.array([range(16), range(24, 40)]) * 5 / 127.5 - 1
    assert np.abs(spans - shown[:, None]).max() < 1e-6


def test_es_is_arcface_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Embedder:
        def embed(self, crops: np.ndarray) -> np.ndarray:
            assert crops.shape[1:] == (112, 112, 3)
            angles = np.radians(10.0) * np.arange(len(crops))
            return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    monkeypatch.setattr(identity, "align", lambda *_: np.zeros((112, 112, 3), np.uint8))
    networks = PaperNetworks(arcface=Embedder())  # type: ignore[arg-type]
    frames = [np.zeros((64, 64, 3), np.uint8)] * 11
    values, _ = networks.of_video(frames, trace(11), None)
    # Frames 0, 5 and 10, at 0, 10 and 20 degrees: to the first cos 10 and cos 20, to the last cos 10 twice.
    cos = np.cos(np.radians([10.0, 20.0]))
    assert values["es"] == pytest.approx((3 * cos[0] + cos[1]) / 4, abs=1e-4)


def test_consistency_of_equal_vectors_is_one() -> None:
    assert consistency(np.tile(np.float32([0.6, 0.8]), (4, 1))) == 1.0


@pytest.mark.parametrize(
    ("frames", "expected"), [(15, []), (16, [0]), (31, [0]), (32, [0, 16]), (100, [0, 28, 56, 84])]
)
def test_spans_lie_evenly_and_apart(frames: int, expected: list[int]) -> None:
    assert span_starts(frames) == expected


def test_a_distance_needs_two_features_on_each_side() -> None:
    two = np.array([[0.0, 0], [2.0, 0]])
    assert distance("fid", [two], [two + 3]) == 18.0
    assert distance("fid", [two[:1]], [two]) is None and distance("fvd", [], [two]) is None
