"""What is cut is what was there: frame for frame, sample for sample; what is gone is a row."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from talkforge.curation import media
from talkforge.curation.audio.logmel import LogMelEncoder
from talkforge.curation.media.probe import content_hash, probe
from talkforge.pipeline import cut, jobs, tables, timelines
from talkforge.pipeline.cut import Order
from talkforge.pipeline.dataset import load_dataset, load_ingested, save_dataset
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.ingest import stamp_of
from talkforge.pipeline.intake import IngestRow
from talkforge.pipeline.shards import ShardPlan, read_samples
from talkforge.pipeline.store import Store
from talkforge.schemas import sample
from talkforge.schemas.config import ShardConfig, SpeechConfig, apply_settings
from talkforge.schemas.errors import DatasetError, ModelError, RunError
from talkforge.schemas.npz import npz_bytes, read_npz
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
    return Order("000000", meta, video, stamp_of(video.uri), np.zeros(0, np.float32))


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


@pytest.mark.parametrize(
    ("layout", "channel", "expected"), [("stereo", "mix", 2), ("mono", "mix", 1), ("stereo", "left", 1)]
)
def test_the_clip_has_as_many_channels_as_are_used_of_its_source(
    tmp_path: Path, layout: str, channel: str, expected: int
) -> None:
    path = write_media(tmp_path / "a.mkv", Pictures(steady(25)), Sounds([(0, 1)], [0.5], layout=layout))
    video = probe(path, Input(uri=str(path)), content_hash(path)).model_copy(
        update={"audio_channel": channel}
    )
    store, clip = Store(str(tmp_path / "set")), clip_of(video, 0.0, 1.0, 25.0)
    store_arrays(store, clip)
    members = cut.cut(store, order_of(video, clip), path, ShardConfig())
    (tmp_path / "clip.mp4").write_bytes(sample.decode(clip.clip_id, members).mp4)
    again = probe(tmp_path / "clip.mp4", Input(uri="clip.mp4"), "0" * 64)
    assert (again.audio_codec, again.audio_hz, again.audio_channels) == ("aac", 48_000, expected)
    sound = media.read_audio(tmp_path / "clip.mp4", again, 0, 1, hz=48_000)
    assert clicks_heard(sound, 48_000) == pytest.approx([0.5], abs=0.002)


@pytest.mark.parametrize("shift_s", [0.2, -0.2])
def test_moved_audio_is_cut_from_elsewhere_and_embedded_again(
    film: tuple[Path, Video], tmp_path: Path, shift_s: float
) -> None:
    path, video = film
    store, clip = Store(str(tmp_path / "set")), clip_of(video, 0.4, 1.4, 25.0)
    store_arrays(store, clip)
    order = order_of(video, clip)
    meta = order.meta.model_copy(update={"audio_shift_s": shift_s})
    members = cut.cut(store, replace(order, meta=meta, speech=SpeechConfig()), path, ShardConfig())
    found = sample.decode(clip.clip_id, members)
    heard = media.decode_flac(found.flac)
    clicks_s = [at_s for at_s in (0.2 + shift_s, 0.9 + shift_s) if 0 <= at_s < 1]
    assert clicks_heard(heard, 16_000) == pytest.approx(clicks_s, abs=0.001)
    (tmp_path / "clip.mp4").write_bytes(found.mp4)
    again = probe(tmp_path / "clip.mp4", Input(uri="clip.mp4"), "0" * 64)
    sound = media.read_audio(tmp_path / "clip.mp4", again, 0, clip.duration_s, hz=48_000)
    assert clicks_heard(sound, 48_000) == pytest.approx(clicks_s, abs=0.002)
    shown = [number_of(frame.rgb()) for frame in media.read_frames(tmp_path / "clip.mp4", again)]
    assert shown == list(range(10, 35))
    source = media.read_audio(path, video, 0.4 - shift_s, 1.4 - shift_s)
    (expected,) = LogMelEncoder().encode([source], [50])
    np.testing.assert_array_equal(found.speech, expected)
    assert found.meta.audio_shift_s == shift_s


def test_moved_audio_is_not_embedded_by_another_encoder_than_the_rest(
    film: tuple[Path, Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, video = film
    store, clip = Store(str(tmp_path / "set")), clip_of(video, 0.4, 1.4, 25.0)
    store_arrays(store, clip)
    order = order_of(video, clip)
    order = replace(order, meta=order.meta.model_copy(update={"audio_shift_s": 0.2}), speech=SpeechConfig())
    other = LogMelEncoder()
    monkeypatch.setattr(other, "sha256", "ab", raising=False)
    monkeypatch.setattr(cut, "_encoder", lambda _: other)
    plan = ShardPlan("train-000000", (clip.clip_id,), "x")
    with pytest.raises(ModelError, match="logmel-80: not the speech encoder that the data set was measured"):
        cut.cut_shards(store, [plan], {clip.clip_id: order}, ShardConfig(), InlineExecutor())


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


def test_arrays_of_every_frame_go_into_the_sample(film: tuple[Path, Video], tmp_path: Path) -> None:
    """The face oval is that of the stored landmarks. What an earlier version did not store is NaN."""
    path, video = film
    store, clip = Store(str(tmp_path / "set")), clip_of(video, 0.0, 1.0, 25.0)
    store_arrays(store, clip)
    name = f"parts/000000/{clip.clip_id}.npz"
    old = sample.decode(clip.clip_id, cut.cut(store, order_of(video, clip), path, ShardConfig()))
    assert old.face_valid.tolist() == [2] * 25
    assert (old.face_contour == 10).all()
    for array in (old.blendshapes, old.face_motion, old.body_motion):
        assert np.isnan(array).all()
    new = {
        "blendshapes": np.full((25, 52), 0.25, np.float16),
        "face_motion": np.full((25, 8), 0.5, np.float16),
        "body_motion": np.full((25, 20), 0.75, np.float16),
    }
    landmarks = np.full((25, 478, 3), 10, np.float32)
    landmarks[:10] = np.nan
    store.write(name, npz_bytes(**(read_npz(store.read(name), name) | new | {"landmarks": landmarks})))
    found = sample.decode(clip.clip_id, cut.cut(store, order_of(video, clip), path, ShardConfig()))
    assert found.face_valid.tolist() == [0] * 10 + [2] * 15
    for member, array in new.items():
        assert np.array_equal(getattr(found, member), array)


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


# ----------------------------------------------------------------------- what cannot be cut anew


def recut(curated: Any, *settings: str) -> jobs.Selection:
    """Shard with other settings, by default such that every sample is encoded anew."""
    store = Store(str(curated.dataset))
    old = load_dataset(store)
    config = apply_settings(old.config.model_dump(mode="json"), list(settings or ("shards.crf=30",)))
    dataset, ingested = old.model_copy(update={"config": config}), load_ingested(store)
    return jobs.shard(store, dataset, jobs.select(store, dataset, ingested), ingested)


def samples_of(dataset: Path) -> dict[str, dict[str, bytes]]:
    store = Store(str(dataset))
    files = [name for name in store.list("shards") if name.endswith(".tar")]
    return {key: members for file in files for key, members in read_samples(store, file)}


def remove_shards(dataset: Path) -> None:
    """Leaves the data set as it is before anything was cut."""
    for folder in ("shards", "snapshots"):
        shutil.rmtree(dataset / folder)


@pytest.fixture
def own(curated: Any, tmp_path: Path) -> Any:
    """The data set with videos of its own, which a test may change; the measured rows name them."""
    videos = tmp_path / "videos"
    shutil.copytree(curated.videos, videos)
    store = Store(str(curated.dataset))
    rows = []
    for row in load_ingested(store):
        uri = str(videos / Path(row.input.uri).name)
        rows.append(
            row.model_copy(
                update={
                    "input": row.input.model_copy(update={"uri": uri}),
                    "video": row.video and row.video.model_copy(update={"uri": uri}),
                }
            )
        )
    tables.write(store, "intake.parquet", IngestRow, rows)
    return replace(curated, videos=videos)


def test_samples_name_the_configuration_that_the_data_set_was_described_with(own: Any) -> None:
    """Its hash is not computed again: a later version has more settings, and would come to another one."""
    remove_shards(own.dataset)
    store = Store(str(own.dataset))
    save_dataset(store, load_dataset(store).model_copy(update={"config_hash": "of then"}))
    recut(own)
    metas = [sample.decode(key, members).meta for key, members in samples_of(own.dataset).items()]
    assert [meta.provenance.config_hash for meta in metas] == ["of then"] * 2


def test_orders_of_shards_that_wait_are_not_in_memory(
    film: tuple[Path, Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, video = film
    made = [order_of(video, clip_of(video, start_s, start_s + 0.2, 25.0)) for start_s in np.arange(5) * 0.4]
    keys = [order.key for order in made]
    seen: list[weakref.ref[Order]] = []
    alive = []

    def cut_task(task: cut.CutTask, *_: Any) -> cut.CutShard:
        assert [order.meta for order in task.orders] == [metas[key] for key in task.shard.keys]
        seen.extend(map(weakref.ref, task.orders))
        gc.collect()
        alive.append(sum(order() is not None for order in seen))
        return cut.CutShard(task.shard.name, None)

    monkeypatch.setattr(cut, "cut_task", cut_task)
    monkeypatch.setattr(cut, "PIECES_PER_WORKER", 1)
    metas = {order.key: order.meta for order in made}
    with contextlib.closing(cut.OrderFile(tmp_path / "orders")) as orders:
        plan = cut.plan(orders.kept(made), ShardConfig(max_samples=1))
        assert (sorted(orders), len(orders)) == (sorted(keys), 5)
        cut.cut_shards(Store(str(tmp_path / "set")), plan, orders, ShardConfig(), InlineExecutor())
    assert len(alive) == 5 and max(alive) <= 2  # those in hand, and those that come next


def test_a_full_disk_of_temporary_files_ends_the_run_in_one_line_wherever_it_shows(
    film: tuple[Path, Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both orders of clips and cut clips lie there; neither is a fault of a video."""
    _, video = film
    made = [order_of(video, clip_of(video, start_s, start_s + 0.2, 25.0)) for start_s in (0.0, 0.4)]
    said = f"^cannot write to {tmp_path}: No space left on device$"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for given in (made[:1], made):  # one is still in the buffer when all are written
        with (
            pytest.raises(RunError, match=said),
            contextlib.closing(cut.OrderFile(Path("/dev/full"))) as orders,
        ):
            list(orders.kept(given))
    monkeypatch.setattr(cut, "cut", lambda *_: {"txt": b"said"})
    monkeypatch.setattr(cut, "_file", lambda *_: Path("/dev/full"))
    plan = [ShardPlan("train-000000", (made[0].key,), "f")]
    with pytest.raises(RunError, match=said):
        cut.cut_shards(
            Store(str(tmp_path / "set")), plan, {made[0].key: made[0]}, ShardConfig(), InlineExecutor()
        )


