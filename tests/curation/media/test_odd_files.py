"""Odd files with known truth: bar codes give each frame's number, and the base's audio its place in time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest

from talkforge.curation.audio.track import choose_audio
from talkforge.curation.media import read_audio, read_frames
from talkforge.curation.media.probe import probe
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.records import Input, Video

FPS = 25.0

CELLS, CELL_PX = 12, 16


class Case(NamedTuple):
    """What is true of a file: frame numbers in the order of display, and what the probe has to say."""

    numbers: list[int]
    facts: Mapping[str, object] = MappingProxyType({})


ALL = list(range(200))

CASES = {
    "00_plain.mp4": Case(ALL),
    "03_h264_bframes.avi": Case(ALL),
    "04_ts_joined_reset.ts": Case(ALL, {"repaired_joins": 1}),
    "06_ts_jump_1000s.ts": Case(ALL, {"repaired_joins": 1}),
    "16_hlg_bt2020.mp4": Case(ALL, {"hdr": "hlg"}),
    "18_interlaced.mp4": Case(ALL, {"interlaced": True}),
    "20_antiphase.mp4": Case(ALL, {"audio_channel": "left"}),
    "22_two_tracks_first_silent.mkv": Case(ALL, {"audio_track": 1, "audio_tracks": 2}),
    "29_freeze_2s.mkv": Case([*range(75), *range(125, 200)], {"gaps_s": pytest.approx((3.0, 5.0))}),
    "33_sound_ends_early.mp4": Case(ALL, {"audio_end_s": pytest.approx(3.0, abs=0.03)}),
    "46_hls_overlap.ts": Case(ALL, {"repaired_repeats": 6}),
    "62_vflip_upright.mp4": Case(ALL, {"mirrored": True, "rotation_deg": 0}),
    "63_hflip_selfie.mp4": Case(ALL, {"mirrored": True, "rotation_deg": 180}),
}


@pytest.fixture(scope="module")
def cases_dir(clips_dir: Path) -> Path:
    folder = clips_dir.with_name("cases")
    if not folder.is_dir():
        pytest.skip("the odd files are not here")
    return folder


def probed(path: Path) -> Video:
    return choose_audio(path, probe(path, Input(uri=path.name), "a" * 64))


def number_of(rgb: Bytes) -> int:
    """The frame number in the bar code at the top left; the first cell is white and the last black."""
    centre = slice(CELL_PX // 4, CELL_PX * 3 // 4)
    cells = [rgb[centre, CELL_PX * k : CELL_PX * (k + 1)][:, centre].mean() > 128 for k in range(CELLS)]
    assert cells[0] and not cells[-1], "no bar code"
    return int("".join(str(int(cell)) for cell in cells[1:-1]), 2)


def lag_s(found: Floats, base: Floats, start_s: float, hz: int) -> float:
    """How much later than in the base the audio lies that is found at `start_s`; up to 0.4 s either way."""
    reach = round(0.4 * hz)
    first = max(0, round(start_s * hz) - reach)
    field = base[first : round(start_s * hz) + len(found) + reach]
    scores = np.correlate(field, found, "valid")
    return round(start_s * hz) / hz - (first + int(np.argmax(np.abs(scores)))) / hz


@pytest.mark.parametrize("name", CASES)
def test_every_frame_is_shown_once_in_order_and_the_repair_is_told(name: str, cases_dir: Path) -> None:
    path, case = cases_dir / name, CASES[name]
    video = probed(path)
    found = [number_of(frame.rgb(video.coded_width_px)) for frame in read_frames(path, video)]
    assert found == case.numbers
    assert {key: getattr(video, key) for key in case.facts} == case.facts
    if name in ("00_plain.mp4", "03_h264_bframes.avi"):
        assert (video.repaired_outliers, video.repaired_repeats, video.repaired_joins) == (0, 0, 0)


@pytest.mark.parametrize("name", [name for name in CASES if name != "33_sound_ends_early.mp4"])
def test_sound_and_picture_agree_in_every_second(name: str, cases_dir: Path) -> None:
    hz = 16_000
    base_path = cases_dir / "00_plain.mp4"
    base_video = probed(base_path)
    base = read_audio(base_path, base_video, 0.0, base_video.end_s, hz)
    path = cases_dir / name
    video = probed(path)
    for frame in read_frames(path, video):
        number = number_of(frame.rgb(video.coded_width_px))
        if number % 25 != 12 or not 0 < number < 190:
            continue
        heard = read_audio(path, video, frame.time_s - 0.25, frame.time_s + 0.25, hz)
        error_s = lag_s(heard, base, number / FPS - 0.25, hz)
        assert abs(error_s) <= 1 / FPS, f"frame {number}: audio is {error_s * 1000:.0f} ms off"


@pytest.mark.parametrize(
    "name", [*CASES, "61_turned_phone.ts", "70_grid_plain.mkv", "71_grid_wild.mkv", "72_grid_repeats.mkv"]
)
def test_a_frame_is_the_same_wherever_reading_begins(name: str, cases_dir: Path) -> None:
    path = cases_dir / name
    video = probed(path)

    def shown(start_s: float, end_s: float) -> dict[float, tuple[float, bytes]]:
        return {
            round(frame.time_s, 6): (round(frame.until_s, 6), frame.rgb(longest_edge_px=64).tobytes())
            for frame in read_frames(path, video, start_s, end_s)
        }

    whole = shown(video.start_s, video.end_s)
    for start_s in np.arange(video.start_s, video.end_s, 0.73).tolist():
        part = shown(start_s, start_s + 0.5)
        assert part == {time_s: whole[time_s] for time_s in part}


@pytest.mark.parametrize("name", ["71_grid_wild.mkv", "72_grid_repeats.mkv"])
def test_wild_and_repeated_timestamps_give_the_frames_of_the_plain_file(name: str, cases_dir: Path) -> None:
    def shown(path: Path) -> list[tuple[float, bytes]]:
        frames = read_frames(path, probed(path))
        return [(round(frame.time_s, 3), frame.rgb(longest_edge_px=64).tobytes()) for frame in frames]

    assert shown(cases_dir / name) == shown(cases_dir / "70_grid_plain.mkv")


def test_a_frame_of_another_size_keeps_its_shape(cases_dir: Path) -> None:
    path = cases_dir / "61_turned_phone.ts"
    video = probed(path)
    frames = [frame for frame in read_frames(path, video) if frame.coded_size == (448, 448)]
    rgb = frames[0].rgb()
    lines = np.flatnonzero(rgb.max(axis=(1, 2)) > 8)
    assert (video.width_px, video.height_px) == (252, 448)
    assert lines[-1] - lines[0] + 1 == pytest.approx(252, abs=4)
