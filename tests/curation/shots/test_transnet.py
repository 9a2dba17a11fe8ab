"""The network's layout and arithmetic on random weights, and its published weights on real cuts."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from talkforge.curation import media
from talkforge.curation.media import probe
from talkforge.curation.shots import network as shots
from talkforge.curation.shots import transnet
from talkforge.curation.shots.network import Transition
from talkforge.curation.shots.transnet import TransNet
from talkforge.curation.weights import registry
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Input
from tests.conftest import RealClip


class Stowaway:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code in a pickle has run",))


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("transnet") / "random.pth"
    torch.save(transnet._TransNetV2().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def published() -> TransNet:
    try:
        return TransNet(registry.weights("transnetv2"))
    except ModelError as error:
        pytest.skip(str(error))


def noise(num_frames: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, 27, 48, 3), dtype=np.uint8)


def small_frames(path: Path) -> np.ndarray:
    video = probe.probe(path, Input(uri=path.name), probe.content_hash(path))
    return np.stack([shots.network_frame(p.rgb(longest_edge_px=256)) for p in media.read_frames(path, video)])


# --- the network -------------------------------------------------------------------------------


def test_the_layout_is_the_published_one() -> None:
    shapes = {name: tuple(t.shape) for name, t in transnet._TransNetV2().state_dict().items()}
    assert len(shapes) == 90
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 7_618_056
    assert shapes["SDDCNN.2.DDCNN.1.Conv3D_8.layers.1.weight"] == (64, 128, 3, 1, 1)
    assert shapes["frame_sim_layer.projection.weight"] == (128, 448)
    assert shapes["fc1.weight"] == (1024, 4864)


def test_each_frame_is_compared_with_fifty_on_either_side() -> None:
    vectors = torch.randn(1, 120, 7, generator=torch.Generator().manual_seed(0))
    found = transnet._neighbours(vectors)[0].numpy()
    unit = vectors[0].numpy() / np.linalg.norm(vectors[0].numpy(), axis=1, keepdims=True)
    for frame in range(120):
        for k in range(101):
            other = frame + k - 50
            expected = unit[frame] @ unit[other] if 0 <= other < 120 else 0.0
            assert found[frame, k] == pytest.approx(expected, abs=1e-6)


def test_colours_are_counted_in_512_bins() -> None:
    frames = torch.zeros(1, 101, 27, 48, 3, dtype=torch.uint8)
    frames[0, 50:] = torch.tensor([255, 31, 64], dtype=torch.uint8)
    layer = transnet._ColourSimilarity()
    torch.nn.init.eye_(layer.fc.weight)
    torch.nn.init.zeros_(layer.fc.bias)
    # The middle frame is like those from 50 on, and unlike those before.
    expected = [0.0] * 50 + [1.0] * 51 + [0.0] * 27
    assert layer(frames)[0, 50].tolist() == pytest.approx(expected, abs=1e-6)


def test_windows_of_a_hundred_advance_by_fifty(random_weights: Path) -> None:
    network, frames = TransNet(random_weights), noise(60)
    found = network.boundaries(frames)
    assert found.shape == (60,) and found.dtype == np.float32
    padded = np.concatenate([frames[:1]] * 25 + [frames] + [frames[-1:]] * 65)
    for start in (0, 50):
        expected = network._run(padded[start : start + 100])[25:75][: 60 - start]
        assert np.array_equal(found[start : start + 50], expected)
    assert network.boundaries(frames[:0]).shape == (0,)
    assert network.boundaries(frames[:1]).shape == (1,)


def test_frames_of_another_size_are_refused(random_weights: Path) -> None:
    with pytest.raises(ValueError, match=r"frames: expected shape \[any, 27, 48, 3\]"):
        TransNet(random_weights).boundaries(np.zeros((5, 48, 27, 3), np.uint8))


@pytest.mark.parametrize("kind", ["page", "code", "other layout", "missing"])
def test_other_weights_are_refused_in_one_line(
    kind: str, random_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    if kind == "page":
        path.write_text("<html>Not found</html>")
    elif kind == "code":
        path.write_bytes(pickle.dumps({"fc1.weight": Stowaway()}, protocol=2))
    elif kind == "other layout":
        state = torch.load(random_weights, weights_only=True)
        torch.save({**state, "fc1.weight": torch.zeros(1024, 4863)}, path)
    expected = "is not this model's state dict" if kind == "other layout" else "expected a torch state dict: "
    with pytest.raises(ModelError, match=rf"^transnetv2: \S+weights\.pth: {expected}") as error:
        TransNet(path)
    assert "\n" not in str(error.value)
    assert "has run" not in capsys.readouterr().out


# --- published weights on real footage ---------------------------------------------------------------


def test_the_cuts_of_a_stage_recording_are_found_to_the_frame(
    published: TransNet, real_clip: RealClip
) -> None:
    found = shots.transitions(published.boundaries(small_frames(real_clip("fr_hamilton.mp4"))))
    assert found == (Transition(19, 20), Transition(81, 82), Transition(210, 211))


def test_one_shot_has_no_transition(published: TransNet, real_clip: RealClip) -> None:
    probabilities = published.boundaries(small_frames(real_clip("grid_bbaf2n.mpg")))
    assert float(probabilities.max()) < 0.1