def test_a_source_that_vanished_keeps_its_sample_and_says_so(own: Any) -> None:
    before = samples_of(own.dataset)
    gone, hidden = own.videos / "b.mp4", own.videos / "hidden"
    gone.rename(hidden)
    selection = recut(own)
    rows = {Path(row.uri).name: row for row in selection.rows}
    assert [(row.accepted, row.failure) for row in rows.values()] == [(True, None)] * 2
    (failure,) = selection.failures
    assert (failure.stage, failure.key, failure.error) == ("cut", rows["b.mp4"].clip_id, "MediaError")
    assert failure.message.startswith(f"{str(gone)!r}: expected a readable file, found ")
    assert failure.message.endswith("; the sample of an earlier run is kept")
    after = samples_of(own.dataset)
    assert after[failure.key] == before[failure.key]
    assert after[rows["a.mp4"].clip_id]["mp4"] != before[rows["a.mp4"].clip_id]["mp4"]
    assert not (own.dataset / "shards.next").exists()

    # It is tried again, and cut as planned when the source is back.
    assert [row.key for row in recut(own).failures] == [failure.key]
    hidden.rename(gone)
    assert recut(own).failures == ()
    assert samples_of(own.dataset)[failure.key]["mp4"] != before[failure.key]["mp4"]


