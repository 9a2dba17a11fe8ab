"""A timeline is built once and read from the data set afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from talkforge.curation.media import timeline_files
from talkforge.curation.media.probe import content_hash, probe
from talkforge.pipeline.store import Store
from talkforge.pipeline.timelines import local_video
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.records import Input, Video
from tests.media_files import Pictures, Sounds, steady, write_media


@pytest.fixture
def video(tmp_path: Path) -> Video:
    path = write_media(tmp_path / "a.mp4", Pictures(steady(50)), Sounds([(0, 2)], codec="aac"))
    return probe(path, Input(uri=str(path)), content_hash(path))


def test_it_is_kept_and_used_instead_of_the_packets(
    tmp_path: Path, video: Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "set"))
    with local_video(store, video) as path:
        built = timeline_files.timeline_of(path, video.uri)
    stored = store.read(f"timelines/{video.video_id}.npz")
    timeline_files._KNOWN.clear()
    monkeypatch.setattr(timeline_files, "_read", lambda *_: pytest.fail("the packets are read again"))
    with local_video(store, video) as path:
        read = timeline_files.timeline_of(path, video.uri)
    assert timeline_files.to_bytes(read) == timeline_files.to_bytes(built) == stored
    assert np.array_equal(read.time_s, built.time_s)


def test_a_damaged_one_is_built_again(tmp_path: Path, video: Video) -> None:
    store, name = Store(str(tmp_path / "set")), f"timelines/{video.video_id}.npz"
    with local_video(store, video):
        pass
    whole = store.read(name)
    store.write(name, whole[: len(whole) // 2])
    timeline_files._KNOWN.clear()
    with local_video(store, video):
        pass
    assert store.read(name) == whole


def test_another_version_is_refused(video: Video, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_files, "VERSION", 2)
    data = timeline_files.to_bytes(timeline_files.timeline_of(Path(video.uri), video.uri))
    monkeypatch.undo()
    with pytest.raises(DatasetError, match=r"^timelines/x\.npz: expected timeline version 1, found 2$"):
        timeline_files.from_bytes(data, "timelines/x.npz")
