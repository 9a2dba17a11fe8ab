"""Clips that share footage share one decode, and are measured as if each were alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.talking_heads import side_by_side, varied_take, write
from talkforge.curation import media, trace
from talkforge.curation.face import crops as face_crops
from talkforge.curation.face.landmarks import FaceLandmarker
from talkforge.curation.media.probe import content_hash, probe
from talkforge.curation.picture.scorer import PictureMeter
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import FaceTrack
from talkforge.schemas.config import MeasureConfig, PictureConfig
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Clip, Source, Speaker, Video, clip_id
from talkforge.schemas.units import frames_from_seconds

Pairs = list[trace.Pair]

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
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Video, Pairs]:
    """Two heads side by side; a clip of the left one, and a later one of the right one."""
    path = tmp_path_factory.mktemp("trace") / "two.mp4"
    take = side_by_side(varied_take(3, duration_s=2), varied_take(5, duration_s=2))
    write(path, take)
    boxes = [np.median(face.box, axis=0) for face in take.faces]
    clips = [clip_of(0, 0.0, 1.2), clip_of(1, 0.48, 1.6)]
    video = probe(path, Source(uri=str(path)), content_hash(path))
    return path, video, [(clip, track_of(i, boxes[i])) for i, clip in enumerate(clips)]


@pytest.fixture(scope="module")
def landmarker() -> FaceLandmarker:
    return FaceLandmarker(registry.weights("face_landmarker"))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return bool(one == other)


def test_together_is_the_same_as_apart_in_one_decode(
    film: tuple[Path, Video, Pairs], landmarker: FaceLandmarker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, video, pairs = film
    apart = [trace.trace(path, video, [pair], landmarker, None, CONFIG) for pair in pairs]
    decoded: list[tuple[float, float]] = []

    def counted(path: Path, video: Video, start_s: float, end_s: float) -> Iterator[media.Picture]:
        decoded.append((start_s, end_s))
        return media.pictures(path, video, start_s, end_s)

    monkeypatch.setattr(trace, "pictures", counted)
    together = trace.trace(path, video, pairs, landmarker, None, CONFIG)
    assert decoded == [(0.0, 1.6)]
    assert list(together) == [clip.clip_id for clip, _ in pairs]
    for (clip, _), alone in zip(pairs, apart, strict=True):
        found = together[clip.clip_id]
        assert isinstance(found, trace.Trace)
        assert same(found, alone[clip.clip_id])
        assert len(found.landmarks.points) == clip.num_frames
        assert found.landmarks.seen.all()
        assert (found.lips.valid == 2).all()
        assert found.crops.shape == (trace.NUM_CROPS, 112, 112, 3)
        assert found.thumbnail[:3] == b"\xff\xd8\xff"
    left, right = (together[clip.clip_id] for clip, _ in pairs)
    assert isinstance(left, trace.Trace) and isinstance(right, trace.Trace)
    assert np.nanmax(left.landmarks.points[..., 0]) < 256 < np.nanmin(right.landmarks.points[..., 0])


def test_a_watch_sees_every_frame_of_its_own_face(
    film: tuple[Path, Video, Pairs], landmarker: FaceLandmarker
) -> None:
    path, video, pairs = film
    seen: dict[str, np.ndarray] = {}

    def watch(clip: Clip, crops: np.ndarray) -> Speaker:
        seen[clip.clip_id] = crops
        return Speaker(
            speaking_fraction=clip.track / 4, sync_c=None, sync_d=None, sync_net_offset_frames=None
        )

    traced = trace.trace(path, video, pairs, landmarker, None, CONFIG, watch)
    for clip, track in pairs:
        found = traced[clip.clip_id]
        assert isinstance(found, trace.Trace)
        assert found.speaker_row is not None
        assert found.speaker_row.speaking_fraction == clip.track / 4
        (box,) = face_crops.smooth_boxes(track.boxes[:1])
        frames = list(media.pictures(path, video, clip.start_s, clip.end_s))
        alone = [face_crops.crop_face(p.rgb(clip.width_px, clip.height_px), box) for p in frames]
        assert np.array_equal(seen[clip.clip_id], np.stack(alone)[: clip.num_frames])


def test_a_watch_sees_grey_where_there_was_no_picture(
    film: tuple[Path, Video, Pairs], landmarker: FaceLandmarker
) -> None:
    path, video, pairs = film
    beyond = clip_of(0, 1.6, 2.4)
    seen: list[np.ndarray] = []

    def watch(_: Clip, crops: np.ndarray) -> Speaker:
        seen.append(crops)
        return Speaker(speaking_fraction=None, sync_c=None, sync_d=None, sync_net_offset_frames=None)

    trace.trace(path, video, [(beyond, pairs[0][1])], landmarker, None, CONFIG, watch)
    (crops,) = seen
    assert [bool((crop == face_crops.GREY_LEVEL).all()) for crop in crops] == [False] * 10 + [True] * 10


def test_a_meter_sees_the_pictures_of_each_clip(
    film: tuple[Path, Video, Pairs], landmarker: FaceLandmarker
) -> None:
    path, video, pairs = film
    without = trace.trace(path, video, pairs[:1], landmarker, None, CONFIG)
    traced = trace.trace(path, video, pairs, landmarker, None, CONFIG, meter=PictureMeter(PictureConfig()))
    for clip, _ in pairs:
        found = traced[clip.clip_id]
        assert isinstance(found, trace.Trace)
        assert found.picture_row is not None
        assert found.picture_row.black_bar_fraction == 0
        assert found.picture_row.text_fraction is None
    alone = without[pairs[0][0].clip_id]
    assert isinstance(alone, trace.Trace)
    assert alone.picture_row is None


def test_an_error_stands_for_the_clips_it_hit(
    film: tuple[Path, Video, Pairs], landmarker: FaceLandmarker, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, video, pairs = film
    later = (clip_of(0, 1.6, 2.0), pairs[0][1])

    def broken(path: Path, video: Video, start_s: float, end_s: float) -> Iterator[media.Picture]:
        if start_s < 1:
            raise MediaError("damaged")
        return media.pictures(path, video, start_s, end_s)

    monkeypatch.setattr(trace, "pictures", broken)
    found = trace.trace(path, video, [*pairs, later], landmarker, None, CONFIG)
    kinds = {key: str(value) if isinstance(value, Exception) else type(value) for key, value in found.items()}
    assert kinds == {
        pairs[0][0].clip_id: "damaged",
        pairs[1][0].clip_id: "damaged",
        later[0].clip_id: trace.Trace,
    }


def test_pictures_that_end_early_leave_frames_unseen(
    film: tuple[Path, Video, Pairs], landmarker: FaceLandmarker
) -> None:
    path, video, pairs = film
    beyond = clip_of(0, 1.6, 2.4)
    traced = trace.trace(path, video, [(beyond, pairs[0][1])], landmarker, None, CONFIG)[beyond.clip_id]
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
    pairs = [(clip_of(i, start_s, end_s), track_of(i, box)) for i, (start_s, end_s) in enumerate(spans)]
    assert [[clip.track for clip, _ in group] for group in trace.overlapping(pairs)] == groups
