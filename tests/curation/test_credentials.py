"""Content credentials: what signed files say of training, read from files that c2pa itself has signed."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from talkforge.curation.credentials import stated, training_mining
from tests.content_credentials import sign
from tests.media_files import Pictures, steady, write_media

CAWG, C2PA = "cawg.training-mining", "c2pa.training-mining"
NO, ASK, YES = {"use": "notAllowed"}, {"use": "constrained", "constraint_info": "ask us"}, {"use": "allowed"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("c2pa", reason="the extra c2pa is not installed")
    return write_media(tmp_path_factory.mktemp("credentials") / "plain.mp4", Pictures(steady(5)))


def entries(**uses: Any) -> dict[str, Any]:
    return {"entries": {f"cawg.{name}": answer for name, answer in uses.items()}}


def test_each_use_has_its_answer(plain: Path, tmp_path: Path) -> None:
    said = entries(ai_generative_training=NO, data_mining=ASK, ai_inference=YES)
    path = sign(plain, tmp_path / "signed.mp4", {CAWG: said})
    found = "ai_generative_training=notAllowed ai_inference=allowed data_mining=constrained"
    assert training_mining(path) == found
    # A file that was changed after signing, or has another name, reserves what it did.
    data = bytearray(path.read_bytes())
    data[data.index(b"mdat") + 8] ^= 1
    for name in ("changed.mp4", "no_suffix", "wrong.mkv"):
        (tmp_path / name).write_bytes(data)
        assert training_mining(tmp_path / name) == found, name


def test_labels_of_earlier_specifications_are_known(plain: Path, tmp_path: Path) -> None:
    old = {"entries": {"c2pa.ai_training": NO, "c2pa.data_mining": YES}}
    path = sign(plain, tmp_path / "old.mp4", {C2PA: old})
    assert training_mining(path) == "ai_training=notAllowed data_mining=allowed"


def test_files_without_an_answer_give_none(plain: Path, tmp_path: Path) -> None:
    assert training_mining(plain) == ""
    other = sign(plain, tmp_path / "other.mp4", {"org.example.note": {"text": "hello"}})
    assert training_mining(other) == ""
    matroska = write_media(tmp_path / "a.mkv", Pictures(steady(5)))
    assert training_mining(matroska) == ""


def test_an_edited_file_has_the_reservation_of_its_origin(plain: Path, tmp_path: Path) -> None:
    origin = sign(plain, tmp_path / "origin.mp4", {CAWG: entries(data_mining=NO)})
    silent = sign(plain, tmp_path / "silent.mp4", {}, parent=origin)
    assert training_mining(silent) == "data_mining=notAllowed"
    freed = sign(plain, tmp_path / "freed.mp4", {CAWG: entries(data_mining=YES)}, parent=origin)
    assert training_mining(freed) == "data_mining=allowed"


def test_credentials_elsewhere_are_not_fetched(plain: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.c2pa"
        path = sign(plain, tmp_path / "remote.mp4", {CAWG: entries(data_mining=NO)}, url=url)
        assert training_mining(path) == "remote"
        with pytest.raises(TimeoutError):
            server.accept()


def test_damaged_credentials_are_not_taken_for_none(plain: Path, tmp_path: Path) -> None:
    path = sign(plain, tmp_path / "signed.mp4", {CAWG: entries(data_mining=NO)})
    data = path.read_bytes()
    begin = data.index(b"jumb") + 60
    path.write_bytes(data[:begin] + bytes(400) + data[begin + 400 :])
    assert training_mining(path) == "unreadable"


@pytest.mark.parametrize(
    ("assertions", "found"),
    [
        ([], ""),
        ([{"label": CAWG}], ""),
        ([{"label": CAWG, "data": "x"}], ""),
        ([{"label": CAWG, "data": {"entries": []}}], ""),
        ([{"label": CAWG, "data": {"cawg.data_mining": NO}}], "data_mining=notAllowed"),  # without `entries`
        ([{"label": CAWG, "data": entries(data_mining={"use": "perhaps"})}], "data_mining=notAllowed"),
        ([{"label": CAWG, "data": entries(data_mining=7)}], "data_mining=notAllowed"),
        ([{"label": CAWG, "data": entries(**{"a b=c <script>": NO})}], ""),  # not one of the four
        (
            [{"label": CAWG, "data": entries(data_mining=YES)},
             {"label": f"{CAWG}__1", "data": entries(data_mining=ASK)}],
            "data_mining=constrained",
        ),
    ],
)  # fmt: skip
def test_only_known_uses_are_taken_and_the_strictest_answer(assertions: list[Any], found: str) -> None:
    assert stated({"active_manifest": "a", "manifests": {"a": {"assertions": assertions}}}) == found
    assert stated({"manifests": {"a": {"assertions": assertions}}}) == found


def test_a_video_that_was_cut_off_may_have_lost_its_credentials(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    shutil.copy(plain, path)
    with path.open("r+b") as file:
        file.truncate(plain.stat().st_size * 2 // 3)
    assert training_mining(path) == "unreadable"
