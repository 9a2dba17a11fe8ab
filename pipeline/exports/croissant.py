"""`croissant.json`: the data set in MLCommons' Croissant 1.1, with its vocabulary of responsible AI.

Source: Croissant Format Specification 1.1 and Croissant RAI Specification 1.0 (docs.mlcommons.org/croissant).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from talkforge.pipeline.exports.card import Facts
from talkforge.pipeline.exports.clips import Source
from talkforge.pipeline.exports.folder import StoredFile

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""Source: appendix of the Croissant specification."""

LICENCE_URLS = {
    "cc0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "mit": "https://opensource.org/license/mit",
    "odbl": "https://opendatacommons.org/licenses/odbl/",
    "pddl": "https://opendatacommons.org/licenses/pddl/",
}
"""Pages of licences; those of Creative Commons follow from the name."""

KINDS = {pa.bool_(): "sc:Boolean", pa.int64(): "sc:Integer", pa.float64(): "sc:Float", pa.string(): "sc:Text"}


def licence_url(licence: str) -> str:
    """Page of a licence that the Hub has an identifier for."""
    if licence.startswith("cc-by"):
        kind, _, version = licence.removeprefix("cc-").rpartition("-")
        return f"https://creativecommons.org/licenses/{kind}/{version}/"
    return LICENCE_URLS.get(licence, licence)


def document(
    source: Source, facts: Facts, files: Mapping[str, StoredFile], table_name: str, table: bytes
) -> bytes:
    """The content of `croissant.json`.

    Args:
        source: what is exported.
        facts: what the card says.
        files: the shards, name -> what is there.
        table_name: file with a row for each clip.
        table: its content.
    """
    head = facts.licence_head
    shards = [
        _file(name, "application/x-tar", file.sha256, file.bytes) for name, file in sorted(files.items())
    ]
    rows = _file(table_name, "application/x-parquet", hashlib.sha256(table).hexdigest(), len(table))
    found: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": facts.name,
        "description": f"{sum(facts.clips.values())} clips of people who speak, with video, audio, lip "
        "masks, landmarks, joints, speech features and measurements.",
        "url": f"urn:sha256:{_identity(source)}",
        "version": f"{facts.snapshot}.0.0",
        "creator": {"@type": "sc:Organization", "name": "not stated"},
        "license": licence_url(head["license"]) if head["license"] != "other" else facts.licences_stated,
        **({"datePublished": facts.made_at} if facts.made_at else {}),
        **({"inLanguage": facts.languages} if facts.languages else {}),
        "citeAs": f"Talkforge data set {facts.name}, snapshot {facts.snapshot}",
        "distribution": [rows, *shards, *_sets(source, files)],
        "recordSet": [_records(table_name, table)],
        **_rai(facts),
    }
    return json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n"


def _identity(source: Source) -> str:
    sums = "\n".join(shard.sha256 for shards in source.shards.values() for shard in shards)
    return hashlib.sha256(sums.encode()).hexdigest()


def _file(name: str, kind: str, sha256: str, num_bytes: int) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name, "encodingFormat": kind,
        "sha256": sha256, "contentSize": f"{num_bytes} B",
    }  # fmt: skip


def _sets(source: Source, files: Mapping[str, StoredFile]) -> list[dict[str, Any]]:
    """The videos and the audio inside of the shards of each split."""
    found = []
    for split in source.shards:
        inside = [{"@id": name} for name in sorted(files) if name.rpartition("/")[2].startswith(f"{split}-")]
        for end, kind in (("mp4", "video/mp4"), ("flac", "audio/flac")):
            found.append(
                {
                    "@type": "cr:FileSet", "@id": f"{split}-{end}", "name": f"{split}-{end}",
                    "containedIn": inside, "encodingFormat": kind, "includes": f"*.{end}",
                }
            )  # fmt: skip
    return found


def _records(table_name: str, table: bytes) -> dict[str, Any]:
    """A record for each clip: the columns of the table that have one value."""
    schema = pq.read_schema(io.BytesIO(table))
    fields = [
        {
            "@type": "cr:Field", "@id": f"clips/{field.name}", "name": field.name,
            "description": (field.metadata or {}).get(b"description", b"").decode() or field.name,
            "dataType": KINDS[field.type],
            "source": {"fileObject": {"@id": table_name}, "extract": {"column": field.name}},
        }
        for field in schema
        if field.type in KINDS
    ]  # fmt: skip
    return {
        "@type": "cr:RecordSet", "@id": "clips", "name": "clips",
        "description": "One record for each clip: where it comes from and what was measured of it.",
        "key": {"@id": "clips/clip_id"}, "field": fields,
    }  # fmt: skip


def _rai(facts: Facts) -> dict[str, Any]:
    found = facts.statistics
    counts = found["conservation"]
    people = found["people"]
    return {
        "rai:dataCollection": f"Clips were cut from {counts['sources']} video files that the maker of the "
        "data set named. Where these come from is in the column `source`.",
        "rai:dataCollectionType": ["Existing datasets", "Others"],
        "rai:dataPreprocessingProtocol": [
            f"{counts['candidates']} candidate clips were measured, {counts['rejected']} rejected by rules "
            f"and {counts['failed']} failed; configuration {facts.dataset.config_hash or 'not kept'}."
        ],
        "rai:dataAnnotationProtocol": "Lip masks, landmarks, joints and measurements were made by models: "
        + (", ".join(sorted({model["name"] for model in found["models"]})) or "none")
        + ".",
        "rai:personalSensitiveInformation": [
            "Faces and voices of identifiable people.",
            "Face embeddings, where measured, are biometric data.",
            *(["Transcripts of what is said."] if found["languages"] else []),
        ],
        "rai:dataBiases": [
            f"The person with most hours has {people['balance']['top_share']:.0%} of them."
            if people and people["balance"]
            else "How hours are divided among people was not measured.",
            "Age, sex, skin colour and accent were not measured.",
        ],
        "rai:dataLimitations": [
            "Consent and licence are what lists of inputs state, and were not checked.",
            "Models measured every column: none was annotated by hand.",
        ],
        "rai:dataUseCases": ["Training: video of a portrait that is driven by audio."],
        "rai:dataReleaseMaintenancePlan": "Snapshots are numbered and do not change; people are erased on "
        "request from later ones.",
    }  # fmt: skip
