"""Packages that only some uses need, and the extra of Talkforge that installs them."""

from __future__ import annotations

import importlib.util

from talkforge.schemas.errors import MissingExtraError

PACKAGES = {
    "torch": ("torch", "transformers"),
    "train": ("torch", "transformers", "diffusers", "accelerate", "peft", "webdataset"),
    "train-8bit": ("torchao",),
    "decord": ("decord",),
    "dlib": ("dlib",),
    "view": ("flask",),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "sql": ("duckdb",),
    "c2pa": ("c2pa",),
    "rerun": ("rerun",),
    "lance": ("lance",),
}
"""Extra -> the modules that must be there for its use."""


EXTRA_OF_SCHEME = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Scheme of a URI -> the extra that brings fsspec's driver for it."""


def missing(extra: str) -> str | None:
    """The first module of an extra that is not installed; None where all are."""
    return next((name for name in PACKAGES[extra] if not _is_installed(name)), None)


def require(extra: str, use: str) -> None:
    """See that what an extra brings is installed, without importing it.

    Args:
        extra: key of `PACKAGES`.
        use: what needs it, for the message.

    Raises:
        MissingExtraError: a package is not there; one line, with the command that installs it.
    """
    if (name := missing(extra)) is not None:
        raise MissingExtraError(f"{use} needs the package {name}: pip install 'talkforge[{extra}]'")


def require_driver(uri: str) -> None:
    """See that fsspec's driver for a URI is installed, where an extra brings it.

    Raises:
        MissingExtraError: it is not there.
    """
    if (extra := EXTRA_OF_SCHEME.get(uri.partition("://")[0])) is not None:
        require(extra, uri)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
