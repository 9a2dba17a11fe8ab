"""A small speaker in a large frame, of known truth, through the whole of curation with `clip.crop`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import talkforge
from examples.portraits import Framing, frame
from examples.speech import speak
from examples.talking_heads import Take, talk, write
from talkforge.curation import media
from talkforge.curation.media.probe import content_hash, probe
from talkforge.pipeline import jobs
from talkforge.pipeline.deep import deep
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.store import Store
from talkforge.pipeline.verify import verify
from talkforge.schemas.config import load_config
from talkforge.schemas.records import Input, Video
from tests.end_to_end.test_generated import CONFIG, RESULTS, digest, run

WIDTH_PX, HEIGHT_PX = 1920, 1080
HEAD_PX = (420, 560)
LEFT_PX, TOP_PX = 1230, 270
"""Where the head's picture lies on the stage."""

FACE_PX = 150


@dataclass(frozen=True)
class Stage:
    """The video and the truth of it: outer lips [F, 20, 2] and boxes of the face [F, 4] in its pixels."""

    video: Path
    contour: np.ndarray
    box: np.ndarray


def on_stage(take: Take) -> Take:
    """The take's pictures in the right half of a large dim hall; the truth stays that of the take."""
    y, x = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    hall = np.stack(
        [60 + 25 * np.sin(x / 61 + y / 97), 55 + 20 * np.sin(y / 83), 70 + 20 * np.sin(x / 131)], -1
    )

    def frames() -> Iterator[np.ndarray]:
        for picture in take.frames():
            whole = hall.astype(np.uint8)
            whole[TOP_PX : TOP_PX + HEAD_PX[1], LEFT_PX : LEFT_PX + HEAD_PX[0]] = picture
            yield whole

    return Take(take.fps, take.num_frames, frames, take.faces, take.samples)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("stage")
    speech = speak(
        "Good evening, and welcome to all of you who came from far away.", "en-us+f2", duration_s=3.2
    )
    take = talk(frame("collins", *HEAD_PX, Framing(face_px=FACE_PX, centre=(0.5, 0.42))), speech, seed=7)
    write(folder / "stage.mp4", on_stage(take))
    (face,) = take.faces
    corner = np.array([LEFT_PX, TOP_PX], np.float32)
    return Stage(folder / "stage.mp4", face.contour + corner, face.box + np.tile(corner, 2))


def settings(crop: str) -> list[str]:
    return [f"clip.crop={crop}", "thresholds.min_face_px=128"]


def curated(stage: Stage, folder: Path, crop: str) -> tuple[Path, dict[str, Any]]:
    """The data set, and its only row."""
    config = load_config(CONFIG, settings(crop))
    jobs.curate([str(stage.video)], Store(str(folder)), config, InlineExecutor)
    (row,) = pq.read_table(folder / "ledger.parquet").to_pylist()
    return folder, row


@pytest.fixture(scope="module")
def person(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return curated(stage, tmp_path_factory.mktemp("person") / "set", "person")


def source_of(stage: Stage) -> Video:
    return probe(stage.video, Input(uri=str(stage.video)), content_hash(stage.video))


def test_without_a_crop_the_face_is_too_small_in_the_clip(stage: Stage, tmp_path: Path) -> None:
    _, row = curated(stage, tmp_path / "set", "none")
    assert (row["width_px"], row["height_px"], row["crop_width_px"]) == (1024, 576, None)
    assert row["face_px"] == pytest.approx(FACE_PX, abs=35)  # the detector's box is not the drawn one
    assert row["face_clip_px"] == pytest.approx(row["face_px"] * 1024 / 1920, abs=0.02)
    assert row["reasons"] == ["face_small"]


def test_the_crop_keeps_the_pixels_of_the_source(stage: Stage, person: tuple[Path, dict[str, Any]]) -> None:
    _, row = person
    assert (row["accepted"], row["reasons"]) == (True, [])
    assert (row["width_px"], row["height_px"]) == (row["crop_width_px"], row["crop_height_px"])
    assert row["face_clip_px"] == row["face_px"] > 128
    left, top = row["crop_left_px"], row["crop_top_px"]
    low, high = stage.box[:, :2].min(0), stage.box[:, 2:].max(0)
    assert left < low[0] - FACE_PX and left + row["crop_width_px"] > high[0] + FACE_PX
    assert 0 <= top < low[1] and top + row["crop_height_px"] > high[1] + 2 * FACE_PX
    assert row["crop_width_px"] < 0.5 * WIDTH_PX


def test_the_cut_clip_is_the_crop_of_the_source(stage: Stage, person: tuple[Path, dict[str, Any]]) -> None:
    dataset, row = person
    (sample,) = talkforge.open(dataset).samples()
    frames = sample.frames()
    x, y = int(row["crop_left_px"]), int(row["crop_top_px"])
    source = [shown.rgb() for shown in media.read_frames(stage.video, source_of(stage))]
    assert len(frames) == row["num_frames"] == len(source)
    for k in (0, 40, 79):
        height, width = frames[k].shape[:2]

        def difference(dx: int, dy: int, k: int = k, height: int = height, width: int = width) -> float:
            part = source[k][y + dy : y + dy + height, x + dx : x + dx + width]
            return float(np.abs(frames[k].astype(int) - part)[100:300, 200:-200].mean())

        assert difference(0, 0) < 3
        assert difference(0, 0) < 0.7 * min(difference(*by) for by in ((1, 0), (-1, 0), (0, 1), (0, -1)))


def test_lips_and_landmarks_lie_on_the_drawn_mouth(stage: Stage, person: tuple[Path, dict[str, Any]]) -> None:
    dataset, row = person
    (sample,) = talkforge.open(dataset).samples()
    truth = stage.contour - np.float32([row["crop_left_px"], row["crop_top_px"]])
    middle = (truth.min(1) + truth.max(1)) / 2
    assert (sample.lip_valid > 0).mean() > 0.95
    masks = sample.masks()
    assert masks.shape == (row["num_frames"], row["height_px"], row["width_px"])
    for k in np.flatnonzero(sample.lip_valid):
        rows, columns = np.nonzero(masks[k])
        centre = np.array([columns.min() + columns.max(), rows.min() + rows.max()]) / 2
        assert np.abs(centre - middle[k]).max() < 4
    lips = sample.landmarks[:, [61, 291, 0, 17], :2]  # corners, and the middle of both lips
    measured = (lips.min(1) + lips.max(1)) / 2
    assert np.abs(np.nanmedian(measured - middle, axis=0)).max() < 2


def test_the_data_set_is_whole_and_can_be_inspected(
    person: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    dataset, row = person
    assert verify(Store(str(dataset))) == []
    compared = deep(Store(str(dataset)), 0)
    assert (compared.compared, compared.frame_s, compared.problems) == (1, 0.0, ())
    jobs.inspect(Store(str(dataset)), row["clip_id"], tmp_path / "clip.mp4")
    shown = probe(tmp_path / "clip.mp4", Input(uri="clip.mp4"), "0" * 64)
    assert shown.width_px == row["width_px"]


def test_ray_gives_the_same_bytes(stage: Stage, person: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    options = [option for setting in settings("person") for option in ("--set", setting)]
    done = run("curate", stage.video, "--out", tmp_path / "set", "--config", CONFIG, *options)
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "set", *RESULTS) == digest(person[0], *RESULTS)
