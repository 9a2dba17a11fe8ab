"""Export as a repository of the Hugging Face Hub: the shards, a table of the clips, a card and Croissant.

    README.md                 data card; its head has the files of each split and the type of every column
    TRAINING_SUMMARY.md       what is known for the summary of training content of the EU AI Act
    croissant.json            the same for machines, see `exports.croissant`
    data/<shard>.tar          the shards as they are, linked where the disk allows it
    clips.parquet             a row of the ledger for each clip

`datasets.load_dataset(DIR)` reads the shards, streamed or cached. The table is no configuration of its own,
because all configurations of a repository have one kind of file. The columns have types in the card, so that
none is guessed from the first samples: a column that is null in all of them would get no type.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import yaml

from talkforge.pipeline import tables
from talkforge.pipeline.exports import card, croissant
from talkforge.pipeline.exports.clips import Source
from talkforge.pipeline.exports.folder import Export, ExportFolder
from talkforge.pipeline.exports.shard_indexes import link_shards
from talkforge.schemas import tar
from talkforge.schemas.npz import read_npy

DATA = "data/"
TABLE = "clips.parquet"

MEDIA = {"jpg": "image", "flac": "audio", "mp4": "video", "txt": "string"}
"""Type of a member by the end of its name. Source: the module `webdataset` of datasets."""

ELEMENTS: dict[str, dict[str, Any]] = {
    "reasons": {"code": "", "field": "", "value": 0.0, "threshold": 0.0, "found": ""},
    "models": {"name": "", "sha256": ""},
}
"""What lists of the member `json` hold, as they may be empty in a sample."""


def write(source: Source, folder: ExportFolder) -> Export:
    """Write the repository."""
    files = link_shards(source, folder.store, DATA)
    table = tables.to_bytes(source.clip_rows())
    clips = {split: len(keys) for split, keys in source.keys.items()}
    facts = card.facts_of(source)
    features = features_of(first_sample(source))
    lists = {TABLE: table}
    sizes = {name: file.bytes for name, file in files.items()}
    lists["croissant.json"] = croissant.document(source, facts, files, TABLE, table)
    head = yaml.safe_dump(_head(source, facts, features, sizes), sort_keys=False, allow_unicode=True)
    lists["README.md"] = f"---\n{head}---\n\n{card.page(facts)}".encode()
    lists["TRAINING_SUMMARY.md"] = card.training_summary(facts).encode()
    return folder.close(files, clips, lists)


def first_sample(source: Source) -> dict[str, bytes]:
    """Members of the first sample; every sample of a data set has the same ones."""
    shard = next(iter(source.shards.values()))[0]
    with source.store.open(source.snapshot.tar(shard)) as stream:
        _, members = next(tar.read_samples(stream))
    return members


def features_of(members: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """`dataset_info.features` of the card: name and type of every column that `load_dataset` gives.

    Args:
        members: of any sample.
    """
    found: list[dict[str, Any]] = []
    for name, data in members.items():
        end = name.rpartition(".")[2]
        if end in MEDIA:
            found.append({"name": name, "dtype": MEDIA[end]})
        elif end == "npy":
            found.append({"name": name, **_array(read_npy(data, name))})
        elif end == "npz":
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                inner = [{"name": key, **_array(arrays[key])} for key in arrays.files]
            found.append({"name": name, "struct": inner})
        elif end == "json":
            found.append({"name": name, **_value(json.loads(data), name)})
        else:
            found.append({"name": name, "dtype": "binary"})
    return [*found, {"name": "__key__", "dtype": "string"}, {"name": "__url__", "dtype": "string"}]


def _array(array: np.ndarray) -> dict[str, Any]:
    """Nested lists, one for each axis."""
    kind: Any = str(array.dtype)
    for _ in range(array.ndim - 1):
        kind = {"list": kind}
    return {"list": kind}


def _value(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return {"struct": [{"name": key, **_value(inner, key)} for key, inner in value.items()]}
    if isinstance(value, list):
        inner = _value(value[0] if value else ELEMENTS.get(name, ""), name)
        return {"list": inner.get("struct", inner.get("dtype"))}
    kinds = {bool: "bool", int: "int64", float: "float64", str: "string"}
    return {"dtype": kinds[type(value)]}


def _head(
    source: Source,
    facts: card.Facts,
    features: list[dict[str, Any]],
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    """The card's YAML. Source: the Hub's dataset card specification, and `datasets.DatasetInfo`."""
    clips = {split: len(keys) for split, keys in source.keys.items()}
    of_split = {
        split: sum(sizes[f"{DATA}{shard.name}.tar"] for shard in shards)
        for split, shards in source.shards.items()
    }
    files = [{"split": split, "path": f"{DATA}{split}-*.tar"} for split in clips]
    splits = [
        {"name": split, "num_bytes": of_split[split], "num_examples": count} for split, count in clips.items()
    ]
    info = {
        "config_name": "default",
        "features": features,
        "splits": splits,
        "download_size": sum(of_split.values()),
        "dataset_size": sum(of_split.values()),
    }
    return {
        "pretty_name": facts.name,
        **facts.licence_head,
        **({"language": facts.languages} if facts.languages else {}),
        "task_categories": ["image-to-video"],
        "tags": ["webdataset", "talking-head", "audio-driven", "lip-sync", "video", "audio", "croissant"],
        "size_categories": [size_category(sum(clips.values()))],
        "configs": [
            {"config_name": "default", "data_files": files},
        ],
        "dataset_info": [info],
    }


def size_category(num_clips: int) -> str:
    """The Hub's word for a number of examples."""
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    if num_clips < 1000:
        return "n<1K"
    for power, (low, high) in enumerate(pairwise(names), start=4):
        if num_clips < 10**power:
            return f"{low}<n<{high}"
    return "n>1T"
