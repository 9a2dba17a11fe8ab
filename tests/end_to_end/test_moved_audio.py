"""Audio that is early by a known time, through the whole of curation with `thresholds.repair_sync`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import resample_poly

from examples.speech import SPEECH_HZ
from examples.talking_heads import Take, varied_take, write
from talkforge.curation.audio.logmel import LogMelEncoder
from talkforge.curation.media import decode_flac, read_audio
from talkforge.pipeline import jobs, snapshots
from talkforge.pipeline.calibrate import read_calibrated
from talkforge.pipeline.dataset import load_dataset, load_ingested
from talkforge.pipeline.deep import deep, measure_errors
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.shards import read_samples
from talkforge.pipeline.store import Store
from talkforge.pipeline.verify import alignment, verify
from talkforge.schemas import sample
from talkforge.schemas.config import load_config
from talkforge.schemas.npz import read_npz
from talkforge.schemas.records import LedgerRow
from talkforge.schemas.sample import ShardSample
from tests.end_to_end.test_generated import CONFIG

EARLY_S = 0.24
FRAME_S = 0.04


@dataclass(frozen=True)
class Moved:
    """A video of 12 s whose audio is early, the take that it shows, and the data set: two clips of 6 s."""

    video: Path
    take: Take
    store: Store
    rows: tuple[LedgerRow, ...]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Moved:
    folder = tmp_path_factory.mktemp("moved")
    take, video = varied_take(3, duration_s=12.0), folder / "early.mp4"
    write(video, take, audio_offset_s=-EARLY_S)
    store = Store(str(folder / "set"))
    settings = (
        "clip.max_s=6",
        "motion.body=none",
        "thresholds.min_face_px=64",
        "thresholds.repair_sync=true",
    )
    selection = jobs.curate([str(video)], store, load_config(CONFIG, settings), InlineExecutor)
    return Moved(video, take, store, tuple(sorted(selection.rows, key=lambda row: row.start_s)))


def the_sample(moved: Moved) -> ShardSample:
    (shard,) = (snapshots.current(moved.store).tar(one) for one in snapshots.current(moved.store).shards)
    ((key, members),) = read_samples(moved.store, shard)
    return sample.decode(key, members)


def test_a_clip_is_moved_where_the_file_has_audio_for_it(moved: Moved) -> None:
    first, second = moved.rows
    assert (first.start_s, first.accepted, first.audio_shift_s) == (0.0, False, None)
    assert first.reasons == ("out_of_sync", "sync_unlikely")
    assert (second.accepted, second.reasons) == (True, ())
    assert second.audio_shift_s == pytest.approx(EARLY_S, abs=FRAME_S + 1e-9)
    assert second.sync_offset_frames == round(second.audio_shift_s * 25)  # the measurement stays as it was
    assert (second.sync_probability or 0.0) < 0.5


def test_audio_and_picture_of_the_clip_are_together_to_a_frame(moved: Moved) -> None:
    found, row = the_sample(moved), moved.rows[1]
    assert found.meta.audio_shift_s == row.audio_shift_s
    assert found.meta.clip.start_s == row.start_s
    audio = decode_flac(found.flac)
    spoken = resample_poly(moved.take.samples, 16_000, SPEECH_HZ)
    first = round(row.start_s * 16_000)
    similarity, lag_s = alignment(audio, spoken[first : first + len(audio)])
    assert similarity > 0.95
    assert abs(lag_s) <= FRAME_S + 0.002


def test_speech_features_are_those_of_the_moved_audio(moved: Moved) -> None:
    found = the_sample(moved)
    clip, shift_s, (source,) = found.meta.clip, found.meta.audio_shift_s, load_ingested(moved.store)
    assert source.video is not None
    audio = read_audio(moved.video, source.video, clip.start_s - shift_s, clip.end_s - shift_s)
    (expected,) = LogMelEncoder().encode([audio], [300])
    np.testing.assert_array_equal(found.speech, expected)
    (before,) = (
        moved.store.read(f"parts/{clip.part}/{found.key}.speech.npz")
        for clip in read_calibrated(moved.store).clips
        if clip.measures.clip.clip_id == found.key
    )
    stored = read_npz(before, "speech.npz", ("speech",))["speech"]
    assert np.abs(stored.astype(float) - found.speech).max() > 0.5


def test_verify_knows_of_the_shift(moved: Moved) -> None:
    assert verify(moved.store) == []
    found = deep(moved.store, 0)
    assert (found.compared, found.problems, found.frame_s) == (1, (), 0.0)
    assert found.audio_s <= 0.001 and found.av_s <= 0.001
    one, (row,) = the_sample(moved), load_ingested(moved.store)
    assert row.video is not None
    shift_s = one.meta.audio_shift_s
    for error in measure_errors(one.mp4, one.meta.clip, moved.video, row.video):
        assert error.audio_s is None or error.audio_s == pytest.approx(-shift_s, abs=0.001)


def test_selecting_needs_no_video_and_without_the_option_rejects(moved: Moved) -> None:
    dataset, ingested = load_dataset(moved.store), load_ingested(moved.store)
    off = load_config(CONFIG, ("thresholds.min_face_px=64",)).thresholds
    hidden = moved.video.rename(moved.video.with_suffix(".hidden"))
    try:
        committed = read_calibrated(moved.store)
        again = jobs.choose(moved.store, dataset.config, ingested, committed)
        plain = jobs.choose(
            moved.store, dataset.config.model_copy(update={"thresholds": off}), ingested, committed
        )
    finally:
        hidden.rename(moved.video)
    assert sorted(again.rows, key=lambda row: row.start_s) == list(moved.rows)
    assert [row.reasons for row in plain.rows] == [("out_of_sync", "sync_unlikely")] * 2
    assert [row.audio_shift_s for row in plain.rows] == [None, None]
