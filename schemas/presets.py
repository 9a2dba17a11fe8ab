"""Configuration files by name: the presets that are installed with the package, and files of the user's."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from talkforge.schemas.errors import CommandError, one_line

Kind = Literal["curate", "train", "accelerate"]

log = logging.getLogger(__name__)

FOLDERS: dict[str, Kind] = {".": "curate", "train": "train", "accelerate": "accelerate"}
"""Folders below `configs` and what the files in them configure."""


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file: a preset, or a file of the user's.

    Attributes:
        path: where it lies.
        preset: name of the preset; empty for a file of the user's.
        kind: what a preset configures; None for a file of the user's, which does not say.
    """

    path: Path
    preset: str = ""
    kind: Kind | None = None

    def __str__(self) -> str:
        return f"preset {self.preset}" if self.preset else f"config {self.path}"

    def text(self) -> str:
        """The whole file.

        Raises:
            CommandError: it cannot be read, or is not UTF-8.
        """
        try:
            return self.path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{self}: {one_line(error)}") from None

    @property
    def summary(self) -> str:
        """First sentence of the comment at the top of the file."""
        lines = []
        for line in self.text().splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.removeprefix("#").strip())
        text = " ".join(lines)
        return text.partition(". ")[0].rstrip(".:")


def presets() -> dict[str, ConfigFile]:
    """The presets by name, in the order curation, training, accelerate; each kind sorted by name."""
    configs = Path(str(resources.files("talkforge"))) / "configs"
    return {
        path.stem: ConfigFile(path, path.stem, kind)
        for folder, kind in FOLDERS.items()
        for path in sorted((configs / folder).glob("*.yaml"))
    }


def find_config(name: str | Path, kind: Kind | None = None) -> ConfigFile:
    """The file that a name of a configuration means: a preset such as `offline`, or the path of a file.

    A name without a folder and without `.yaml` is that of a preset, unless a file of that name exists here.

    Args:
        name: name of a preset, or path of a file.
        kind: what is to be configured; a preset of another kind is refused. None: any kind.

    Raises:
        CommandError: no preset has the name and no file exists, or the preset configures something else.
    """
    text, path = str(name), Path(name)
    found = presets().get(text)
    if found and path.is_file():
        log.warning("configuration %s: reads the file of that name, not the preset", text)
        found = None
    if found is None:
        if path.name != text or path.suffix.lower() in (".yaml", ".yml") or path.is_file():
            return ConfigFile(path)
        raise CommandError(f"configuration {text}: {_no_preset(text, kind)}")
    if kind and found.kind != kind:
        expected = ", ".join(name for name, preset in presets().items() if preset.kind == kind)
        raise CommandError(f"configuration {text}: the preset configures {found.kind}, expected {expected}")
    log.info("configuration: %s (%s)", found, found.path)
    return found


def _no_preset(text: str, kind: Kind | None) -> str:
    known = [name for name, found in presets().items() if kind in (None, found.kind)]
    close = difflib.get_close_matches(text, known, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"no preset and no file has this name{meant} (presets: {', '.join(known)})"
