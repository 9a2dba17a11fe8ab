"""The plan covers every second once, and does not depend on anything but the videos."""

from __future__ import annotations

import pytest

from pipeline.parts import Part, plan, windows_of
from schemas.records import Video


def video(number: int, seconds: float, start_s: float = 0.0) -> Video:
    return Video(
        video_id=f"{number:012x}", sha256=f"{number:064x}", uri=f"{number}.mp4", num_bytes=1, container="mp4",
        video_codec="h264", pixel_format="yuv420p", width_px=64, height_px=64, coded_width_px=64,
        coded_height_px=64, rotation_deg=0, sample_aspect_ratio=1.0, fps=25.0, fps_nominal=25.0,
        start_s=start_s, end_s=start_s + seconds,
    )  # fmt: skip


def test_short_videos_share_a_part_until_it_is_full() -> None:
    parts = plan([video(i, 200.0) for i in range(7)], 600.0)
    assert [part.name for part in parts] == ["000000", "000001", "000002"]
    assert [len(part.windows) for part in parts] == [3, 3, 1]


@pytest.mark.parametrize("seconds", [0.04, 599.9, 600.0, 600.1, 7200.0])
def test_windows_cover_a_video_exactly(seconds: float) -> None:
    windows = windows_of(video(1, seconds, start_s=0.85), 600.0)
    assert windows[0].start_s == 0.85
    assert windows[-1].end_s == 0.85 + seconds
    assert all(a.end_s == b.start_s for a, b in zip(windows, windows[1:], strict=False))
    assert all(window.duration_s <= 600.0 + 1e-6 for window in windows)


def test_later_parts_are_numbered_after_the_first() -> None:
    assert [part.name for part in plan([video(1, 10.0)], 600.0, first_number=12)] == ["000012"]


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert plan([], 600.0) == []


def test_halves_hold_the_same_windows() -> None:
    (part,) = plan([video(i, 100.0) for i in range(3)], 600.0)
    first, second = part.halves()
    assert (first.name, second.name) == ("000000-0", "000000-1")
    assert (*first.windows, *second.windows) == part.windows
    assert isinstance(first, Part)
    assert (len(first.windows), len(second.windows)) == (1, 2)
