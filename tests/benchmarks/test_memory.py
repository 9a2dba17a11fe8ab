from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory import loop
from talkforge.curation.media import encode_mp4, read_audio, read_frames
from talkforge.curation.media.probe import content_hash, probe
from talkforge.schemas.records import Input


def test_a_loop_is_the_film_again_and_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [np.full((64, 96, 3), 8 * k, np.uint8) for k in range(25)]
    sound = np.zeros((48_000, 2), np.float32)
    sound[12_000:24_000] = rng.normal(0, 0.1, (12_000, 2))
    short, long = tmp_path / "short.mp4", tmp_path / "long.mkv"
    encode_mp4(short, frames, 25.0, sound, 18, "veryfast")
    loop(short, long, 4.0)
    video = probe(long, Input(uri=long.name), content_hash(long))
    seen = list(read_frames(long, video))
    assert len(seen) % 25 == 0
    laps = len(seen) // 25
    assert video.duration_s >= 4.0
    starts_s = [seen[25 * lap].time_s for lap in range(laps)]
    lap_s = np.diff(starts_s)
    assert 1.0 <= lap_s[0] < 1.15
    assert lap_s == pytest.approx(np.full(laps - 1, lap_s[0]), abs=2e-3)
    grey = [int(frame.rgb().mean()) for frame in seen]
    assert grey == grey[:25] * laps
    for start_s in starts_s:
        loudness = read_audio(long, video, start_s, start_s + 1.0).reshape(4, -1).std(axis=1)
        assert loudness[1] > 20 * max(loudness[0], loudness[3])


def test_a_file_without_packets_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    with pytest.raises(Exception, match=r"empty\.mp4"):
        loop(empty, tmp_path / "out.mkv", 2.0)
