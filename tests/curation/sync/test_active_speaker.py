"""The weights' layout, and who speaks on real clips."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from talkforge.curation import media
from talkforge.curation.face.crops import crop_face, smooth_boxes, to_asd
from talkforge.curation.face.detect import load_detector
from talkforge.curation.media import probe
from talkforge.curation.scan import scan
from talkforge.curation.sync import active_speaker
from talkforge.curation.sync.active_speaker import LightAsd, speaker, speaking_fraction
from talkforge.schemas.config import ScanConfig
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Input
from tests.conftest import RealClip

FILE = "lightasd_finetuning_TalkSet.model"
LENGTH_S = 3

Clip = tuple[np.ndarray, np.ndarray]

# --------------------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("light_asd") / "random.model"
    torch.save(active_speaker._light_asd().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def state(random_weights: Path) -> dict[str, Any]:
    return dict(torch.load(random_weights, weights_only=True))


@pytest.fixture(scope="module")
def model(random_weights: Path) -> LightAsd:
    """For what holds with any weights."""
    return LightAsd(random_weights)


@pytest.fixture(scope="module")
def published(weights_dir: Path) -> LightAsd:
    return LightAsd(weights_dir / FILE)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch unpickled",)


def _refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        LightAsd(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"light_asd: {path}: ")
    return message.removeprefix(f"light_asd: {path}: ")


def test_every_name_and_shape_must_be_its_own(state: dict[str, Any], tmp_path: Path) -> None:
    altered = dict(state)
    altered["model.GRU.gru_forward.extra"] = altered.pop("model.GRU.gru_forward.bias_ih_l0")
    altered["lossAV.FC.weight"] = torch.zeros(3, 128)
    torch.save(altered, tmp_path / "altered.model")
    assert _refusal(tmp_path / "altered.model") == (
        "is not this model's state dict: missing: model.GRU.gru_forward.bias_ih_l0; "
        "unexpected: model.GRU.gru_forward.extra; other shapes: lossAV.FC.weight (3, 128) for (2, 128)"
    )


def test_a_count_of_batches_may_be_missing(state: dict[str, Any], tmp_path: Path) -> None:
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "old.model")
    assert LightAsd(tmp_path / "old.model").name == "light_asd"


def test_anything_but_a_state_dict_is_refused_and_never_run(
    random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.model"
    for content in (b"", b"<!DOCTYPE html>\n<html></html>", random_weights.read_bytes()[:100_000]):
        path.write_bytes(content)
        assert _refusal(path).startswith("expected a torch state dict: ")
    torch.save(_Code(), path)
    assert _refusal(path).startswith("expected a torch state dict: ")
    assert not (tmp_path / "unpickled").exists()
    torch.save([torch.zeros(3)], path)
    assert _refusal(path) == "expected a torch state dict, found list"
    torch.save({"epoch": 3}, path)
    assert _refusal(path) == "expected a torch state dict, found other values than tensors in it"


# --------------------------------------------------------------------------- speaking faces


@pytest.fixture(scope="module")
def clip(real_clip: RealClip) -> Callable[[str], Clip]:
    """The first three seconds of a real clip: faces [75, 112, 112] and samples."""
    detector, done = load_detector(ScanConfig(sample_s=1.0)), {}

    def cut(name: str) -> Clip:
        if name not in done:
            path = real_clip(name)
            video = probe.probe(path, Input(uri=name), probe.content_hash(path))
            track = scan(path, video, 0, LENGTH_S, ScanConfig(sample_s=1.0), detector).tracks[0]
            count = LENGTH_S * 25
            boxes = smooth_boxes(np.stack([track.box_at(k / 25) for k in range(count)]))
            faces = np.zeros((count, 112, 112), np.uint8)
            for frame in media.read_frames(path, video, 0, LENGTH_S):
                for k in media.clip_indices(frame, 0, 25, count):
                    faces[k] = to_asd(crop_face(frame.rgb(), boxes[k]))
            done[name] = faces, media.read_audio(path, video, 0, LENGTH_S)
        return done[name]

    return cut


def test_a_speaking_face_scores_above_a_silent_one(published: LightAsd, clip: Callable[[str], Clip]) -> None:
    talking, silent = clip("grid_brbk7n.mpg"), clip("lp_s18.mp4")
    spoken, unspoken = published.score_batch([talking, silent])
    assert spoken.dtype == np.float32
    assert spoken.shape == unspoken.shape == (75,)
    assert spoken.min() > 0 > unspoken.max()
    # Speech is heard from second 0.51 to 2.14 of the talking clip; the lips rest before and after.
    assert spoken[14:52].mean() > spoken[:10].mean() + 1.5
    assert spoken[14:52].mean() > spoken[58:].mean() + 1.5


def test_a_clip_scores_the_same_in_any_batch(model: LightAsd, clip: Callable[[str], Clip]) -> None:
    faces, samples = clip("grid_brbk7n.mpg")
    short = faces[:40], samples[:25600]
    alone = model.score(*short)
    empty = faces[:0], samples[:0]
    among = model.score_batch([(faces, samples), short, empty, (faces[20:60], samples[12800:])])
    assert np.array_equal(among[1], alone)
    assert among[2].shape == (0,)
    assert not torch.is_inference_mode_enabled()


def test_chunks_leave_no_seam(
    model: LightAsd, clip: Callable[[str], Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    faces, samples = clip("grid_brbk7n.mpg")
    whole = model.score(faces, samples)
    monkeypatch.setattr(active_speaker, "_CHUNK_FRAMES", 16)
    assert np.abs(model.score(faces, samples) - whole).max() < 1e-3


def test_another_rate_gives_a_score_for_each_frame(model: LightAsd, clip: Callable[[str], Clip]) -> None:
    faces, samples = clip("grid_brbk7n.mpg")
    twice = np.repeat(faces, 2, axis=0)
    scores = model.score(twice, samples, fps=50.0)
    assert np.array_equal(scores[::2], model.score(faces, samples))
    assert scores.shape == (150,)


def test_of_two_faces_the_one_that_speaks_is_named(published: LightAsd, clip: Callable[[str], Clip]) -> None:
    (talking, sound), (silent, _) = clip("grid_brbk7n.mpg"), clip("lp_s18.mp4")
    heard = np.zeros(75, bool)
    heard[14:52] = True
    fractions = {
        name: speaking_fraction(published.score(faces, sound), heard)
        for name, faces in (("talking", talking), ("silent", silent))
    }
    assert fractions == {"talking": 1.0, "silent": 0.0}
    assert speaker(fractions) == "talking"


def test_resting_lips_may_pass_for_speaking_and_then_nobody_is_named(
    published: LightAsd, clip: Callable[[str], Clip]
) -> None:
    """A known limit: a speaker's own lips at rest, with another's voice, score above 0."""
    (talking, sound), (other, _) = clip("grid_bbaf2n.mpg"), clip("grid_brbk7n.mpg")
    resting = other[np.abs((np.arange(75) % 20) - 10)]  # to and fro through the 0.4 s before her sentence
    scores = published.score_batch([(talking, sound), (resting, sound)])
    heard = np.ones(75, bool)
    fractions = {str(i): speaking_fraction(row, heard) for i, row in enumerate(scores)}
    assert scores[0].mean() > scores[1].mean() > 0
    assert speaker(fractions) is None


def test_only_frames_with_speech_count() -> None:
    scores = np.array([1, 1, 1, -1, 0, -1], np.float32)
    assert speaking_fraction(scores, np.array([False, True, True, True, True, False])) == 0.5
    assert speaking_fraction(scores, np.zeros(6, bool)) is None


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ({"a": 0.9, "b": 0.1}, "a"),
        ({"a": 0.9, "b": 0.6}, None),
        ({"a": 0.5, "b": 0.1}, None),
        ({"a": 0.9, "b": None}, None),
        ({}, None),
    ],
)
def test_the_speaker_is_the_only_face_that_speaks(
    fractions: dict[str, float | None], expected: str | None
) -> None:
    assert speaker(fractions) == expected
