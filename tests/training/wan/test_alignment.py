"""Speech windows against the published figures, masks against counting by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from talkforge.schemas.units import features_from_frames, latent_frames
from talkforge.training.wan.alignment import gather_windows, latent_masks, windows, windows_at


def test_windows_of_the_published_setting() -> None:
    found = windows(175, 81)
    assert found.index_TW.shape == (21, 17)
    assert found.valid_TW.sum(1).tolist() == [6, 14, *[17] * 18, 14]
    assert found.index_TW[0].tolist() == [0, 1, 2, 3, 4, 5, *[0] * 11]
    assert found.index_TW[1].tolist() == [*range(14), 0, 0, 0]
    assert found.index_TW[20].tolist() == [*range(161, 175), 0, 0, 0]


def published(num_features: int, num_frames: int) -> list[list[int]]:
    """The description of `paper.md`, word by word, in whole lists."""
    tpf = num_features / num_frames
    half = int(tpf * 4 / 2)
    ranges = []
    for i in range(1, max(latent_frames(num_frames), 2)):
        p = int((tpf * ((i - 1) * 4 + 1) + tpf * (i * 4 + 1)) / 2) - 1
        ranges.append([p - half, p + half])
    ranges = [[-(2 * half - ranges[0][0]), ranges[0][0]], *ranges][: latent_frames(num_frames)]
    return [[k for k in range(a - 4, b + 5) if 0 <= k < num_features] for a, b in ranges]


@pytest.mark.parametrize(
    ("fps", "num_frames"), list(itertools.product((23.0, 25.0, 29.97, 50.0), (1, 5, 21, 81, 125)))
)
def test_windows_of_other_settings(fps: float, num_frames: int) -> None:
    num_features = features_from_frames(num_frames, fps)
    found = windows(num_features, num_frames)
    features = [row[ok].tolist() for row, ok in zip(found.index_TW, found.valid_TW, strict=True)]
    assert features == published(num_features, num_frames)
    assert all(features)  # no window is empty


def test_valid_positions_come_first_and_keep_their_number() -> None:
    found = windows(175, 81)
    for valid in found.valid_TW.int().tolist():
        assert valid == sorted(valid, reverse=True)
    assert found.position_TW[0, :6].tolist() == [11, 12, 13, 14, 15, 16]  # cut at its left end
    assert found.position_TW[20, :14].tolist() == [*range(14)]  # cut at its right end
    assert found.position_TW[10].tolist() == [*range(17)]


def test_windows_need_speech_and_a_causal_length() -> None:
    with pytest.raises(ValueError, match="at least one speech feature, not 0"):
        windows(0, 5)
    with pytest.raises(ValueError, match="takes 4n \\+ 1 frames, not 80"):
        windows(160, 80)


def test_gathered_windows_hold_their_features_and_zeros() -> None:
    tokens_BLC = torch.arange(1, 176).float()[None, :, None] * torch.tensor([1.0, 10.0])
    found = gather_windows(tokens_BLC, windows(175, 81))
    assert found.shape == (1, 21, 17, 2)
    assert found[0, 0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, *[0] * 11]
    assert found[0, 20, :, 1].tolist() == [*range(1620, 1760, 10), 0, 0, 0]


def test_latent_frames_hear_the_lips_of_their_own_frames() -> None:
    for frame in range(9):
        lips = torch.zeros(1, 9, 16, 16, dtype=torch.uint8)
        lips[:, frame] = 1
        mask = latent_masks(lips, torch.ones(1, 9, dtype=torch.bool), (2, 2), "area")
        expected = [0.0, 0.0, 0.0]
        expected[(frame + 3) // 4] = 1.0 if frame == 0 else 0.25
        assert mask.shape == (1, 1, 3, 2, 2)
        assert mask[0, 0, :, 0, 0].tolist() == expected


def test_trilinear_takes_the_middle_of_four_frames() -> None:
    lips = torch.zeros(1, 9, 16, 16, dtype=torch.uint8)
    lips[:, 2] = 1  # second of frames 1 to 4
    mask = latent_masks(lips, torch.ones(1, 9, dtype=torch.bool), (2, 2), "trilinear")
    assert mask[0, 0, :, 0, 0].tolist() == [0.0, 0.5, 0.0]


def test_area_keeps_small_lips_that_trilinear_passes_over() -> None:
    lips = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    lips[0, 0, 0:2, 0:8] = 1  # a quarter of the upper left cell, away from its centre
    valid = torch.ones(1, 1, dtype=torch.bool)
    assert latent_masks(lips, valid, (2, 2), "area")[0, 0, 0].tolist() == [[0.25, 0.0], [0.0, 0.0]]
    assert latent_masks(lips, valid, (2, 2), "trilinear").max() == 0.0


def test_invalid_frames_hold_no_lips() -> None:
    lips = torch.ones(2, 5, 8, 8, dtype=torch.uint8)
    valid = torch.tensor([[True, True, False, False, False], [False] * 5])
    mask = latent_masks(lips, valid, (1, 1), "area")
    assert mask[:, 0, :, 0, 0].tolist() == [[1.0, 0.25], [0.0, 0.0]]


def test_windows_of_a_whole_video_are_those_of_its_spans() -> None:
    """Latent frames 12 to 17 of a video hear what a span of theirs heard in training."""
    span, video = windows(42, 21), windows_at([0, *range(12, 17)], 400, 2.0, 2.0)
    assert video.index_TW.shape == (6, 17)
    assert video.index_TW[0, :6].tolist() == span.index_TW[0, :6].tolist() == [*range(6)]
    # Latent frame 4 of the span that begins with frame 44 is latent frame 15.
    assert (video.index_TW[4] - 2 * 44).tolist() == span.index_TW[4].tolist()
    assert video.valid_TW[1:].all()
    end = windows_at([99, 100], 802, 2.0, 2.0)
    assert end.valid_TW.sum(1).tolist() == [17, 13]
    assert end.index_TW[1, :13].tolist() == [*range(789, 802)]


def test_the_width_of_a_window_is_the_trained_one() -> None:
    """At 25.01 frames/s a frame has 1.9992 features. In a span of 81 frames these were rounded to 2."""
    assert features_from_frames(81, 25.01) == 162
    assert windows(162, 81).index_TW.shape[1] == 17
    assert windows_at([0], 999, 50 / 25.01, 162 / 81).index_TW.shape[1] == 17
    assert windows_at([0], 999, 50 / 25.01, 50 / 25.01).index_TW.shape[1] == 15
