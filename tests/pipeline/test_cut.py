"""What is cut is what was there: frame for frame, sample for sample; what is gone is a row."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talkforge.curation import media
from talkforge.curation.media.probe import content_hash, probe
from talkforge.pipeline import cut, jobs
from talkforge.pipeline.cut import Order
from talkforge.pipeline.dataset import load_dataset, load_ingested
from talkforge.pipeline.store import Store
from talkforge.schemas import sample
from talkforge.schemas.config import ShardConfig, apply_settings
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.npz import npz_bytes
from talkforge.schemas.records import Clip, ClipMeasures, Face, Input, Verdict, Video, clip_id
from talkforge.schemas.sample import Provenance, SampleMeta
from talkforge.schemas.units import features_from_frames, frames_from_seconds
from tests.media_files import Pictures, Sounds, clicks_heard, number_of, steady, write_media

WIDTH_PX, HEIGHT_PX = 96, 64
CONTOUR = np.array([[20, 20], [60, 20], [60, 40], [20, 40]], np.float32)


def clip_of(video: Video, start_s: float, end_s: float, fps: float) -> Clip:
    return Clip(
        clip_id=clip_id(video.video_id, start_s, end_s, 0), video_id=video.video_id, uri=video.uri, scene=0,
        track=0, start_s=start_s, end_s=end_s, fps=fps, num_frames=frames_from_seconds(end_s - start_s, fps),
        width_px=WIDTH_PX, height_px=HEIGHT_PX,
    )  # fmt: skip


def order_of(video: Video, clip: Clip) -> Order:
    face = Face(source_fps=25, face_px=40, face_confidence=0.9, face_confidence_min=0.9, faces_max=1)
    meta = SampleMeta(
        measures=ClipMeasures(clip=clip, stopped_by=None, face=face), omega_face=0.5, omega_body=None,
        person_id=None, verdict=Verdict(clip_id=clip.clip_id, accepted=True, reasons=()),
        provenance=Provenance(
            uri=video.uri, sha256=video.sha256, source="", licence="", consent="", models={}, config_hash="",
            tool_version="1",
        ),
    )  # fmt: skip
    return Order("000000", meta, video, np.zeros(0, np.float32))


def store_arrays(store: Store, clip: Clip) -> None:
    """Arrays as measuring leaves them: a still mouth that is missing in the last frame."""
    frames = clip.num_frames
    contour, valid = np.repeat(CONTOUR[None], frames, 0), np.full(frames, 2, np.uint8)
    contour[-1], valid[-1] = np.nan, 0
    traced = {
        "landmarks": np.full((frames, 478, 3), 10, np.float32),
        "contour": contour,
        "lip_valid": valid,
        "joints": np.full((frames, 65, 3), np.nan, np.float32),
        "face_rgb": np.full((112, 112, 3), 90, np.uint8),
    }
    speech = np.zeros((features_from_frames(frames, clip.fps), 80), np.float16)
    store.write(f"parts/000000/{clip.clip_id}.npz", npz_bytes(**traced))
    store.write(f"parts/000000/{clip.clip_id}.speech.npz", npz_bytes(speech=speech))


@pytest.fixture
def film(tmp_path: Path) -> tuple[Path, Video]:
    """Two seconds of numbered pictures with clicks at 0.6 and 1.3 s."""
    path = write_media(
        tmp_path / "a.mkv", Pictures(steady(50)), Sounds([(0, 2)], clicks_s=[0.6, 1.3], hz=48_000)
    )
    return path, probe(path, Input(uri=str(path)), content_hash(path))


@pytest.mark.parametrize(
    ("fps", "end_s", "numbers"), [(25.0, 1.4, range(10, 35)), (12.5, 1.36, range(10, 34, 2))]
)
def test_frames_and_samples_are_those_of_the_source(
    film: tuple[Path, Video], tmp_path: Path, fps: float, end_s: float, numbers: range
) -> None:
    path, video = film
    store, clip = Store(str(tmp_path / "set")), clip_of(video, 0.4, end_s, fps)
    store_arrays(store, clip)
    members = cut.cut(store, order_of(video, clip), path, ShardConfig())
    assert members == cut.cut(store, order_of(video, clip), path, ShardConfig())
    found = sample.decode(clip.clip_id, members)

    (tmp_path / "clip.mp4").write_bytes(found.mp4)
    again = probe(tmp_path / "clip.mp4", Input(uri="clip.mp4"), "0" * 64)
    shown = [number_of(frame.rgb()) for frame in media.read_frames(tmp_path / "clip.mp4", again)]
    assert shown == list(numbers)
    assert (again.fps, again.width_px, again.height_px) == (fps, WIDTH_PX, HEIGHT_PX)

    heard = media.decode_flac(found.flac)
    source = media.read_audio(path, video, clip.start_s, clip.end_s)
    assert len(heard) == len(source)
    assert np.abs(heard - source).max() <= 1 / 32768
    assert clicks_heard(heard, 16_000) == pytest.approx([0.2, 0.9], abs=0.001)
    sound = media.read_audio(tmp_path / "clip.mp4", again, 0, clip.duration_s, hz=48_000)
    assert clicks_heard(sound, 48_000) == pytest.approx([0.2, 0.9], abs=0.002)


def test_the_mask_is_the_filled_contour_and_empty_where_it_is_missing(
    film: tuple[Path, Video], tmp_path: Path
) -> None:
    path, video = film
    store, clip = Store(str(tmp_path / "set")), clip_of(video, 0.0, 1.0, 25.0)
    store_arrays(store, clip)
    found = sample.decode(clip.clip_id, cut.cut(store, order_of(video, clip), path, ShardConfig()))
    masks = sample.unpack_mask(found.mask_bits, HEIGHT_PX, WIDTH_PX)
    inside = np.zeros((HEIGHT_PX, WIDTH_PX), bool)
    inside[21:40, 21:60] = True
    assert masks[0][inside].all()
    assert not masks[0][:19].any() and not masks[0][42:].any()
    assert (masks[:-1] == masks[0]).all() and not masks[-1].any()


def test_frames_that_cannot_be_decoded_are_an_error(film: tuple[Path, Video], tmp_path: Path) -> None:
    path, video = film
    store, clip = Store(str(tmp_path / "set")), clip_of(video, 1.4, 2.4, 25.0)
    store_arrays(store, clip)
    with pytest.raises(DatasetError, match=f"clip {clip.clip_id}: expected 25 frames, decoded 15"):
        cut.cut(store, order_of(video, clip), path, ShardConfig())


def test_arrays_that_are_gone_are_named(film: tuple[Path, Video], tmp_path: Path) -> None:
    path, video = film
    store, clip = Store(str(tmp_path / "set")), clip_of(video, 0.0, 1.0, 25.0)
    name = f"parts/000000/{clip.clip_id}.npz"
    with pytest.raises(DatasetError, match=f"expected {name}, found no such file"):
        cut.cut(store, order_of(video, clip), path, ShardConfig())
    store_arrays(store, clip)
    store.write(name, b"no npz")
    with pytest.raises(DatasetError, match=f"{name}: expected an npz file, found other bytes"):
        cut.cut(store, order_of(video, clip), path, ShardConfig())
    store.write(name, npz_bytes(landmarks=np.zeros((25, 478, 3), np.float32)))
    with pytest.raises(DatasetError, match=f"{name}: .*contour"):
        cut.cut(store, order_of(video, clip), path, ShardConfig())


def test_members_in_the_shards_decode(curated: Any) -> None:
    keys = []
    for path in sorted(curated.dataset.glob("shards/*.tar")):
        members: dict[str, bytes] = {}
        with tarfile.open(path) as tar:
            for entry in tar:
                key, _, member = entry.name.partition(".")
                stream = tar.extractfile(entry)
                assert stream is not None
                members[member] = stream.read()
        found = sample.decode(key, members)
        with np.load(io.BytesIO(members["lips.npz"])) as lips:
            assert lips["valid"].tolist() == [2] * found.meta.clip.num_frames
        assert found.meta.verdict.accepted
        keys.append(key)
    assert len(keys) == 2


def test_a_source_that_vanished_fails_its_clip_and_nothing_else(curated: Any) -> None:
    store = Store(str(curated.dataset))
    old = load_dataset(store)
    config = apply_settings(old.config.model_dump(mode="json"), ["shards.crf=30"])
    dataset, ingested = old.model_copy(update={"config": config}), load_ingested(store)
    gone, hidden = curated.videos / "b.mp4", curated.videos / "hidden"
    gone.rename(hidden)
    try:
        selection = jobs.shard(store, dataset, jobs.select(store, dataset, ingested), ingested)
    finally:
        hidden.rename(gone)
    rows = {Path(row.uri).name: row for row in selection.rows}
    assert (rows["a.mp4"].accepted, rows["a.mp4"].failure) == (True, None)
    assert rows["a.mp4"].shard is not None
    assert (rows["b.mp4"].accepted, rows["b.mp4"].shard, rows["b.mp4"].reasons) == (False, None, ())
    assert str(rows["b.mp4"].failure).startswith(f"MediaError: {str(gone)!r}: ")
    (failure,) = selection.failures
    assert (failure.stage, failure.key, failure.uri) == ("cut", rows["b.mp4"].clip_id, str(gone))
    assert len(list(curated.dataset.glob("shards/*.tar"))) == 1

    selection = jobs.shard(store, dataset, jobs.select(store, dataset, ingested), ingested)
    assert [(row.accepted, row.failure) for row in selection.rows] == [(True, None)] * 2
    assert len(list(curated.dataset.glob("shards/*.tar"))) == 2
