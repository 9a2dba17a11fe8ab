"""`verify --deep`: clips against their sources, with errors of known size and on odd files of known truth."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from talkforge.curation import media
from talkforge.pipeline import cut, deep, snapshots, tables
from talkforge.pipeline.dataset import load_ingested
from talkforge.pipeline.deep import SecondError, measure_errors
from talkforge.pipeline.parts import footage
from talkforge.pipeline.shards import read_samples
from talkforge.pipeline.store import Store
from talkforge.schemas import sample
from talkforge.schemas.arrays import Floats
from talkforge.schemas.records import Clip, Video
from talkforge.schemas.units import AUDIO_HZ
from tests import records
from tests.command_line import run
from tests.conftest import Curated
from tests.curation.media.test_odd_files import CASES, FPS, cases_dir, lag_s, number_of, probed  # noqa: F401


def clip_of(video: Video, start_s: float, num_frames: int) -> Clip:
    clip = records.clip_of(num_frames, *media.clip_size(video, 1024), start_s)
    return clip.model_copy(update={"video_id": video.video_id, "uri": video.uri})


def cut_from(path: Path, video: Video, clip: Clip, folder: Path, audio_late_s: float = 0.0) -> bytes:
    """The mp4 member of a clip, whose audio is taken from that much later in the source."""
    start_s = clip.start_s + audio_late_s
    audio = media.read_audio(path, video, start_s, start_s + clip.duration_s, 48_000, 2)
    out = folder / "clip.mp4"
    media.encode_mp4(out, cut._frames(path, video, clip), clip.fps, audio, 18, "ultrafast")
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


GRID = ("70_grid_plain.mkv", "71_grid_wild.mkv", "72_grid_repeats.mkv")

UNNUMBERED = ("50_surgical_mask.mp4", "54_still_with_zoom.mp4", "61_turned_phone.ts", *GRID)
"""Files of the odd ones whose frames have no bar code that is read here."""


CUT_S = {"29_freeze_2s.mkv": 5.9, "33_sound_ends_early.mp4": 2.9, **dict.fromkeys(GRID, 2.9)}
"""Seconds of a file that can be cut at least; of the others 7.9."""


def cut_whole(path: Path, video: Video, folder: Path) -> Iterator[tuple[Clip, bytes]]:
    """All footage of a video that a clip may be cut from, each stretch of it as one clip."""
    for start_s, end_s in footage(video):
        clip = clip_of(video, start_s, math.floor((end_s - start_s) * FPS + 1e-6))
        yield clip, cut_from(path, video, clip, folder)


@pytest.fixture(scope="module")
def base_audio(cases_dir: Path) -> Floats:  # noqa: F811
    """Audio of the file that the numbered ones are made from, 16 kHz."""
    path = cases_dir / "00_plain.mp4"
    video = probed(path)
    return media.read_audio(path, video, 0.0, video.end_s)


def test_every_odd_file_is_compared(cases_dir: Path) -> None:  # noqa: F811
    assert {path.name for path in cases_dir.iterdir() if path.suffix != ".md"} == {*CASES, *UNNUMBERED}


@pytest.mark.parametrize("name", [*CASES, *UNNUMBERED])
def test_all_that_can_be_cut_of_odd_files_is_in_time_in_every_second(
    name: str,
    cases_dir: Path,  # noqa: F811
    base_audio: Floats,
    tmp_path: Path,
) -> None:
    path = cases_dir / name
    video = probed(path)
    # What is true of the wild and the repeated timestamps is the plain file's time.
    true_path = cases_dir / GRID[0] if name in GRID else path
    true_video = probed(true_path)
    clips = list(cut_whole(path, video, tmp_path))
    assert sum(clip.duration_s for clip, _ in clips) >= CUT_S.get(name, 7.9)
    for clip, mp4 in clips:
        errors = measure_errors(mp4, clip, true_path, true_video)
        assert len(errors) == int(clip.duration_s)
        for error in errors:
            assert error.frame_s is not None and abs(error.frame_s) <= 1 / FPS, error
            assert abs(error.audio_s or 0.0) <= 0.002, error
        if name in CASES:
            check_numbers(tmp_path, clip, mp4, base_audio)


def check_numbers(folder: Path, clip: Clip, mp4: bytes, base: Floats) -> None:
    """Every frame's bar code against the place of the audio around it in the base, in every second."""
    hz = AUDIO_HZ
    path = folder / "cut.mp4"
    path.write_bytes(mp4)
    video = probed(path)
    audio = media.read_audio(path, video, 0.0, clip.duration_s)
    numbers = [
        number_of(frame.rgb(clip.width_px, clip.height_px)) for frame in media.read_frames(path, video)
    ]
    assert len(numbers) == clip.num_frames
    for second in range(int(clip.duration_s)):
        middle = round((second + 0.5) * FPS)
        piece = audio[round((middle / FPS - 0.25) * hz) : round((middle / FPS + 0.25) * hz)]
        audio_at_s = numbers[middle] / FPS - lag_s(piece, base, numbers[middle] / FPS - 0.25, hz)
        for index in range(round(second * FPS), round((second + 1) * FPS)):
            error_s = numbers[index] / FPS - (audio_at_s + (index - middle) / FPS)
            assert abs(error_s) <= 1 / FPS + 1 / hz, (
                f"second {second}: frame {index} is {error_s * 1000:.0f} ms off"
            )