def test_a_source_that_vanished_fails_a_clip_that_was_never_cut(own: Any) -> None:
    remove_shards(own.dataset)
    (own.videos / "b.mp4").unlink()
    selection = recut(own)
    rows = {Path(row.uri).name: row for row in selection.rows}
    assert (rows["a.mp4"].accepted, rows["a.mp4"].failure) == (True, None)
    assert (rows["b.mp4"].accepted, rows["b.mp4"].shard, rows["b.mp4"].reasons) == (False, None, ())
    assert str(rows["b.mp4"].failure).startswith("MediaError: ")
    assert set(samples_of(own.dataset)) == {rows["a.mp4"].clip_id}


def test_a_source_out_of_reach_at_intake_takes_nothing_away(own: Any, tmp_path: Path) -> None:
    before = samples_of(own.dataset)
    for name in ("a.mp4", "b.mp4"):
        (own.videos / name).unlink()
    names = tmp_path / "videos.txt"
    names.write_text("".join(f"{own.videos / name}\n" for name in ("a.mp4", "b.mp4")))
    store = Store(str(own.dataset))
    selection = jobs.curate([str(names)], store, load_dataset(store).config, InlineExecutor)
    assert [row.accepted for row in selection.rows] == [True, True]
    assert {row.status for row in load_ingested(store)} == {"planned"}
    assert samples_of(own.dataset) == before


