"""Audio that is early or late by a known time, through all of curation with `thresholds.repair_sync`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import resample_poly

from examples.speech import SPEECH_HZ
from examples.talking_heads import Take, varied_take, write
from talkforge.curation.audio.logmel import LogMelEncoder
from talkforge.curation.face import lips
from talkforge.curation.media import decode_flac, read_audio
from talkforge.pipeline import jobs, snapshots
from talkforge.pipeline.calibrate import read_calibrated
from talkforge.pipeline.cut import read_arrays
from talkforge.pipeline.dataset import load_dataset, load_ingested
from talkforge.pipeline.deep import deep, measure_errors
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.shards import read_samples
from talkforge.pipeline.store import Store
from talkforge.pipeline.verify import alignment, verify
from talkforge.schemas import sample
from talkforge.schemas.config import load_config
from talkforge.schemas.npz import read_npz
from talkforge.schemas.records import LedgerRow, Video
from talkforge.schemas.sample import STEPS_PER_PX, ShardSample
from talkforge.viewer.library import Library
from tests.end_to_end.test_generated import CONFIG

EARLY_S, LATE_S = 0.24, 0.2
FRAME_S = 0.04


@dataclass(frozen=True)
class Moved:
    """A video of 12 s whose audio is early, in two clips of 6 s, and one of 6 s whose audio is late; in a
    data set.

    Attributes:
        takes: what each video shows.
        rows: the two clips of the first video, and the one of the second.
    """

    folder: Path
    takes: dict[str, Take]
    store: Store
    rows: tuple[LedgerRow, ...]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Moved:
    folder = tmp_path_factory.mktemp("moved")
    takes = {"early.mp4": varied_take(3, duration_s=12.0), "late.mp4": varied_take(5, duration_s=6.0)}
    write(folder / "early.mp4", takes["early.mp4"], audio_offset_s=-EARLY_S)
    write(folder / "late.mp4", takes["late.mp4"], audio_offset_s=LATE_S)
    store = Store(str(folder / "set"))
    settings = (
        "clip.max_s=6",
        "motion.body=none",
        "thresholds.min_face_px=64",
        "thresholds.repair_sync=true",
    )
    selection = jobs.curate(
        [str(folder / name) for name in takes], store, load_config(CONFIG, settings), InlineExecutor
    )
    rows = sorted(selection.rows, key=lambda row: (Path(row.uri).name, row.start_s))
    return Moved(folder, takes, store, tuple(rows))


EDGES = {0: (6, 0), 1: (0, 0), 2: (0, 5)}
"""Frames that each clip loses before and after, by its number in `Moved.rows`."""


def samples_of(moved: Moved) -> list[ShardSample]:
    """The samples, in the order of `Moved.rows`."""
    snapshot = snapshots.current(moved.store)
    found = {
        key: sample.decode(key, members)
        for shard in snapshot.shards
        for key, members in read_samples(moved.store, snapshot.tar(shard))
    }
    return [found[row.clip_id] for row in moved.rows]


def video_of(moved: Moved, number: int) -> tuple[Path, Video]:
    """File and facts of the video that a clip is of."""
    row = moved.rows[number]
    (video,) = (e.video for e in load_ingested(moved.store) if e.video and e.video.video_id == row.video_id)
    return moved.folder / Path(row.uri).name, video


def test_audio_is_moved_and_a_clip_at_the_edge_of_its_file_loses_the_frames_without(moved: Moved) -> None:
    early, late = ("early.mp4", 6, EARLY_S), ("late.mp4", -5, -LATE_S)
    expected = [(*early, 0.24, 6.0, 144), (*early, 6.0, 12.0, 150), (*late, 0.0, 5.8, 145)]
    for row, (name, offset_frames, shift_s, start_s, end_s, num_frames) in zip(
        moved.rows, expected, strict=True
    ):
        assert (row.accepted, row.reasons) == (True, ())
        assert Path(row.uri).name == name
        assert row.audio_shift_s == pytest.approx(shift_s)
        assert row.sync_offset_frames == offset_frames  # the measurement stays as it was
        assert (row.sync_probability or 0.0) < 0.5
        assert (row.start_s, row.end_s) == (pytest.approx(start_s), pytest.approx(end_s))
        assert (row.num_frames, row.duration_s) == (num_frames, pytest.approx(num_frames / 25))
    spans = [row.clip_id.split("_")[1:3] for row in moved.rows]
    assert spans == [["00000000", "00006000"], ["00006000", "00012000"], ["00000000", "00006000"]]


@pytest.mark.parametrize("number", EDGES)
def test_audio_and_picture_of_a_clip_are_together_to_a_frame(moved: Moved, number: int) -> None:
    found, row = samples_of(moved)[number], moved.rows[number]
    assert found.meta.audio_shift_s == row.audio_shift_s
    clip = found.meta.clip
    assert (clip.start_s, clip.end_s, clip.num_frames) == (row.start_s, row.end_s, row.num_frames)
    audio = decode_flac(found.flac)
    assert len(audio) == row.num_frames * 640
    spoken = resample_poly(moved.takes[Path(row.uri).name].samples, 16_000, SPEECH_HZ)
    first = round(row.start_s * 16_000)
    similarity, lag_s = alignment(audio, spoken[first : first + len(audio)])
    assert similarity > 0.95
    assert abs(lag_s) <= FRAME_S + 0.002


@pytest.mark.parametrize("number", EDGES)
def test_all_data_of_frames_are_those_of_the_frames_that_are_left(moved: Moved, number: int) -> None:
    found, (first, last) = samples_of(moved)[number], EDGES[number]
    (part,) = (
        clip.part for clip in read_calibrated(moved.store).clips if clip.measures.clip.clip_id == found.key
    )
    whole = read_arrays(moved.store, part, found.key, np.zeros(0, np.float32))
    assert len(whole.landmarks) == 150
    kept = slice(first, 150 - last)
    for name in ("joints", "blendshapes", "face_motion", "body_motion"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[kept])
    landmarks = np.round(whole.landmarks[kept] * STEPS_PER_PX) / STEPS_PER_PX
    np.testing.assert_array_equal(found.landmarks, landmarks)
    clip = found.meta.clip
    np.testing.assert_array_equal(found.lip_valid, whole.lip_valid[kept])
    assert len(found.face_valid) == len(found.face_contour) == clip.num_frames
    for mask, contour in zip(found.masks(), whole.contour[kept], strict=True):
        np.testing.assert_array_equal(mask, lips.rasterise(contour, clip.height_px, clip.width_px))


@pytest.mark.parametrize("number", EDGES)
def test_speech_features_are_those_of_the_moved_audio(moved: Moved, number: int) -> None:
    found, (path, video) = samples_of(moved)[number], video_of(moved, number)
    clip, shift_s = found.meta.clip, found.meta.audio_shift_s
    audio = read_audio(path, video, clip.start_s - shift_s, clip.end_s - shift_s)
    (expected,) = LogMelEncoder().encode([audio], [2 * clip.num_frames])
    np.testing.assert_array_equal(found.speech, expected)
    (before,) = (
        moved.store.read(f"parts/{one.part}/{found.key}.speech.npz")
        for one in read_calibrated(moved.store).clips
        if one.measures.clip.clip_id == found.key
    )
    first, last = EDGES[number]
    stored = read_npz(before, "speech.npz", ("speech",))["speech"][2 * first : 300 - 2 * last]
    assert np.abs(stored.astype(float) - found.speech).max() > 0.5


def test_verify_knows_of_the_shift_and_of_the_span(moved: Moved) -> None:
    assert verify(moved.store) == []
    found = deep(moved.store, 0)
    assert (found.compared, found.problems, found.frame_s) == (3, (), 0.0)
    assert found.audio_s <= 0.001 and found.av_s <= 0.001
    one, (path, video) = samples_of(moved)[1], video_of(moved, 1)
    shift_s = one.meta.audio_shift_s
    for error in measure_errors(one.mp4, one.meta.clip, path, video):
        assert error.audio_s is None or error.audio_s == pytest.approx(-shift_s, abs=0.001)


@pytest.mark.parametrize("number", EDGES)
def test_the_page_draws_what_was_measured_on_the_frames_that_were_cut(
    moved: Moved, number: int, tmp_path: Path
) -> None:
    found, library = samples_of(moved)[number], Library(moved.store, tmp_path)
    assert library.clip(found.key) == found.meta.clip
    marks = library.marks(found.key)
    assert marks is not None
    assert {len(mark) for mark in marks.values()} == {found.meta.clip.num_frames}
    np.testing.assert_allclose(marks["landmarks"], found.landmarks[:, :, :2], atol=0.5 / STEPS_PER_PX)


def test_selecting_needs_no_video_and_without_the_option_rejects(moved: Moved) -> None:
    dataset, ingested = load_dataset(moved.store), load_ingested(moved.store)
    off = load_config(CONFIG, ("thresholds.min_face_px=64",)).thresholds
    hidden = [path.rename(path.with_suffix(".hidden")) for path in moved.folder.glob("*.mp4")]
    try:
        measured = jobs.read_measured(moved.store)
        again = jobs.choose(moved.store, dataset.config, ingested, measured)
        plain = jobs.choose(
            moved.store, dataset.config.model_copy(update={"thresholds": off}), ingested, measured
        )
    finally:
        for path in hidden:
            path.rename(path.with_suffix(".mp4"))
    keys = [row.clip_id for row in moved.rows]
    assert sorted(again.rows, key=lambda row: keys.index(row.clip_id)) == list(moved.rows)
    assert [row.reasons for row in plain.rows] == [("out_of_sync", "sync_unlikely")] * 3
    assert [(row.audio_shift_s, row.num_frames, row.duration_s) for row in plain.rows] == [
        (None, 150, 6.0)
    ] * 3
