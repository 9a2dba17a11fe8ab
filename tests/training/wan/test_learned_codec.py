"""The learned codec: it encodes as the linear one, decodes better, and what it keeps is checked."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from talkforge.schemas.errors import ModelError
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.learned_codec import Decoder, LearnedCodec, fit_decoder
from tests.training.batches import a_batch

EDGE_PX, FRAMES = 32, 9


def a_decoder(seed: int = 0) -> Decoder:
    """With no weight at zero, so that every part of it counts."""
    generator = torch.Generator().manual_seed(seed)
    network = Decoder()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return network


def faces(name: str, count: int = 3) -> Tensor:
    """Spans of a speaking face of `examples/clips`, uint8 [count, F, H, W, 3]."""
    frames = []
    with av.open(str(Path("examples/clips") / name)) as container:
        for frame in itertools.islice(container.decode(video=0), count * FRAMES):
            face = frame.to_ndarray(format="rgb24")[70:280, 70:280]
            frames.append(cv2.resize(face, (EDGE_PX, EDGE_PX), interpolation=cv2.INTER_AREA))
    return torch.from_numpy(np.stack(frames)).unflatten(0, (count, FRAMES))


def test_it_encodes_as_the_linear_codec_does() -> None:
    rgb = faces("grid_bbaf2n.mpg")
    linear = LinearCodec.fit([rgb])
    learned = LearnedCodec(linear.statistics, a_decoder())
    assert (learned.kind, linear.kind) == ("learned", "linear") and learned.sha256 != linear.sha256
    assert torch.equal(learned.encode(rgb), linear.encode(rgb))
    assert torch.equal(learned.condition(rgb[:, 0], 9), linear.condition(rgb[:, 0], 9))
    assert not torch.equal(learned.decode(learned.encode(rgb)), linear.decode(linear.encode(rgb)))


def test_an_unfitted_decoder_adds_nothing() -> None:
    rgb = faces("grid_bbaf2n.mpg", 1)
    linear = LinearCodec.fit([rgb])
    assert torch.equal(LearnedCodec(linear.statistics, Decoder()).decode(linear.encode(rgb)),
                       linear.decode(linear.encode(rgb)))  # fmt: skip


def test_four_frames_are_decoded_from_their_own_latents_and_those_before() -> None:
    linear = LinearCodec.fit([rgb := faces("grid_bbaf2n.mpg", 1)])
    codec = LearnedCodec(linear.statistics, a_decoder())
    latents = linear.encode(torch.cat([rgb, rgb[:, 1:]], dim=1))
    other = latents.clone()
    other[:, :, 2] += 1
    changed = (codec.decode(latents).int() - codec.decode(other).int()).abs().amax(dim=(0, 2, 3, 4)) > 0
    assert changed.tolist() == [False] * 5 + [True] * 8 + [False] * 4


def test_a_fitted_decoder_is_nearer_to_faces_that_it_has_not_seen() -> None:
    """Of another part of the same clip. Lips count more, and the same seed gives the same codec."""
    rgb = faces("grid_bbaf2n.mpg", 8)
    lips = torch.zeros(6, FRAMES, EDGE_PX, EDGE_PX, dtype=torch.uint8)
    lips[:, :, 20:25, 12:20] = 1
    linear = LinearCodec.fit([rgb[:6]])
    batch = a_batch(6, rgb_BFHWC=rgb[:6], lips_BFHW=lips)
    steps: list[int] = []
    fit = [
        fit_decoder(linear, itertools.repeat(batch), 25, 0, torch.device("cpu"), steps.append)
        for _ in range(2)
    ]
    assert steps == [*range(1, 26)] * 2 and fit[0].sha256 == fit[1].sha256

    def error(codec: LinearCodec) -> float:
        return float((codec.decode(codec.encode(rgb[6:])).float() - rgb[6:].float()).square().mean())

    assert error(fit[0]) < 0.85 * error(linear)


def test_what_a_checkpoint_keeps_gives_the_same_codec_or_is_refused() -> None:
    rgb = faces("grid_bbaf2n.mpg", 1)
    codec = LearnedCodec(LinearCodec.fit([rgb]).statistics, a_decoder())
    state = codec.state()
    again = LearnedCodec.of_state(state, "codec")
    assert again.sha256 == codec.sha256
    assert torch.equal(again.decode(again.encode(rgb)), codec.decode(codec.encode(rgb)))
    name = "network.first.0.weight"
    with pytest.raises(ModelError, match=r"^codec: its tensors are not those that were written \(sha256 "):
        LearnedCodec.of_state({**state, name: state[name] + 1e-3}, "codec")
    with pytest.raises(ModelError, match=r"^codec: .*Missing key\(s\) in state_dict: \"first.0.weight\""):
        LearnedCodec.of_state({key: value for key, value in state.items() if key != name}, "codec")
    with pytest.raises(ModelError, match=r"^codec: expected the codec of codec.kind=learned, found"):
        LearnedCodec.of_state(LinearCodec().state(), "codec")