def test_samples_move_between_shards_before_anything_is_removed(own: Any) -> None:
    """Both sources are gone, and the new plan puts both clips into one shard."""
    before = samples_of(own.dataset)
    for name in ("a.mp4", "b.mp4"):
        (own.videos / name).unlink()
    selection = recut(own, "shards.max_samples=10")
    assert {row.shard for row in selection.rows} == {"train-000000"}
    assert samples_of(own.dataset) == before
    assert len(list(own.dataset.glob("shards/*.tar"))) == 1


def test_a_replaced_file_never_gets_the_masks_of_the_old_one(own: Any) -> None:
    remove_shards(own.dataset)
    changed = own.videos / "b.mp4"
    facts = changed.stat()
    shutil.copy(own.videos / "a.mp4", changed)
    os.utime(changed, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    selection = recut(own)
    rows = {Path(row.uri).name: row for row in selection.rows}
    assert rows["b.mp4"].failure == (
        f"MediaError: {str(changed)!r}: the file has changed since it was measured; "
        "`talkforge curate` measures it anew"
    )
    assert set(samples_of(own.dataset)) == {rows["a.mp4"].clip_id}


def test_a_file_that_was_touched_is_the_same_file(own: Any) -> None:
    for name in ("a.mp4", "b.mp4"):
        os.utime(own.videos / name)
    assert recut(own).failures == ()


def test_a_source_is_opened_once_for_all_its_clips(
    film: tuple[Path, Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, video = film
    other = write_media(
        tmp_path / "b.mkv", Pictures(steady(50), first_number=60), Sounds([(0, 2)], hz=48_000)
    )
    second = probe(other, Input(uri=str(other)), content_hash(other))
    store = Store(str(tmp_path / "set"))
    spans = [(video, 0.0), (second, 0.2), (video, 0.4), (second, 0.6), (video, 0.8)]
    orders = {}
    for source, start_s in spans:
        clip = clip_of(source, start_s, start_s + 1, 25.0)
        store_arrays(store, clip)
        orders[clip.clip_id] = order_of(source, clip)
    opened: list[str] = []

    @contextlib.contextmanager
    def local_video(of: Store, video: Video, stamp: str) -> Iterator[Path]:
        opened.append(Path(video.uri).name)
        with real(of, video, stamp) as path:
            yield path

    real = cut.local_video
    monkeypatch.setattr(cut, "local_video", local_video)
    plan = [ShardPlan("train-000000", tuple(orders), "f")]
    (result,) = cut.cut_shards(store, plan, orders, ShardConfig(), InlineExecutor())
    assert opened == ["a.mkv", "b.mkv"]
    assert (result.keys, result.failures, result.kept) == (tuple(orders), (), ())
    found = list(read_samples(store, "shards.next/train-000000.tar"))
    assert [key for key, _ in found] == list(orders)
    key, order = list(orders.items())[3]
    assert dict(found)[key] == cut.cut(store, order, other, ShardConfig())


class Several(InlineExecutor):
    """An executor that says it has two workers, and notes what it is given."""

    num_workers = 2

    def __init__(self) -> None:
        self.names: list[list[str]] = []

    def isolate(self, function: Any, pieces: Any, give_up: Any, on_running: Any = None) -> Iterator[Any]:
        pieces = list(pieces)
        self.names.append([piece.name for piece in pieces])
        yield from super().isolate(function, pieces, give_up, on_running)


def test_several_workers_share_a_shard_and_write_the_bytes_of_one(
    film: tuple[Path, Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, video = film
    one, several = Store(str(tmp_path / "one")), Store(str(tmp_path / "several"))
    orders = {}
    for start_s in (0.0, 0.2, 0.4, 0.6, 0.8):
        clip = clip_of(video, start_s, start_s + 1, 25.0)
        for store in (one, several):
            store_arrays(store, clip)
        orders[clip.clip_id] = order_of(video, clip)
    keys = tuple(orders)
    plan = [ShardPlan("train-000000", keys[2::-1], "f"), ShardPlan("train-000001", keys[3:], "g")]
    monkeypatch.setattr(cut, "PIECE_S", 2.0)
    for per_worker, expected in (
        (1, [[f"{keys[2]}-2", f"{keys[0]}-1"], ["shard train-000001"]]),
        (2, [[f"{keys[2]}-2", f"{keys[0]}-1", "shard train-000001"]]),
    ):
        several.delete_folder("shards.next")
        monkeypatch.setattr(cut, "PIECES_PER_WORKER", per_worker)
        executor = Several()
        told: list[int] = []
        found = cut.cut_shards(
            several, plan, orders, ShardConfig(), executor, lambda done, _, told=told: told.append(done)
        )
        assert executor.names == expected
        assert found == cut.cut_shards(one, plan, orders, ShardConfig(), InlineExecutor())
        for number in (0, 1):
            name = f"shards.next/train-00000{number}.tar"
            assert several.read(name) == one.read(name)
        assert [name for name in several.list("shards.next") if "pieces" in name] == []
        assert sorted(set(told)) == [0, 2, 3, 5]


def test_clips_of_a_video_that_is_fetched_are_cut_by_one_task(
    film: tuple[Path, Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, video = film
    remote = video.model_copy(update={"uri": "s3://bucket/a.mkv"})
    monkeypatch.setattr(cut, "PIECE_S", 1.0)
    plan, store = ShardPlan("train-000000", (), "f"), Store(str(tmp_path))
    for source, expected in ((video, [1, 1, 1]), (remote, [3])):
        orders = tuple(
            order_of(source, clip_of(source, start_s, start_s + 1, 25.0)) for start_s in (0.0, 0.4, 0.8)
        )
        pieces = cut.CutTask(store, plan, orders, ShardConfig()).pieces()
        assert [len(piece.orders) for piece in pieces] == expected
        assert [piece.whole for piece in pieces] == [len(pieces) == 1] * len(pieces)


def test_a_remote_video_is_fetched_once_for_all_of_its_clips_in_a_shard(
    film: tuple[Path, Video], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, video = film
    fsspec.filesystem("memory").pipe_file("/footage/a.mkv", path.read_bytes())
    remote, fetched = video.model_copy(update={"uri": "memory://footage/a.mkv"}), []
    copy = timelines.local_copy
    monkeypatch.setattr(timelines, "local_copy", lambda uri, *a: fetched.append(uri) or copy(uri, *a))
    monkeypatch.setattr(cut, "PIECE_S", 0.5)
    plan = []
    orders: dict[str, Order] = {}
    store = Store(str(tmp_path / "set"))
    for number, starts_s in enumerate([(0.0, 0.2, 0.4), (0.6, 0.8)]):
        clips = [clip_of(remote, start_s, start_s + 1, 25.0) for start_s in starts_s]
        plan.append(ShardPlan(f"train-00000{number}", tuple(clip.clip_id for clip in clips), f"f{number}"))
        for clip in clips:
            store_arrays(store, clip)
            orders[clip.clip_id] = order_of(remote, clip)
    found = cut.cut_shards(store, plan, orders, ShardConfig(), Several())
    assert [len(shard.keys) for shard in found] == [3, 2]
    assert fetched == [remote.uri] * 2


# ----------------------------------------------------------------------- what hangs or crashes


class Dividing(InlineExecutor):
    """An executor in which every task with the clip `bad` fails, as its worker dies of it."""

    def __init__(self, bad: str) -> None:
        self.bad = bad
        self.names: list[str] = []

    def isolate(self, function: Any, pieces: Any, give_up: Any, _: Any = None) -> Iterator[Any]:
        queue = list(pieces)
        while queue:
            task = queue.pop(0)
            self.names.append(task.name)
            if all(order.key != self.bad for order in task.orders):
                yield function(task)
            elif halves := task.halves():
                queue += halves
            else:
                yield give_up(task, TimeoutError("cancelled at its deadline of 300 s"))


def test_a_clip_that_hangs_costs_that_clip(film: tuple[Path, Video], tmp_path: Path) -> None:
    path, video = film
    store = Store(str(tmp_path / "set"))
    orders = {}
    for start_s in (0.0, 0.2, 0.4, 0.6, 0.8):
        clip = clip_of(video, start_s, start_s + 1, 25.0)
        store_arrays(store, clip)
        orders[clip.clip_id] = order_of(video, clip)
    keys = list(orders)
    executor = Dividing(bad=keys[3])
    plan = [ShardPlan("train-000000", tuple(keys), "f")]
    told: list[int] = []
    (result,) = cut.cut_shards(
        store, plan, orders, ShardConfig(), executor, lambda done, _running: told.append(done)
    )
    assert executor.names == [
        "shard train-000000",
        *(f"{keys[0]}-2", f"{keys[2]}-3", f"{keys[2]}-1", f"{keys[3]}-2", f"{keys[3]}-1", f"{keys[4]}-1"),
    ]
    assert result.keys == (*keys[:3], keys[4])
    (failure,) = result.failures
    assert (failure.stage, failure.key, failure.error) == ("cut", keys[3], "TimeoutError")
    assert failure.message == "cancelled at its deadline of 300 s"
    found = dict(read_samples(store, "shards.next/train-000000.tar"))
    assert found == {key: cut.cut(store, orders[key], path, ShardConfig()) for key in result.keys}
    assert told == [0, 2, 3, 4, 5]


def test_what_a_task_takes_counts_what_it_fetches(film: tuple[Path, Video], tmp_path: Path) -> None:
    _, video = film
    remote = video.model_copy(update={"uri": "s3://bucket/a.mkv"})
    plan, store = ShardPlan("train-000000", (), "f"), Store(str(tmp_path))
    for source, expected_s in ((video, 2.0), (remote, 4.0)):
        orders = tuple(
            order_of(source, clip_of(source, start_s, start_s + 1, 25.0)) for start_s in (0.0, 0.4)
        )
        assert cut.CutTask(store, plan, orders, ShardConfig()).duration_s == pytest.approx(expected_s)
