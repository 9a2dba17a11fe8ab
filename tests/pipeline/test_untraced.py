"""The dense pass leaves out what cannot be accepted, and nothing that is accepted depends on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talkforge.curation import trace
from talkforge.pipeline import jobs, stages, tables, untraced
from talkforge.pipeline.dataset import load_plan
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.ledger import Selection
from talkforge.pipeline.measured import read_measured
from talkforge.pipeline.parts import committed_parts
from talkforge.pipeline.rows import stored_track, track_arrays
from talkforge.pipeline.store import Store
from talkforge.schemas.arrays import FaceTrack
from talkforge.schemas.config import Thresholds, load_config
from talkforge.schemas.records import AudioQuality, ClipMeasures, Face, Failure, LedgerRow, Speech, clip_id
from tests.command_line import run
from tests.conftest import ROOT, SETTINGS, Curated
from tests.records import clip_of, video


def known(start_s: float, end_s: float, track: int = 0, stopped_by: str | None = None, **face: Any) -> Any:
    """A clip before the dense pass that the default thresholds may accept."""
    of = video(1)
    clip = clip_of(round((end_s - start_s) * 25), 64, 64, start_s).model_copy(
        update={
            "clip_id": clip_id(of.video_id, start_s, end_s, track),
            "video_id": of.video_id,
            "track": track,
        }
    )
    facts = {"source_fps": 25.0, "face_px": 200.0, "face_clip_px": 200.0, "face_confidence": 0.95}
    facts |= {"face_confidence_min": 0.9, "faces_max": 1}
    return ClipMeasures(
        clip=clip,
        stopped_by=stopped_by,
        face=Face.model_validate(facts | face),
        speech=Speech(speech_fraction=0.8, loudness_dbfs=-20.0, clipped_fraction=0.0),
    )


def left_out(*rows: ClipMeasures, thresholds: Thresholds | None = Thresholds()) -> list[str | None]:  # noqa: B008
    return [row.stopped_by for row in untraced.mark(rows, thresholds)]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, None),
        ({"face_clip_px": 127.0}, "not_traced"),
        ({"face_confidence": 0.69}, "not_traced"),
        ({"faces_max": 2}, "not_traced"),
        ({"source_fps": 20.0}, "not_traced"),
        ({"faces_frame_max": 3}, None),  # who speaks is not known before the dense pass
    ],
)
def test_a_clip_that_a_rule_rejects_already_is_not_traced(
    changed: dict[str, Any], expected: str | None
) -> None:
    row = known(0, 4, **changed)
    assert left_out(row) == [expected]
    assert left_out(row, thresholds=None) == [None]


def test_a_clip_with_music_is_not_traced_and_one_of_unknown_sound_is() -> None:
    sound = dict.fromkeys(AudioQuality.model_fields) | {"music_fraction": 0.9}
    row = known(0, 4).model_copy(update={"sound": AudioQuality.model_validate(sound)})
    assert left_out(row) == ["not_traced"]
    assert left_out(row, thresholds=Thresholds(max_music_fraction=None)) == [None]


def test_whoever_is_in_view_beside_a_clip_that_may_be_accepted_is_traced_with_it() -> None:
    small = {"face_clip_px": 50.0}
    rows = [
        known(0, 3, **small),  # ends where the next begins
        known(3, 8),
        known(2, 4, track=1, **small),  # begins before
        known(4, 5, track=2, **small),  # lies within
        known(7.96, 12, track=3, **small),  # ends after
        known(8, 12, track=4, **small),
        known(4, 6, track=5, stopped_by="face_small", **small),
    ]
    expected = ["not_traced", None, None, None, None, "not_traced", "face_small"]
    assert left_out(*rows) == expected


def test_a_stored_track_has_the_boxes_of_the_whole_one_at_every_frame_of_its_clip() -> None:
    random = np.random.default_rng(3)
    times_s = np.arange(0, 30, 0.5)
    boxes = random.uniform(0, 500, (60, 4)).astype(np.float32)
    track = FaceTrack(0, 1, 0.0, 30.0, times_s, boxes, np.ones(60, np.float32), "any")
    for start_s, num_frames in ((0.0, 100), (3.1, 77), (4.5, 50), (29.6, 10)):
        clip = clip_of(num_frames, 64, 64, start_s)
        arrays = track_arrays(clip, track)
        stored = stored_track(clip, arrays)
        assert len(arrays["track_times"]) <= num_frames / 25 * 2 + 3
        for k in range(num_frames):
            assert np.array_equal(stored.box_at(start_s + k / 25), track.box_at(start_s + k / 25))


CURATE = [*SETTINGS, "thresholds.min_face_px=5000"]
"""A face of this size is in no frame."""


def curate(videos: Path, dataset: Path, *settings: str) -> Selection:
    config = load_config(ROOT / "configs" / "offline.yaml", settings)
    return jobs.curate([str(videos)], Store(str(dataset)), config, InlineExecutor)


@pytest.fixture(scope="module")
def rejected(measured: Curated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `measured`, made with a threshold that rejects every clip before the dense pass."""
    dataset = tmp_path_factory.mktemp("rejected") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "read_frames", None)  # the dense pass would decode
        curate(measured.videos, dataset, *CURATE)
    return dataset


