"""The description of a data set, `dataset.json`: configuration, models, and what the arrays are."""

from __future__ import annotations

import contextlib
import json

from pydantic import Field, ValidationError

from talkforge.schemas.config import Config, ShardConfig, Thresholds
from talkforge.schemas.errors import DatasetError, first_invalid
from talkforge.schemas.records import Record

SCHEMA_VERSION = 1
"""Version of everything on disk but the samples, which carry their own."""


SYNC_SCORER = "trace: sync"
"""What the shipped sync scorer is needed by. A data set may have been begun with an earlier scorer: `curate`
scores its clips again from what the parts keep."""


class ModelUse(Record):
    """One model that had a part in the measurements."""

    name: str
    needed_by: str
    sha256: str
    licence: str
    commercial_use: bool


class ModelAbsence(Record):
    """One optional model that was enabled and not available: it measured nothing."""

    name: str
    needed_by: str
    why: str


class Choice(Record):
    """The part of a configuration that can change without measuring again."""

    thresholds: Thresholds
    shards: ShardConfig

    @classmethod
    def of(cls, config: Config) -> Choice:
        """That part of a whole configuration."""
        return cls(thresholds=config.thresholds, shards=config.shards)


class Dataset(Record):
    """`dataset.json`: what the data set is and what made it.

    `config.measure` never changes once it is written; `thresholds` and `shards` are those of the
    last selection, `quantiles` its percentiles of the raw motion variances.
    """

    schema_version: int
    tool_version: str
    config: Config
    config_hash: str
    """sha256 of the measuring configuration."""
    models: tuple[ModelUse, ...]
    models_absent: tuple[ModelAbsence, ...] = ()
    joints: tuple[str, ...]
    """Names of the body joints, in the order of `joints.npz`."""
    blendshapes: tuple[str, ...] = ()
    """Names of the blendshapes, in the order of `blendshapes.npy`; empty in data sets begun before they were
    kept."""
    speech_encoder: str | None = None
    """What `speech.npy` holds, as its encoder is named; None in data sets begun before this was kept."""
    speech_dim: int | None = None
    """Numbers in one speech feature: D of `speech.npy`."""
    quantiles: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    original: Choice | None = None
    """What the data set was made with: `talkforge select --reset` goes back to it. In data sets begun before
    this was kept, what they were selected with when they were first read."""
    parts_selected: int | None = None
    """Committed parts that the last selection knew; None before the first, and where it was not kept."""


def parse_dataset(data: bytes) -> Dataset:
    """The description in the bytes of a `dataset.json`.

    Raises:
        DatasetError: it is not readable or of another schema version.
    """
    try:
        described = json.loads(data)
    except ValueError as error:
        raise DatasetError(f"dataset.json: expected JSON, found {error}") from None
    if not isinstance(described, dict):
        raise DatasetError(f"dataset.json: expected a JSON object, found {type(described).__name__}")
    if (version := described.get("schema_version")) != SCHEMA_VERSION:
        raise DatasetError(f"dataset.json: expected schema version {SCHEMA_VERSION}, found {version}")
    try:
        with contextlib.suppress(KeyError, TypeError, AttributeError):  # what is missing is told below
            # Begun before there were crops, and before covered mouths were looked for.
            described["config"]["measure"]["clip"].setdefault("crop", "none")
            described["config"]["measure"]["lips"].setdefault("covered", False)
        found = Dataset.model_validate(described)
        return found if found.original else found.model_copy(update={"original": Choice.of(found.config)})
    except ValidationError as error:
        raise DatasetError(f"dataset.json: {first_invalid(error)}") from None
