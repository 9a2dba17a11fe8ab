"""Description and unit of every column, from the strings below the records' fields.

`docs/dataset.md`, the metadata of the Parquet files and the axes of the report all come from here.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
from typing import NamedTuple

from talkforge.schemas.records import ClipMeasures, LedgerRow, Record, Video

SUFFIXES = {
    "per_s": "1/s",
    "s": "s",
    "ms": "ms",
    "hz": "Hz",
    "fps": "frames/s",
    "px": "px",
    "deg": "degrees",
    "frames": "frames",
    "bytes": "bytes",
    "dbfs": "dBFS",
    "db": "dB",
    "fraction": "0 to 1",
    "probability": "0 to 1",
    "similarity": "cosine",
    "clips": "clips",
    "videos": "videos",
    "words": "words",
}
"""Unit by the end of a field's name, the longest end first."""

UNITS = {
    "words": "",
    "fps_nominal": "frames/s",
    "sample_aspect_ratio": "ratio",
    "face_confidence": "0 to 1",
    "face_confidence_min": "0 to 1",
    "faces_max": "faces",
    "faces_frame_max": "faces",
    "yaw_p95_deg": "degrees",
    "dnsmos_signal": "about 1 to 5",
    "dnsmos_background": "about 1 to 5",
    "dnsmos_overall": "about 1 to 5",
    "sync_confidence": "see docs/sync.md",
    "sync_zero_confidence": "see docs/sync.md",
    "sync_offset_sd_frames": "frames",
    "sync_c": "SyncNet's confidence",
    "sync_d": "SyncNet's distance",
    "sync_net_offset_frames": "frames at 25/s",
    "words_per_s": "words per second of speech",
    "omega_face_raw": "squared inter-ocular distance",
    "omega_body_raw": "squared shoulder width",
    "omega_face": "0 to 1",
    "omega_body": "0 to 1",
    "camera_motion_per_s": "widths per second",
    "num_blinks": "blinks",
    "blinks_per_min": "blinks per minute",
    "identity_consistency": "cosine",
    "face_blur": "grey levels squared",
    "face_luma": "0 to 255",
    "face_brisque": "about 0 to 100",
}
"""Unit of the fields whose name does not end in it."""


class Column(NamedTuple):
    """What a column holds; `unit` is empty where it has none."""

    description: str
    unit: str


@functools.cache
def columns(model: type[Record]) -> dict[str, Column]:
    """Description and unit of each field, in order; both empty for a field without a string below it.

    A column of the ledger that holds a measurement is described by that measurement's field.

    Args:
        model: a record class whose source is at hand, as it is in every installed package.
    """
    described: dict[str, str] = {}
    if model is LedgerRow:
        for info in ClipMeasures.model_fields.values():
            for part in (info.annotation, *getattr(info.annotation, "__args__", ())):
                if isinstance(part, type) and issubclass(part, Record):
                    described |= _field_strings(part.__module__, part.__name__)
        described = _field_strings(Video.__module__, Video.__name__) | described
    for base in reversed(model.__mro__):
        described |= _field_strings(base.__module__, base.__name__) if issubclass(base, Record) else {}
    return {name: Column(described.get(name, ""), unit_of(name)) for name in model.model_fields}


def unit_of(name: str) -> str:
    """Unit of a field, by its name; empty where it has none.

    Args:
        name: of a field of any record.
    """
    if name in UNITS:
        return UNITS[name]
    ends = [end for end in SUFFIXES if f"_{name}".endswith(f"_{end}")]
    return SUFFIXES[max(ends, key=len)] if ends else ""


def _field_strings(module: str, name: str) -> dict[str, str]:
    return _module_strings(module).get(name, {})


@functools.cache
def _module_strings(module: str) -> dict[str, dict[str, str]]:
    """Class -> field -> the string below it in a module's source, on one line and with null for None."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.ClassDef):
            strings = found.setdefault(node.name, {})
            for field, below in zip(node.body, node.body[1:], strict=False):
                text = below.value if isinstance(below, ast.Expr) else None
                if not isinstance(field, ast.AnnAssign) or not isinstance(text, ast.Constant):
                    continue
                description = re.sub(r"\. None\b", ". Null", " ".join(str(text.value).split()))
                strings[ast.unparse(field.target)] = re.sub(r"\bNone\b", "null", description)
    return found