def files(dataset: Path, pattern: str) -> dict[str, bytes]:
    found = sorted(path for path in dataset.glob(pattern) if path.is_file())
    return {path.name: path.read_bytes() for path in found}


def rows_of(dataset: Path) -> list[LedgerRow]:
    return tables.read(Store(str(dataset)), "ledger.parquet", LedgerRow)


def test_what_was_left_out_is_traced_by_a_later_run_and_gives_the_same_shards(
    rejected: Path, measured: Curated, tmp_path: Path
) -> None:
    assert [(row.reasons, row.stopped_by) for row in rows_of(rejected)] == [
        (("face_small",), "not_traced")
    ] * 2
    assert not list(rejected.glob("parts/*/*_t0.npz"))
    dataset = tmp_path / "set"
    shutil.copytree(rejected, dataset)

    code, out, _ = run("select", dataset, "-s", "thresholds.min_face_px=64")
    assert code == 0
    assert "2 of the rejected clips (8.0 s) may be accepted by these thresholds, but were never traced" in out
    assert [row.reasons for row in rows_of(dataset)] == [("not_traced",)] * 2
    code, out, _ = run("status", dataset, "--json")
    assert (code, json.loads(out)["not_traced"]) == (0, {"clips": 2, "seconds": 8.0})

    selection = curate(measured.videos, dataset, *SETTINGS)
    assert (selection.totals.accepted, selection.totals.untraced) == (2, 0)
    assert files(dataset, "shards/*.tar") == files(measured.dataset, "shards/*.tar")
    assert rows_of(dataset) == rows_of(measured.dataset)
    parts = committed_parts(Store(str(dataset)))
    assert len(parts) == 2 and parts[1].startswith(f"{parts[0]}.")

    assert run("verify", dataset)[0] == 0


def test_a_clip_whose_trace_fails_says_so_and_waits_no_more(rejected: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "set"
    shutil.copytree(rejected, dataset)
    store = Store(str(dataset))
    strict = load_config("offline", CURATE).thresholds
    assert untraced.supplements(store, read_measured(store).clips, load_plan(store), strict) == []
    (key, _) = sorted(row.clip_id for row in rows_of(dataset))
    (reviewed,) = untraced.supplements(store, read_measured(store).clips, load_plan(store), strict, {key})
    assert reviewed.clips == (key,)
    config = load_config("offline", SETTINGS)
    (part,) = untraced.supplements(store, read_measured(store).clips, load_plan(store), config.thresholds)
    assert untraced.supplements(store, read_measured(store).clips, load_plan(store), None) == [part]
    assert [len(untraced.read_clips(part, window, store)[0]) for window in part.windows].count(1) == 2

    full = Failure(
        stage="measure", key=part.windows[0].key, video_id="", uri="", error="OSError", message="full",
        kind="storage",
    )  # fmt: skip
    result = stages.PartResult(part, put_off={window.key: full for window in part.windows})
    assert stages.commit(result, store) == (full,) * len(part.windows)
    assert untraced.supplements(store, read_measured(store).clips, load_plan(store), config.thresholds) == [
        part
    ]

    stages.give_up(part, RuntimeError("crashed"), store)
    assert untraced.supplements(store, read_measured(store).clips, load_plan(store), config.thresholds) == []
    committed = jobs.read_calibrated(store)
    assert [clip.failure.message for clip in committed.clips if clip.failure] == ["crashed"] * 2
    assert [clip.measures.stopped_by for clip in committed.clips] == [None, None]
