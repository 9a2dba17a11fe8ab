"""Selection: verdicts, speakers, intensities, people and splits, and nothing lost."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from talkforge.curation.fingerprint import Fingerprint
from talkforge.pipeline import ledger, near_duplicates, tables
from talkforge.pipeline.intake import IngestRow, Intake, mark_duplicates
from talkforge.pipeline.ledger import (
    CommittedClip,
    check_conservation,
    select,
    with_failures,
    with_shards,
    write_ledger,
)
from talkforge.pipeline.measured import ClipRows, Measured, flat_clips
from talkforge.pipeline.parts import Window
from talkforge.pipeline.people import FaceClip, Faces
from talkforge.pipeline.standing import source_rows
from talkforge.pipeline.store import Store
from talkforge.schemas.config import Config, apply_settings
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.records import (
    Clip,
    ClipMeasures,
    Face,
    Failure,
    Input,
    LedgerRow,
    Lips,
    ListedColumn,
    Motion,
    Outcome,
    Speaker,
    Speech,
    Sync,
    clip_id,
)
from tests.records import video


def planned(number: int, **given: Any) -> IngestRow:
    said = Input.model_validate({"uri": f"{number}.mp4", "licence": "CC0"} | given)
    return IngestRow(input=said, stamp="", status="planned", video=video(number))


def measured(
    number: int = 1, start_s: float = 0.0, track: int = 0, omega: float = 1.0, sync: float | None = None,
    identity: tuple[float, ...] = (), failure: Failure | None = None, speaking: float | None = None,
    heard: int | None = None, place: float = 0.1, **face: Any,
) -> CommittedClip:  # fmt: skip
    of, end_s = video(number), start_s + 4.0
    clip = Clip(
        clip_id=clip_id(of.video_id, start_s, end_s, track), video_id=of.video_id, uri=of.uri, scene=0,
        track=track, start_s=start_s, end_s=end_s, fps=25.0, num_frames=100, width_px=64, height_px=64,
    )  # fmt: skip
    facts = {"source_fps": 25.0, "face_px": 200.0, "face_confidence": 0.95, "face_confidence_min": 0.9}
    facts |= {"faces_max": 1, "yaw_p95_deg": 10.0}
    row = ClipMeasures(
        clip=clip,
        stopped_by=None,
        face=Face.model_validate(facts | face),
        speech=Speech(speech_fraction=0.8, loudness_dbfs=-20.0, clipped_fraction=0.0),
        lips=Lips(lip_valid_fraction=1.0, lip_interpolated_fraction=0.0, lip_area_fraction=0.02),
        motion=Motion(omega_face_raw=omega, omega_body_raw=None, joints_valid_fraction=0.0),
        sync=Sync(
            sync_method="x",
            sync_offset_frames=None,
            sync_confidence=None,
            sync_zero_confidence=None,
            sync_probability=sync,
        ),
        speaker=Speaker(speaking_fraction=speaking, sync_c=None, sync_d=None, sync_net_offset_frames=None),
    )
    features: dict[str, Any] = {"identity": np.array(identity, np.float32)} if identity else {}
    features |= {} if heard is None else fingerprint(heard, place)
    return CommittedClip("000000", row, features, failure)


def fingerprint(heard: int, place: float) -> dict[str, Any]:
    """Arrays of a clip of 4 s: 80 peaks with three landmarks each by a seed, and a face at a place."""
    random = np.random.default_rng(heard)
    peaks = (np.sort(random.integers(0, 900, 80)) << 20) | (random.integers(0, 256, 80) << 12)
    return {
        "sound": np.unique(peaks | random.integers(0, 2**12, (3, 80))).astype(np.uint64),
        "pictures": np.zeros((8, 8), np.uint8),
        "faces": np.tile(np.float32([place, 0.3, place + 0.2, 0.7]), (8, 1)),
    }


def committed(*clips: CommittedClip) -> Measured:
    """What `read_measured` would give of parts with these clips."""
    ordered = sorted(clips, key=lambda clip: clip.measures.clip.clip_id)
    rows = [clip.measures for clip in ordered]
    table = flat_clips(tables.to_table(ClipMeasures, rows), "clips.parquet")
    errors = [clip.failure and f"{clip.failure.error}: {clip.failure.message}" for clip in ordered]
    table = table.append_column("failure", pa.array(errors, pa.string()))
    table = table.append_column("part", pa.array([clip.part for clip in ordered], pa.string()))
    faces = {clip.clip_id: clip for clip in map(face_of, ordered) if clip.face is not None}
    prints = {row.clip.clip_id: print_of(clip) for row, clip in zip(rows, ordered, strict=True)}
    heard = [key for key, one in prints.items() if one]
    hashes = [(np.full(len(prints[k].audio_hashes), n), prints[k].audio_hashes) for n, k in enumerate(heard)]

    def fingerprints(numbers: NDArray[np.int64]) -> dict[int, Fingerprint]:
        return {number: prints[heard[number]] for number in numbers.tolist()}

    return Measured(
        clips=table,
        failures=[clip.failure for clip in ordered if clip.failure],
        read_voices=lambda: {
            clip.measures.clip.clip_id: clip.features["voice"] for clip in ordered if "voice" in clip.features
        },
        read_faces=lambda: (list(faces), Faces.of(list(faces.values())).vectors),
        read_copies=lambda: near_duplicates.alike(heard, iter(hashes), fingerprints),
    )


def face_of(clip: CommittedClip) -> FaceClip:
    of = clip.measures.clip
    return FaceClip(of.clip_id, of.video_id, of.start_s, of.end_s, clip.features.get("identity"))


def print_of(clip: CommittedClip) -> Any:
    names = ("pictures", "faces", "sound")
    if "sound" not in clip.features:
        return None
    return Fingerprint(clip.measures.clip.duration_s, *(clip.features[name] for name in names))


def test_a_good_clip_is_accepted_and_carries_what_its_source_said() -> None:
    (row,) = select(committed(measured()), [planned(1)], Config()).rows
    assert (row.accepted, row.reasons, row.failure, row.licence) == (True, (), None, "CC0")
    assert row.split in ("train", "validation")
    assert row.shard is None


def test_an_empty_validation_split_is_told_with_the_fraction_that_fills_it() -> None:
    inputs, clips = [planned(k) for k in range(1, 6)], [measured(k) for k in range(1, 6)]
    selection = select(committed(*clips), inputs, Config())
    assert {row.split for row in selection.rows} == {"train"}
    (note,) = selection.notes
    told = re.fullmatch(
        r"no clip is held out for validation: of 5 people or videos none falls into "
        r"shards.validation_fraction=0.02; shards.validation_fraction=(0\.\d+) holds one out",
        note,
    )
    assert told is not None
    wider = apply_settings({}, [f"shards.validation_fraction={told[1]}"])
    found = select(committed(*clips), inputs, wider)
    assert Counter(row.split for row in found.rows) == {"train": 4, "validation": 1}
    assert found.notes == ()
    narrower = apply_settings({}, [f"shards.validation_fraction={float(told[1]) - 0.001:.3f}"])
    assert {row.split for row in select(committed(*clips), inputs, narrower).rows} == {"train"}


def test_one_video_cannot_be_divided_and_none_need_not_be() -> None:
    (note,) = select(committed(measured()), [planned(1)], Config()).notes
    assert note.endswith("none falls into shards.validation_fraction=0.02, and the only one is for training")
    none = apply_settings({}, ["shards.validation_fraction=0"])
    assert select(committed(measured()), [planned(1)], none).notes == ()
    assert select(committed(measured(faces_max=2)), [planned(1)], Config()).notes == ()


def test_clips_that_a_gate_stopped_are_told_by_gate() -> None:
    def stopped(number: int, code: str) -> CommittedClip:
        clip = measured(number)
        return replace(clip, measures=clip.measures.model_copy(update={"stopped_by": code}))

    clips = [stopped(1, "no_speech"), stopped(2, "face_small"), stopped(3, "no_speech")]
    assert select(committed(*clips), [planned(k) for k in (1, 2, 3)], Config()).notes == (
        "3 clips were not measured further because of a gate (face_small 1, no_speech 2): no threshold "
        "can accept them. The gates are measure.gates and measure.clip.min_s of a new data set",
    )


def test_a_rejected_clip_has_codes_and_details_and_no_split() -> None:
    (row,) = select(committed(measured(face_px=96.0, faces_max=2)), [planned(1)], Config()).rows
    assert row.reasons == ("face_small", "multiple_faces")
    assert row.reason_details == (
        "face_small (face_clip_px 96, threshold 128)",
        "multiple_faces (faces_max 2, threshold 1)",
    )
    assert (row.accepted, row.split) == (False, None)


def test_a_changed_threshold_changes_the_verdict_and_nothing_else() -> None:
    parts = committed(measured(face_px=96.0))
    before = select(parts, [planned(1)], Config()).rows[0]
    after = select(parts, [planned(1)], apply_settings({}, ["thresholds.min_face_px=64"])).rows[0]
    assert (before.accepted, after.accepted) == (False, True)
    changed = {name for name in type(before).model_fields if getattr(before, name) != getattr(after, name)}
    assert changed == {"accepted", "reasons", "reason_details", "split", "omega_face"}


def off(start_s: float, frames: int) -> Measured:
    """A clip of 4 s whose audio is off by some frames, surely; the video is 60 s long."""
    clip = measured(start_s=start_s, sync=0.01)
    sync = {"sync_offset_frames": frames, "sync_offset_probability": 0.99, "sync_offset_sd_frames": 0.5}
    assert clip.measures.sync is not None
    moved = clip.measures.sync.model_copy(update=sync)
    return committed(replace(clip, measures=clip.measures.model_copy(update={"sync": moved})))


@pytest.mark.parametrize(
    ("start_s", "frames", "span", "first", "last"),
    [
        (10.0, 6, {}, 0, 0),
        (10.0, -6, {}, 0, 0),
        (0.0, 6, {}, 6, 0),
        (0.2, 6, {}, 1, 0),
        (0.24, 6, {}, 0, 0),
        (0.0, -6, {}, 0, 0),
        (55.8, -6, {}, 0, 1),
        (56.0, -6, {}, 0, 6),
        (56.0, 6, {}, 0, 0),
        (10.0, 6, {"start_s": 9.9}, 4, 0),
        (10.0, -6, {"end_s": 14.1}, 0, 4),
        (10.0, 6, {"start_s": 9.0, "end_s": 14.1}, 0, 0),
    ],
)
def test_moved_audio_leaves_out_frames_for_which_the_input_has_none(
    start_s: float, frames: int, span: dict[str, float], first: int, last: int
) -> None:
    parts, inputs = off(start_s, frames), [planned(1, **span)]
    (row,) = select(parts, inputs, apply_settings({}, ["thresholds.repair_sync=true"])).rows
    assert (row.audio_shift_s, row.reasons) == (frames / 25, ())
    assert (row.sync_offset_frames, row.sync_probability) == (frames, 0.01)
    count = 100 - first - last
    assert (row.num_frames, row.duration_s) == (count, count / 25)
    assert row.start_s == pytest.approx(start_s + first / 25, abs=1e-9)
    assert row.end_s == pytest.approx(start_s + 4 - last / 25, abs=1e-9)
    whole = clip_id(video(1).video_id, start_s, start_s + 4, 0)
    assert row.clip_id == whole  # names the span that was measured
    (row,) = select(parts, inputs, Config()).rows
    assert (row.audio_shift_s, row.accepted) == (None, False)
    assert (row.start_s, row.end_s, row.num_frames, row.duration_s) == (start_s, start_s + 4, 100, 4.0)


@pytest.mark.parametrize(
    ("frames", "least_s", "reasons"),
    [
        (25, 3.0, ()),
        (26, 3.0, ("too_short",)),
        (50, 2.0, ()),
        (51, 2.0, ("out_of_sync", "sync_unlikely")),  # less than measure.clip.min_s: not moved
    ],
)
def test_what_is_left_of_a_clip_must_be_long_enough(
    frames: int, least_s: float, reasons: tuple[str, ...]
) -> None:
    settings = ["thresholds.repair_sync=true", f"thresholds.min_duration_s={least_s}"]
    (row,) = select(off(0.0, frames), [planned(1)], apply_settings({}, settings)).rows
    assert row.reasons == reasons
    moved = "out_of_sync" not in reasons
    assert row.audio_shift_s == (frames / 25 if moved else None)
    assert row.num_frames == (100 - frames if moved else 100)


@pytest.mark.parametrize(("kept", "expected"), [(None, 64.0), (150.0, 150.0)])
def test_the_face_counts_in_pixels_of_the_clip_in_older_parts_as_well(
    kept: float | None, expected: float
) -> None:
    large = planned(1)
    assert large.video is not None
    large = large.model_copy(
        update={"video": large.video.model_copy(update={"width_px": 192, "height_px": 192})}
    )
    (row,) = select(committed(measured(face_px=192.0, face_clip_px=kept)), [large], Config()).rows
    assert (row.face_px, row.face_clip_px) == (192.0, expected)  # the clip is 64 x 64
    assert row.reasons == (() if kept else ("face_small",))


def test_intensities_are_ranks_among_the_accepted() -> None:
    clips = [measured(n, omega=float(n)) for n in range(1, 6)]
    rows = select(committed(*clips), [planned(n) for n in range(1, 6)], Config()).rows
    assert [row.omega_face for row in rows] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [row.omega_body for row in rows] == [None] * 5


def test_of_two_faces_in_view_the_speaker_is_named() -> None:
    clips = committed(measured(track=0, sync=0.99), measured(track=1, sync=0.81))
    loose = apply_settings({}, ["thresholds.max_faces=null"])
    rows = select(clips, [planned(1)], loose).rows
    assert [(row.active_speaker, row.reasons) for row in rows] == [(True, ()), (False, ("not_speaking",))]


@pytest.mark.parametrize(
    ("left", "right", "speaks"),
    [
        ((0.9, 0.81), (0.1, 0.99), (True, False)),  # one alone is seen to speak, whatever sync says
        ((0.9, 0.81), (0.8, 0.99), (False, True)),  # both are: sync decides
        ((0.9, 0.81), (None, 0.99), (False, True)),  # one was not looked at: sync decides
        ((0.9, None), (0.1, None), (True, False)),
    ],
)
def test_who_is_seen_to_speak_comes_before_sync(
    left: tuple[float | None, float | None],
    right: tuple[float | None, float | None],
    speaks: tuple[bool, bool],
) -> None:
    clips = committed(
        *(measured(track=i, speaking=seen, sync=sync) for i, (seen, sync) in enumerate((left, right)))
    )
    rows = select(clips, [planned(1)], Config()).rows
    assert tuple(row.active_speaker for row in rows) == speaks


def test_faces_that_are_not_in_view_together_do_not_compete() -> None:
    clips = committed(measured(start_s=0.0, sync=0.99), measured(start_s=4.0, sync=0.81))
    assert [row.active_speaker for row in select(clips, [planned(1)], Config()).rows] == [None, None]


def test_of_clips_that_are_the_same_the_largest_face_is_kept_and_the_rest_name_it() -> None:
    clips = [measured(1, heard=0, face_px=200.0, omega=1.0), measured(2, heard=0, face_px=300.0, omega=9.0)]
    clips += [measured(3, heard=1, omega=5.0), measured(4, heard=0, face_px=250.0)]
    ingested = [planned(n) for n in range(1, 5)]
    selection = select(committed(*clips), ingested, Config())
    keys = [clip.measures.clip.clip_id for clip in clips]
    assert [row.duplicate_of for row in selection.rows] == [keys[1], None, None, keys[1]]
    assert [row.accepted for row in selection.rows] == [False, True, True, False]
    copy = selection.rows[0]
    assert (copy.reasons, copy.split) == (("near_duplicate",), None)
    assert copy.reason_details == (f"near_duplicate (of {keys[1]})",)
    assert selection.quantiles["omega_face"][0] == 5.0  # a copy does not count
    assert selection.accepted == [keys[1], keys[2]]
    check_conservation(selection, ingested)


def test_copies_are_kept_where_the_user_wants_them() -> None:
    clips, ingested = committed(measured(1, heard=0), measured(2, heard=0)), [planned(1), planned(2)]
    for setting, expected in (
        ("near_duplicates=false", [True, True]),
        ("near_duplicates=true", [True, False]),
        ("duplicate_landmarks=1.1", [True, True]),
        ("duplicate_overlap=1.1", [True, True]),
        ("duplicate_picture_bits=-1", [True, True]),
    ):
        rows = select(clips, ingested, apply_settings({}, [f"thresholds.{setting}"])).rows
        assert [row.accepted for row in rows] == expected, setting


def test_a_copy_of_a_clip_that_was_rejected_is_no_duplicate() -> None:
    clips = committed(measured(1, heard=0, face_px=400.0, faces_max=2), measured(2, heard=0))
    rows = select(clips, [planned(1), planned(2)], Config()).rows
    assert [row.reasons for row in rows] == [("multiple_faces",), ()]
    assert [row.duplicate_of for row in rows] == [None, None]


def test_two_people_at_one_time_in_one_video_are_no_duplicates_of_each_other() -> None:
    clips = committed(measured(1, track=0, heard=0), measured(1, track=1, heard=0, place=0.6))
    loose = apply_settings({}, ["thresholds.max_faces=null", "thresholds.require_speaker=false"])
    assert [row.accepted for row in select(clips, [planned(1)], loose).rows] == [True, True]


def test_a_segment_that_comes_again_in_its_own_video_is_found() -> None:
    clips = committed(measured(1, start_s=0.0, heard=0), measured(1, start_s=40.0, heard=0))
    first, again = select(clips, [planned(1)], Config()).rows
    assert (first.accepted, again.duplicate_of) == (True, first.clip_id)


def test_one_person_is_never_on_both_sides() -> None:
    clips = [measured(n, identity=(1.0, 0.01 * n)) for n in range(1, 30)]
    clips += [measured(30, identity=(0.0, 1.0))]
    half = apply_settings({}, ["shards.validation_fraction=0.5"])
    rows = select(committed(*clips), [planned(n) for n in range(1, 31)], half).rows
    assert len({row.person_id for row in rows}) == 2
    assert len({row.split for row in rows[:29]}) == 1


def test_thresholds_move_no_person() -> None:
    """People are found among all measured clips, whatever becomes of them."""
    faces = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    clips = [measured(n, identity=faces[n % 3], face_px=60.0 + 10 * n) for n in range(1, 30)]
    parts, inputs = committed(*clips), [planned(n) for n in range(1, 30)]
    selections = [
        select(parts, inputs, apply_settings({}, [f"thresholds.min_face_px={px}"])) for px in (0, 150, 500)
    ]
    accepted = [sum(row.accepted for row in selection.rows) for selection in selections]
    assert accepted == [29, 21, 0]
    assert len({row.person_id for row in selections[0].rows}) == 3
    for other in selections[1:]:
        assert [row.person_id for row in other.rows] == [row.person_id for row in selections[0].rows]
        assert other.people == selections[0].people
        splits = {row.person_id: row.split for row in other.rows if row.split}
        assert splits.items() <= {row.person_id: row.split for row in selections[0].rows}.items()


def test_whom_a_clip_shows_is_chosen_again_without_measuring() -> None:
    parts = committed(measured(1, identity=(1.0, 0.0)), measured(2, identity=(0.6, 0.8)))
    counts = [
        len(
            select(
                parts, [planned(1), planned(2)], apply_settings({}, [f"shards.same_person={least}"])
            ).people
        )
        for least in ("null", 0.6, 0.61)
    ]
    assert counts == [1, 1, 2]


def test_a_failed_clip_is_neither_accepted_nor_lost() -> None:
    of = video(1)
    failure = Failure(
        stage="trace", key="", video_id=of.video_id, uri=of.uri, error="MediaError", message="gone"
    )
    selection = select(committed(measured(failure=failure)), [planned(1)], Config())
    (row,) = selection.rows
    assert (row.accepted, row.failure) == (False, "MediaError: gone")
    check_conservation(selection, [planned(1)])


def test_a_clip_that_cannot_be_cut_becomes_a_failure() -> None:
    selection = select(committed(measured()), [planned(1)], Config())
    key = selection.rows[0].clip_id
    failure = Failure(stage="cut", key=key, video_id="", uri="1.mp4", error="MediaError", message="gone")
    after = with_failures(with_shards(selection, {key: "train-000000"}), [failure])
    assert (after.rows[0].accepted, after.rows[0].shard, after.rows[0].failure) == (
        False,
        None,
        "MediaError: gone",
    )
    assert after.failures == (failure,)
    check_conservation(after, [planned(1)])


def test_what_was_measured_of_a_replaced_file_is_left_out() -> None:
    selection = select(committed(measured(1), measured(2)), [planned(2)], Config())
    assert [row.video_id for row in selection.rows] == [video(2).video_id]


def test_losing_an_input_is_an_error_with_the_counts() -> None:
    selection = select(committed(measured()), [planned(1)], Config())
    with pytest.raises(DatasetError, match="expected 2 rows, one an input, found 1"):
        check_conservation(selection, [planned(1), planned(2)])


def test_every_input_has_a_status() -> None:
    uri = "broken.mp4"
    failure = Failure(
        stage="probe", key=uri, video_id="", uri=uri, error="MediaError", message="no video stream"
    )
    ingested = [
        planned(1),
        planned(2),
        planned(3),
        planned(4),
        planned(5),
        IngestRow(
            input=Input(uri="copy.mp4"), stamp="", status="duplicate", video=video(1), first_uri="1.mp4"
        ),
        IngestRow(input=Input(uri=uri), stamp="", status="failed", failure=failure),
    ]
    parts = committed(measured(1))
    outcomes = [
        Outcome.model_validate(
            {"video_id": video(number).video_id, "start_s": 0, "end_s": 30, "outcome": outcome,
             "speech_s": 2.0, "face_s": 1.0}
        )
        for number, outcome in ((1, "candidates"), (2, "no_face"), (2, "no_audio"), (5, "no_face"))
    ]  # fmt: skip
    parts.failures.append(
        Failure(
            stage="measure",
            key="w",
            video_id=video(3).video_id,
            uri="3.mp4",
            error="RunError",
            message="died",
        )
    )
    intake = Intake(ingested)
    num_clips = intake.counts(intake.inputs_of(pa.chunked_array([[video(1).video_id]]), np.array([np.nan])))
    rows = {
        row.uri: (row.status, row.reason, row.num_clips)
        for row in source_rows(intake, outcomes, parts.failures, num_clips)
    }
    assert rows == {
        "1.mp4": ("measured", "", 1),
        "2.mp4": ("no_candidates", "no_audio, no_face", 0),
        "3.mp4": ("failed", "RunError: died", 0),
        "4.mp4": ("pending", "not measured yet", 0),
        "5.mp4": ("pending", "not measured yet", 0),  # its second half is
        "copy.mp4": ("duplicate", "same content as 1.mp4", 0),
        "broken.mp4": ("failed", "MediaError: no video stream", 0),
    }


# --------------------------------------------------------------------- what lists say of inputs


def outcome(number: int, what: str, start_s: float, end_s: float) -> Outcome:
    facts = {"video_id": video(number).video_id, "start_s": start_s, "end_s": end_s, "outcome": what}
    return Outcome.model_validate(facts | {"speech_s": 2.0, "face_s": 1.0})


def columns(**values: str) -> tuple[ListedColumn, ...]:
    return tuple(ListedColumn(name=name, value=value) for name, value in values.items())


def test_columns_of_a_list_go_with_every_clip_of_the_input(tmp_path: Path) -> None:
    inputs = [planned(1, columns=columns(show="news", take="3")), planned(2, columns=columns(show="talk"))]
    selection = select(committed(measured(1), measured(2)), inputs, Config())
    rows = [row for _, rows in selection.accepted_by_part() for row in rows]
    assert [row["listed"] for row in rows] == [{"show": "news", "take": "3"}, {"show": "talk", "take": ""}]
    store = Store(str(tmp_path))
    write_ledger(store, selection)
    table = pq.read_table(tmp_path / "ledger.parquet")
    assert table.select(["source.show", "source.take"]).to_pylist() == [
        {"source.show": "news", "source.take": "3"},
        {"source.show": "talk", "source.take": ""},
    ]
    assert tables.read(store, "ledger.parquet", LedgerRow) == list(selection.rows)


def test_a_ledger_without_such_columns_has_none(tmp_path: Path) -> None:
    write_ledger(Store(str(tmp_path)), select(committed(measured(1)), [planned(1)], Config()))
    names = pq.read_schema(tmp_path / "ledger.parquet").names
    assert [name for name in names if name.startswith("source.")] == []


def test_spans_of_one_file_are_inputs_of_their_own() -> None:
    first = planned(1, start_s=0.0, end_s=10.0, licence="A", person="ann")
    second = planned(1, start_s=10.0, end_s=30.0, licence="B", person="bob")
    clips = [measured(1, 1.0), measured(1, 12.0), measured(1, 20.0), measured(1, 40.0)]
    seen = [outcome(1, "candidates", 0.0, 10.0), outcome(1, "candidates", 10.0, 30.0)]
    found = replace(committed(*clips), outcomes=seen)
    selection = select(found, [second, first], Config())
    assert [(row.start_s, row.licence, row.person) for row in selection.rows] == [
        (1.0, "A", "ann"), (12.0, "B", "bob"), (20.0, "B", "bob"),
    ]  # fmt: skip
    told = [(row.start_s, row.end_s, row.person, row.duration_s, row.num_clips) for row in selection.sources]
    assert told == [(0.0, 10.0, "ann", 10.0, 1), (10.0, 30.0, "bob", 20.0, 2)]
    assert [row.status for row in selection.sources] == ["measured", "measured"]
    check_conservation(selection, [first, second])


def test_a_window_that_failed_is_told_of_the_input_that_it_lies_in() -> None:
    inputs = [planned(1, start_s=0.0, end_s=10.0), planned(1, start_s=10.0, end_s=30.0)]
    key = Window(video=video(1), start_s=10.0, end_s=30.0).key
    failure = Failure(
        stage="measure", key=key, video_id=video(1).video_id, uri="1.mp4", error="E", message="m"
    )
    found = replace(committed(), outcomes=[outcome(1, "no_face", 0.0, 10.0)], failures=[failure])
    rows = source_rows(Intake(inputs), found.outcomes, found.failures, np.zeros(2, np.int64))
    assert [(row.status, row.reason) for row in rows] == [("no_candidates", "no_face"), ("failed", "E: m")]


def test_a_span_that_another_covers_is_a_duplicate_that_says_so() -> None:
    rows = mark_duplicates([planned(1), planned(1, start_s=5.0, end_s=8.0)])
    assert [(row.status, row.reason) for row in source_rows(Intake(rows), (), (), np.zeros(1, np.int64))] == [
        ("pending", "not measured yet"), ("duplicate", "overlaps another span of 1.mp4"),
    ]  # fmt: skip


def test_people_carry_the_names_of_lists_and_one_name_is_on_one_side() -> None:
    clips = [
        measured(1, identity=(1.0, 0.0, 0.0)), measured(2, identity=(1.0, 0.0, 0.0)),
        measured(3, identity=(0.0, 1.0, 0.0)), *(measured(n) for n in range(4, 24)),
    ]  # fmt: skip
    names = {1: "ann", 2: "anne", 3: "ann"}
    inputs = [planned(n, person=names.get(n, "carl")) for n in range(1, 24)]
    config = apply_settings({}, ["shards.validation_fraction=0.5"])
    selection = select(committed(*clips), inputs, config)
    assert sorted(person.labels for person in selection.people) == [("ann",), ("ann", "anne")]
    assert [row.person for row in selection.rows[:3]] == ["ann", "anne", "ann"]
    assert len({row.split for row in selection.rows[:3]}) == 1
    assert len({row.split for row in selection.rows[3:]}) == 1
    without = select(committed(*clips), [planned(n) for n in range(1, 24)], config)
    assert len({row.split for row in without.rows[3:]}) == 2


def test_a_face_with_another_voice_than_its_usual_one_is_rejected() -> None:
    """Three clips of a person, of which one was dubbed; the person is known by its face, or by the list."""
    anna, ben = np.eye(2, dtype=np.float32)
    clips = [measured(1, start_s=10.0 * k, identity=[1.0, 0.0]) for k in range(4)]
    for clip, heard in zip(clips, (anna, anna, ben, anna), strict=True):
        clip.features["voice"] = heard  # type: ignore[index]
    strict = apply_settings(Config().model_dump(mode="json"), ["thresholds.min_voice_similarity=0.65"])
    found = select(committed(*clips), [planned(1)], strict)
    assert [row.reasons for row in found.rows] == [(), (), ("other_voice",), ()]
    assert [row.voice_similarity for row in found.rows] == [1.0, 1.0, 0.0, 1.0]
    voices = [row.voice_person for row in found.rows]
    assert voices[0] == voices[1] == voices[3] != voices[2]
    assert all(row.accepted for row in select(committed(*clips), [planned(1)], Config()).rows)


def test_clips_of_a_video_that_hang_together_in_time_are_found_together() -> None:
    """As by looking at every pair; clips that follow each other do not overlap."""
    random = np.random.default_rng(5)
    sizes = set()
    for _ in range(20):
        starts = random.integers(0, 300, 60) / 10
        table = {"video_id": [f"v{n}" for n in random.integers(0, 4, 60)], "start_s": starts}
        rows = ClipRows(pa.table(table | {"end_s": starts + random.integers(1, 12, 60) / 10}))
        videos, ends = np.array(table["video_id"]), rows.floats("end_s")
        asked = np.flatnonzero(random.random(60) < 0.9)
        overlap = (videos[:, None] == videos) & (starts[:, None] < ends) & (starts < ends[:, None])
        _, labels = connected_components(overlap[np.ix_(asked, asked)], directed=False)
        groups = [asked[labels == label].tolist() for label in range(labels.max() + 1)]
        found = [group.tolist() for group in ledger._overlapping(rows, asked)]
        assert sorted(found) == sorted(group for group in groups if len(group) > 1)
        sizes |= {len(group) for group in found}
    assert len(sizes) > 3
