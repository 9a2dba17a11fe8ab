"""Small arrays of a part's clips in columnar files: a row for each clip, a column for each array.

`features.parquet` holds what selection looks at: face embedding and fingerprint. `sync_inputs.parquet` holds
the mouth measures and audio bands from which sync can be scored again. Parts that earlier versions wrote have
both in `features.npz`, which is still read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from talkforge.pipeline import tables
from talkforge.pipeline.store import Store
from talkforge.schemas.errors import DatasetError, one_line
from talkforge.schemas.npz import read_npz

Arrays = Mapping[str, NDArray[Any]]

FEATURES, SYNC, OLD = "features.parquet", "sync_inputs.parquet", "features.npz"
"""Files of a part: what selection looks at; what sync is scored from; both, by earlier versions."""

SCORED = ("mouth", "bands", "phones")
"""The arrays that `SYNC` holds."""

_ARRAY = pa.struct([("dtype", pa.string()), ("shape", pa.list_(pa.int64())), ("data", pa.binary())])
"""An array: its bytes in C order, little-endian."""


def to_bytes(clips: Mapping[str, Arrays], names: Iterable[str]) -> bytes:
    """The Parquet file of some arrays; the same arrays give the same bytes.

    Args:
        clips: clip id -> name -> array.
        names: which arrays; each is a column, null where a clip has none.
    """
    columns: dict[str, pa.Array] = {"clip_id": pa.array(list(clips), pa.string())}
    for name in names:
        columns[name] = pa.array([_to_row(arrays.get(name)) for arrays in clips.values()], _ARRAY)
    return tables.to_bytes(pa.table(columns))


def _to_row(array: NDArray[Any] | None) -> dict[str, Any] | None:
    if array is None:
        return None
    plain = np.ascontiguousarray(array)
    plain = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
    return {"dtype": plain.dtype.str, "shape": list(plain.shape), "data": plain.tobytes()}


def files(clips: Mapping[str, Arrays]) -> dict[str, bytes]:
    """Content of the files of a part, by name."""
    clips = {key: _with_opening(arrays) for key, arrays in clips.items()}
    names = sorted({name for arrays in clips.values() for name in arrays if name not in SCORED})
    return {FEATURES: to_bytes(clips, names), SYNC: to_bytes(clips, SCORED)}


OPENING = "opening"
"""The first column of `mouth`, which is a thirtieth of it: opening of the lips in each frame."""


def _with_opening(arrays: Arrays) -> Arrays:
    return {**arrays, OPENING: arrays["mouth"][:, 0]} if "mouth" in arrays else arrays


def read(
    store: Store, folder: str, names: Collection[str] | None = None, clips: Collection[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Clip id -> name -> array, of the clips of a part that have any.

    Args:
        store: the data set.
        folder: of the part.
        names: the arrays that are wanted; None reads all of them.
        clips: ids of the clips that are wanted; None reads all of them.

    Raises:
        DatasetError: a file is missing or damaged; names it.
    """
    found: dict[str, dict[str, Any]] = {}
    wanted = None if clips is None else pa.array(sorted(clips), pa.string())
    for file, held in ((FEATURES, None), (SYNC, SCORED)):
        if names is not None and not any((name in SCORED) == (held is not None) for name in names):
            continue
        name = f"{folder}/{file}"
        try:
            data = store.read(name)
        except DatasetError:
            if not store.exists(f"{folder}/{OLD}"):
                raise
            return _read_old(store, f"{folder}/{OLD}", names, clips)
        table = tables.from_bytes(data, name, None if names is None else ["clip_id", *names])
        if wanted is not None:
            table = table.filter(pc.is_in(table.column("clip_id"), value_set=wanted))
        for column in table.column_names[1:]:
            for key, array in _column(table, column, name):
                found.setdefault(key, {})[column] = array
    return found


def _column(table: pa.Table, column: str, file: str) -> Iterable[tuple[str, NDArray[Any]]]:
    keys = table.column("clip_id").to_pylist()
    for key, row in zip(keys, table.column(column).to_pylist(), strict=True):
        if row is not None:
            try:
                dtype = np.dtype(row["dtype"])
                if dtype.kind not in "biuf":
                    raise ValueError(f"an array of {dtype}")
                yield key, np.frombuffer(row["data"], dtype).reshape(row["shape"])
            except (TypeError, ValueError) as error:
                raise DatasetError(f"{file}: {key}/{column}: {one_line(error)}") from None


def _read_old(
    store: Store, name: str, names: Collection[str] | None, clips: Collection[str] | None
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    wanted = None if names is None else {*names, *(["mouth"] if OPENING in names else [])}

    def is_wanted(key: str) -> bool:
        clip, _, what = key.partition("/")
        return (clips is None or clip in clips) and (wanted is None or what in wanted)

    stored = read_npz(store.read(name), name, wanted=is_wanted)
    for key, array in stored.items():
        clip, _, what = key.partition("/")
        own = found.setdefault(clip, {})
        if what == "mouth" and (names is None or OPENING in names):
            own[OPENING] = array[:, 0].copy()  # a view would keep all of the array
        if names is None or what in names:
            own[what] = array
    return found
