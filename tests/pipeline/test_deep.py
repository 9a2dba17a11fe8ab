"""`verify --deep`: clips against their sources, with errors of known size and on odd files of known truth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from talkforge.curation import media
from talkforge.pipeline import cut, deep, snapshots, tables
from talkforge.pipeline.dataset import load_ingested
from talkforge.pipeline.deep import SecondError, measure_errors
from talkforge.pipeline.shards import read_samples
from talkforge.pipeline.store import Store
from talkforge.schemas import sample
from talkforge.schemas.arrays import Floats
from talkforge.schemas.records import Clip, Video
from tests.command_line import run
from tests.conftest import Curated
from tests.curation.media.test_odd_files import FPS, cases_dir, lag_s, number_of, probed  # noqa: F401


def clip_of(video: Video, start_s: float, num_frames: int, fps: float = 25.0) -> Clip:
    width_px, height_px = media.clip_size(video, 1024)
    return Clip(
        clip_id="k",
        video_id=video.video_id,
        uri=video.uri,
        scene=0,
        track=0,
        start_s=start_s,
        end_s=start_s + num_frames / fps,
        fps=fps,
        num_frames=num_frames,
        width_px=width_px,
        height_px=height_px,
    )


def cut_from(path: Path, video: Video, clip: Clip, folder: Path, audio_late_s: float = 0.0) -> bytes:
    """The mp4 member of a clip, whose audio is taken from that much later in the source."""
    start_s = clip.start_s + audio_late_s
    audio = media.read_audio(path, video, start_s, start_s + clip.duration_s, 48_000, 2)
    out = folder / "clip.mp4"
    media.encode_mp4(out, cut._frames(path, video, clip), clip.fps, audio, 18, "veryfast")
    return out.read_bytes()


@pytest.fixture
def take(measured: Curated) -> tuple[Path, Video]:
    row = next(row for row in load_ingested(Store(str(measured.dataset))) if row.input.uri.endswith("a.mp4"))
    assert row.video is not None
    return Path(row.input.uri), row.video


def test_clips_that_were_cut_lie_where_their_sources_say(measured: Curated) -> None:
    found = deep.deep(Store(str(measured.dataset)), 0)
    num_clips = sum(shard.count for shard in snapshots.current(Store(str(measured.dataset))).shards)
    assert (found.compared, found.clips, found.sources) == (num_clips, num_clips, 2)
    assert (found.problems, found.unreachable, found.frame_s) == ((), {}, 0.0)
    assert found.audio_s <= 0.001 and found.av_s <= 0.001
    assert found.line() == (
        f"deep: {num_clips} of {num_clips} clips against 2 sources: frames at most 0 ms off, audio 0 ms, "
        "A/V error 0 ms"
    )


@pytest.mark.parametrize("late_frames", [-6, -2, 0, 1, 5])
def test_a_clip_cut_elsewhere_is_found_where_it_was_cut(
    take: tuple[Path, Video], tmp_path: Path, late_frames: int
) -> None:
    path, video = take
    clip = clip_of(video, 1.0, 50)
    moved = clip_of(video, 1.0 + late_frames / 25, 50)
    errors = measure_errors(cut_from(path, video, moved, tmp_path), clip, path, video)
    assert [error.second for error in errors] == [0, 1]
    for error in errors:
        assert error.frame_s == pytest.approx(late_frames / 25)
        assert error.audio_s == pytest.approx(late_frames / 25, abs=0.001)


@pytest.mark.parametrize("late_s", [-0.2, -0.05, 0.05, 0.24])
def test_audio_from_elsewhere_is_an_av_error_of_that_size(
    take: tuple[Path, Video], tmp_path: Path, late_s: float
) -> None:
    path, video = take
    clip = clip_of(video, 1.0, 50)
    errors = measure_errors(cut_from(path, video, clip, tmp_path, late_s), clip, path, video)
    assert [error.frame_s for error in errors] == [0.0, 0.0]
    assert [error.av_s for error in errors] == [pytest.approx(-late_s, abs=0.001)] * 2
    (first, *_) = deep._wrong(errors[0], clip)
    assert first == f"second 0: audio: expected at most 40 ms, found {late_s * 1000:+.0f} ms"


def test_what_is_not_known_is_no_error() -> None:
    assert SecondError(0, None, 0.01).av_s is None and SecondError(0, 0.01, None).av_s is None
    assert deep._largest(iter([None, -0.2, 0.1])) == 0.2 and deep._largest(iter([])) == 0.0


def test_another_sound_is_a_problem(take: tuple[Path, Video], tmp_path: Path) -> None:
    path, video = take
    clip = clip_of(video, 1.0, 25)
    noise: Floats = np.random.default_rng(0).normal(0, 0.1, (48_000, 2)).astype(np.float32)
    out = tmp_path / "clip.mp4"
    media.encode_mp4(out, cut._frames(path, video, clip), clip.fps, noise, 18, "veryfast")
    with pytest.raises(
        deep.MediaError, match=r"^second 0: its audio is not in the source \(similarity 0\.\d"
    ):
        measure_errors(out.read_bytes(), clip, path, video)


def test_a_source_that_changed_is_told_and_one_that_is_away_is_no_damage(
    curated: Curated, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(curated.videos, videos)
    store = Store(str(curated.dataset))
    rows = [
        row.model_copy(
            update={"input": row.input.model_copy(update={"uri": f"{videos}/{Path(row.input.uri).name}"})}
        )
        for row in load_ingested(store)
    ]
    tables.write(store, "intake.parquet", type(rows[0]), rows)
    (videos / "a.mp4").write_bytes((videos / "b.mp4").read_bytes())
    (videos / "b.mp4").unlink()
    found = deep.deep(store, 0)
    (reason,) = found.unreachable.values()
    assert list(found.unreachable) == [f"{videos}/b.mp4"] and "found no such file" in reason
    assert found.sources == 1 and found.compared >= 1
    assert {problem.what.partition(":")[0] for problem in found.problems} == {"its source has changed"}
    assert ", 1 sources cannot be read now: frames" in found.line()


def test_the_command_tells_the_figures(curated: Curated) -> None:
    code, told, _ = run("verify", curated.dataset, "--deep", "--clips", "1", "--json")
    document = json.loads(told)
    assert (code, document["ok"], document["deep"]["compared"], document["deep"]["sources"]) == (
        0,
        True,
        1,
        1,
    )
    assert document["deep"]["clips"] > 1 and document["deep"]["av_s"] <= 0.001
    store = Store(str(curated.dataset))
    snapshot = snapshots.current(store)
    store.write(snapshot.tar(snapshot.shards[0]), b"damaged")
    code, told, _ = run("verify", curated.dataset, "--deep")
    assert code == 3 and told.endswith("deep: not compared, because of the damage\n")


def test_samples_of_one_source_fetch_it_once(measured: Curated, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(measured.dataset))
    fetched, local_copy = [], deep.local_copy
    monkeypatch.setattr(deep, "local_copy", lambda uri, *rest: fetched.append(uri) or local_copy(uri, *rest))
    monkeypatch.setattr(deep, "measure_errors", lambda *_: [])
    deep.deep(store, 0)
    snapshot = snapshots.current(store)
    keys = [key for shard in snapshot.shards for key, _ in read_samples(store, snapshot.tar(shard))]
    assert len(fetched) == len({key.partition("_")[0] for key in keys})
    assert all(sample._KEY.fullmatch(key) for key in keys)


def test_a_cropped_clip_is_compared_with_its_part_of_the_source(
    take: tuple[Path, Video], tmp_path: Path
) -> None:
    path, video = take
    crop = {"crop_left_px": 32.0, "crop_top_px": 16.0, "crop_width_px": 160.0, "crop_height_px": 160.0}
    clip = clip_of(video, 1.0, 50).model_copy(update={**crop, "width_px": 160, "height_px": 160})
    moved = clip.model_copy(update={"start_s": 1.12, "end_s": 3.12})
    for cut_clip, late_s in ((clip, 0.0), (moved, 0.12)):
        errors = measure_errors(cut_from(path, video, cut_clip, tmp_path), clip, path, video)
        assert [error.frame_s for error in errors] == [pytest.approx(late_s)] * 2


SPANS_S = {
    "03_h264_bframes.avi": (3.0, 2.0),
    "04_ts_joined_reset.ts": (2.6, 3.0),
    "06_ts_jump_1000s.ts": (2.6, 3.0),
    "29_freeze_2s.mkv": (5.2, 2.0),
    "33_sound_ends_early.mp4": (0.6, 2.0),
    "46_hls_overlap.ts": (2.6, 3.0),
}
"""Start and length of the clip that is cut from a file: across its joins, beside what is frozen or silent."""


@pytest.mark.parametrize("name", SPANS_S)
def test_clips_of_odd_files_are_in_time_in_every_second(
    name: str,
    cases_dir: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    hz = 16_000
    base_path = cases_dir / "00_plain.mp4"
    base_video = probed(base_path)
    base = media.read_audio(base_path, base_video, 0.0, base_video.end_s, hz)
    path = cases_dir / name
    video = probed(path)
    start_s, length_s = SPANS_S[name]
    clip = clip_of(video, video.start_s + start_s, round(length_s * FPS))
    mp4 = cut_from(path, video, clip, tmp_path)
    for error in measure_errors(mp4, clip, path, video):
        assert abs(error.frame_s or 0.0) <= 1 / FPS and abs(error.audio_s or 0.0) <= 0.002, error
    # What is measured against the source is true of the bar code and the base's audio as well.
    cut_path = tmp_path / "clip.mp4"
    cut_video = probed(cut_path)
    audio = media.read_audio(cut_path, cut_video, 0.0, clip.duration_s, hz)
    for frame in media.read_frames(cut_path, cut_video):
        at = round(frame.time_s * FPS)
        if at % 25 != 12:
            continue
        number = number_of(frame.rgb(clip.width_px, clip.height_px))
        piece = audio[round((at / FPS - 0.25) * hz) : round((at / FPS + 0.25) * hz)]
        error_s = lag_s(piece, base, number / FPS - 0.25, hz)
        assert abs(error_s) <= 1 / FPS + 1 / hz, f"second {at // 25}: audio is {error_s * 1000:.0f} ms off"
