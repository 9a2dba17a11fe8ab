"""Files that are installed beside the code: pages, scripts, templates."""

from __future__ import annotations

import importlib.resources


def package_text(package: str, name: str) -> str:
    """The text of a file in a package.

    Args:
        package: its full name, `talkforge.pipeline.report`.
        name: of the file, in UTF-8.
    """
    return importlib.resources.files(package).joinpath(name).read_text(encoding="utf-8")
