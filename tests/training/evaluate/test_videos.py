"""Which videos are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from talkforge.schemas.errors import CommandError
from talkforge.training.evaluate.videos import only_true, pair
from tests.training.shard_files import Shown, members_of, write_set


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_bytes(b"")
    return path


def test_videos_are_paired_by_name_and_the_rest_is_told(tmp_path: Path) -> None:
    made = folder(tmp_path / "made", "a.mp4", "b.mp4", "notes.txt", ".hidden.mp4")
    true = folder(tmp_path / "true", "a.mov", "c.avi")
    found = pair(made, true, tmp_path)
    assert [(one.key, one.generated.name, one.truth.name) for one in found.pairs] == [("a", "a.mp4", "a.mov")]
    assert found.unpaired == {
        "b.mp4": "no true video is called b",
        "c.avi": "no generated video is called c",
    }


def test_clips_of_a_data_set_are_named_by_their_ids(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [[Shown(1), Shown(2)], [Shown(3)]])
    made = folder(tmp_path / "made", "clip03.mp4", "other.mp4")
    scratch = folder(tmp_path / "scratch")
    found = pair(made, tmp_path / "set", scratch)
    assert [one.key for one in found.pairs] == ["clip03"]
    assert found.pairs[0].truth.read_bytes() == members_of(Shown(3))["mp4"]
    assert found.unpaired == {"other.mp4": "no true video is called other"}
    assert [path.name for path in scratch.iterdir()] == ["clip03.mp4"]
    assert [one.key for one in only_true(tmp_path / "set", scratch).pairs] == ["clip01", "clip02", "clip03"]


@pytest.mark.parametrize(
    ("made", "true", "message"),
    [
        (None, ("a.mp4",), r"^--generated .*made: expected a folder of videos, found none$"),
        ((), ("a.mp4",), r"^--generated .*made: expected videos, found none$"),
        (("a.mp4",), ("x.txt",), r"^--reference .*true: expected videos, found none$"),
        (("a.mp4", "a.mkv"), ("a.mp4",), r"expected every name once, found a\.mkv and a\.mp4$"),
        (
            ("a.mp4",),
            ("b.mp4",),
            r"^no video of .*made has a true one in .*: they are paired by name, found a$",
        ),
    ],
)
def test_bad_folders_are_one_line(
    tmp_path: Path, made: tuple[str, ...] | None, true: tuple[str, ...], message: str
) -> None:
    if made is not None:
        folder(tmp_path / "made", *made)
    folder(tmp_path / "true", *true)
    with pytest.raises(CommandError, match=message):
        pair(tmp_path / "made", tmp_path / "true", tmp_path)
