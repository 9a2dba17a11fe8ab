"""The dense pass: clips that overlap share one decode and are measured as if each were alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.talking_heads import side_by_side, varied_take, write
from talkforge.curation import media, trace
from talkforge.curation.clips import Candidate
from talkforge.curation.face import crops as face_crops
from talkforge.curation.face.landmarks import FaceLandmarker
from talkforge.curation.media.probe import content_hash, probe
from talkforge.curation.picture.scorer import PictureScorer
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import FaceTrack
from talkforge.schemas.config import FrameQualityConfig, MeasureConfig
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Clip, Input, Speaker, Video, clip_id
from talkforge.schemas.units import frames_from_seconds

CONFIG = MeasureConfig.model_validate({"motion": {"body": "none"}})


def clip_of(number: int, start_s: float, end_s: float) -> Clip:
    return Clip(
        clip_id=clip_id("0123456789ab", start_s, end_s, number), video_id="0123456789ab", uri="a.mp4",
        scene=0, track=number, start_s=start_s, end_s=end_s, fps=25.0,
        num_frames=frames_from_seconds(end_s - start_s, 25.0), width_px=512, height_px=256,
    )  # fmt: skip


def track_of(number: int, box: np.ndarray) -> FaceTrack:
    return FaceTrack(
        scene=0, track=number, start_s=0.0, end_s=2.0, times_s=np.array([0.0, 2.0]),
        boxes=np.stack([box, box]).astype(np.float32), scores=np.ones(2, np.float32), detector="truth",
    )  # fmt: skip


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Video, list[Candidate]]:
    """Two heads side by side; a clip of the left one, and a later one of the right one."""
    path = tmp_path_factory.mktemp("trace") / "two.mp4"
    take = side_by_side(varied_take(3, duration_s=2), varied_take(5, duration_s=2))
    write(path, take)
    boxes = [np.median(face.box, axis=0) for face in take.faces]
    clips = [clip_of(0, 0.0, 1.2), clip_of(1, 0.48, 1.6)]
    video = probe(path, Input(uri=str(path)), content_hash(path))
    return path, video, [Candidate(clip, track_of(i, boxes[i])) for i, clip in enumerate(clips)]


@pytest.fixture(scope="module")
def landmarker() -> FaceLandmarker:
    return FaceLandmarker(registry.weights("face_landmarker"))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return bool(one == other)


def test_overlapping_clips_share_one_decode_and_are_measured_as_if_alone(
    film: tuple[Path, Video, list[Candidate]], landmarker: FaceLandmarker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, video, candidates = film
    apart = [trace.trace(path, video, [one], landmarker, None, CONFIG) for one in candidates]
    decoded: list[tuple[float, float]] = []

    def counted(path: Path, video: Video, start_s: float, end_s: float) -> Iterator[media.Frame]:
        decoded.append((start_s, end_s))
        return media.read_frames(path, video, start_s, end_s)

    monkeypatch.setattr(trace, "read_frames", counted)
    together = trace.trace(path, video, candidates, landmarker, None, CONFIG)
    assert decoded == [(0.0, 1.6)]
    assert list(together) == [clip.clip_id for clip, _ in candidates]
    for (clip, _), alone in zip(candidates, apart, strict=True):
        found = together[clip.clip_id]
        assert isinstance(found, trace.Trace)
        assert same(found, alone[clip.clip_id])
        assert len(found.landmarks.points) == clip.num_frames
        assert found.landmarks.seen.all()
        assert (found.lips.valid == 2).all()
        assert found.crops.shape == (trace.NUM_CROPS, 112, 112, 3)
        assert found.thumbnail[:3] == b"\xff\xd8\xff"
    left, right = (together[clip.clip_id] for clip, _ in candidates)
    assert isinstance(left, trace.Trace) and isinstance(right, trace.Trace)
    assert np.nanmax(left.landmarks.points[..., 0]) < 256 < np.nanmin(right.landmarks.points[..., 0])


def test_the_speaker_is_scored_on_every_frame_of_the_own_face(
    film: tuple[Path, Video, list[Candidate]], landmarker: FaceLandmarker
) -> None:
    path, video, candidates = film
    seen: dict[str, np.ndarray] = {}

    def score_speaker(clip: Clip, crops: np.ndarray) -> Speaker:
        seen[clip.clip_id] = crops
        return Speaker(
            speaking_fraction=clip.track / 4, sync_c=None, sync_d=None, sync_net_offset_frames=None
        )

    traced = trace.trace(path, video, candidates, landmarker, None, CONFIG, score_speaker)
    for clip, track in candidates:
        found = traced[clip.clip_id]
        assert isinstance(found, trace.Trace)
        assert found.speaker_row is not None
        assert found.speaker_row.speaking_fraction == clip.track / 4
        (box,) = face_crops.smooth_boxes(track.boxes[:1])
        frames = list(media.read_frames(path, video, clip.start_s, clip.end_s))
        alone = [face_crops.crop_face(p.of_clip(clip), box) for p in frames]
        assert np.array_equal(seen[clip.clip_id], np.stack(alone)[: clip.num_frames])


def test_the_speaker_is_scored_on_grey_where_there_was_no_frame(
    film: tuple[Path, Video, list[Candidate]], landmarker: FaceLandmarker
) -> None:
    path, video, candidates = film
    beyond = clip_of(0, 1.6, 2.4)
    seen: list[np.ndarray] = []

    def score_speaker(_: Clip, crops: np.ndarray) -> Speaker:
        seen.append(crops)
        return Speaker(speaking_fraction=None, sync_c=None, sync_d=None, sync_net_offset_frames=None)

    trace.trace(
        path, video, [Candidate(beyond, candidates[0].track)], landmarker, None, CONFIG, score_speaker
    )
    (crops,) = seen
    assert [bool((crop == face_crops.GREY_LEVEL).all()) for crop in crops] == [False] * 10 + [True] * 10


def test_a_picture_scorer_sees_the_frames_of_each_clip(
    film: tuple[Path, Video, list[Candidate]], landmarker: FaceLandmarker
) -> None:
    path, video, candidates = film
    without = trace.trace(path, video, candidates[:1], landmarker, None, CONFIG)
    traced = trace.trace(
        path, video, candidates, landmarker, None, CONFIG, picture_scorer=PictureScorer(FrameQualityConfig())
    )
    for clip, _ in candidates:
        found = traced[clip.clip_id]
        assert isinstance(found, trace.Trace)
        assert found.picture_row is not None
        assert found.picture_row.black_bar_fraction == 0
        assert found.picture_row.text_fraction is None
    alone = without[candidates[0].clip.clip_id]
    assert isinstance(alone, trace.Trace)
    assert alone.picture_row is None


def test_an_error_is_returned_for_the_clips_it_stopped(
    film: tuple[Path, Video, list[Candidate]], landmarker: FaceLandmarker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, video, candidates = film
    later = Candidate(clip_of(0, 1.6, 2.0), candidates[0].track)

    def broken(path: Path, video: Video, start_s: float, end_s: float) -> Iterator[media.Frame]:
        if start_s < 1:
            raise MediaError("damaged")
        return media.read_frames(path, video, start_s, end_s)

    monkeypatch.setattr(trace, "read_frames", broken)
    found = trace.trace(path, video, [*candidates, later], landmarker, None, CONFIG)
    kinds = {key: str(value) if isinstance(value, Exception) else type(value) for key, value in found.items()}
    assert kinds == {
        candidates[0].clip.clip_id: "damaged",
        candidates[1].clip.clip_id: "damaged",
        later.clip.clip_id: trace.Trace,
    }


def test_a_video_that_ends_early_leaves_frames_unseen(
    film: tuple[Path, Video, list[Candidate]], landmarker: FaceLandmarker
) -> None:
    path, video, candidates = film
    beyond = clip_of(0, 1.6, 2.4)
    traced = trace.trace(path, video, [Candidate(beyond, candidates[0].track)], landmarker, None, CONFIG)[
        beyond.clip_id
    ]
    assert isinstance(traced, trace.Trace)
    assert traced.landmarks.seen.tolist() == [True] * 10 + [False] * 10
    assert traced.lips.valid[10:].tolist() == [0] * 10


@pytest.mark.parametrize(
    ("spans", "groups"),
    [
        ([], []),
        ([(0, 2)], [[0]]),
        ([(0, 2), (2, 4)], [[0], [1]]),
        ([(0, 2), (1, 4), (3, 5)], [[0, 1, 2]]),
        ([(0, 5), (1, 2), (4, 6), (6, 7)], [[0, 1, 2], [3]]),
        ([(0, 1), (0, 1), (1.5, 2)], [[0, 1], [2]]),
    ],
)
def test_clips_are_grouped_by_the_footage_they_share(
    spans: list[tuple[float, float]], groups: list[list[int]]
) -> None:
    box = np.array([0, 0, 10, 10], np.float32)
    candidates = [
        Candidate(clip_of(i, start_s, end_s), track_of(i, box)) for i, (start_s, end_s) in enumerate(spans)
    ]
    assert [[clip.track for clip, _ in group] for group in trace.overlapping(candidates)] == groups
