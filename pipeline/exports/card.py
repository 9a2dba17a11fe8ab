"""The data card: what a data set holds, where it comes from, who is in it, and what is not known of it.

Sections follow the template of the Hugging Face Hub's dataset cards and Datasheets for Datasets. Source:
Gebru et al., arXiv 1803.09010.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from talkforge.curation.verdict import FORBIDDEN_WORDS, GOVERNANCE, reserves
from talkforge.pipeline.exports.clips import Source
from talkforge.pipeline.report.statistics import statistics
from talkforge.schemas.dataset import Dataset

HUB_LICENCES = frozenset({
    "apache-2.0", "mit", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "odbl", "pddl",
})  # fmt: skip
"""Identifiers of licences that the Hub knows, among those that footage has. Source: its list of licences."""

NAME_LENGTH = 96
"""Most characters of a licence's name in the card's head. Source: ours."""

FIRST_SHOWN = 20
"""Rows of a table in the card."""


@dataclass(frozen=True)
class Facts:
    """What the card and Croissant say.

    Attributes:
        name: of the data set's folder.
        dataset: `dataset.json`.
        snapshot: number.
        made_at: time of the snapshot, UTC, ISO 8601; empty for number 0.
        clips: split -> number of clips that are exported.
        hours: split -> hours of these.
        statistics: of the whole snapshot, as the report has them.
        licences: licences of the exported clips, as lists give them, the most hours first.
        consents: what lists say of the consent of the people shown, likewise.
        credentials: number of exported clips whose files' content credentials were looked for, and of those
            whose files reserve training or data mining, or have some that could not be read.
    """

    name: str
    dataset: Dataset
    snapshot: int
    made_at: str
    clips: dict[str, int]
    hours: dict[str, float]
    statistics: dict[str, Any]
    licences: tuple[str, ...]
    consents: tuple[str, ...]
    credentials: tuple[int, int]

    @property
    def languages(self) -> list[str]:
        """Codes of the languages that are spoken, where clips were transcribed."""
        return [row["language"] for row in self.statistics["languages"] if row["accepted"]["clips"]]

    @property
    def licence_head(self) -> dict[str, str]:
        """Keys of the card's head: an identifier that the Hub knows, or `other` with one made of the names.

        Source: the Hub's page on licences, by which `license_name` is an identifier such as `my-license-1.0`.
        The names themselves are in the card.
        """
        known = {_hub_licence(name) for name in self.licences}
        if len(known) == 1 and (only := known.pop()):
            return {"license": only}
        names = [_plain(name) or ("unnamed" if name.strip() else "not-stated") for name in self.licences]
        return {"license": "other", "license_name": "-and-".join(names)[:NAME_LENGTH].strip("-")}

    @property
    def licences_stated(self) -> str:
        """All licences by their names, on one line."""
        return ", ".join(" ".join(name.split()) or "not stated" for name in self.licences)


def _hub_licence(name: str) -> str:
    """The Hub's identifier of a licence; empty where it has none."""
    plain = _plain(name)
    plain = {"cc0": "cc0-1.0", "cc-0": "cc0-1.0", "apache": "apache-2.0"}.get(plain, plain)
    return plain if plain in HUB_LICENCES else ""


def _plain(name: str) -> str:
    """A name in small letters, digits, `-` and `.`."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def facts_of(source: Source) -> Facts:
    """What there is to say of the clips that are exported."""
    frames = {name: source.table(f"{name}.parquet").to_pandas() for name in ("ledger", "sources", "failures")}
    people = (
        source.table("people.parquet").to_pandas() if "people.parquet" in source.snapshot.tables else None
    )
    clips = source.clip_rows().to_pandas()
    clips["hours"] = clips["duration_s"] / 3600
    place = {key: split for split, keys in source.keys.items() for key in keys}
    hours = clips.groupby(clips["clip_id"].map(place))["hours"].sum()

    def by_hours(column: str) -> tuple[str, ...]:
        totals = clips.groupby(clips[column].fillna("").str.strip())["hours"].sum()
        return tuple(sorted((str(name) for name in totals.index), key=lambda name: (-totals[name], name)))

    said = clips["training_mining"].dropna().tolist() if "training_mining" in clips else []
    return Facts(
        name=PurePosixPath(source.store.root).name or "talking heads",
        dataset=source.dataset,
        snapshot=source.snapshot.number,
        made_at=source.snapshot.made_at,
        clips={split: len(keys) for split, keys in source.keys.items()},
        hours={split: round(float(hours[split]), 4) for split in source.keys},
        statistics=statistics(
            frames["ledger"], frames["sources"], frames["failures"], source.dataset, people
        ),
        licences=by_hours("licence"),
        consents=by_hours("consent"),
        credentials=(len(said), sum(map(reserves, said))),
    )


def page(facts: Facts) -> str:
    """The card below its head: Markdown. What users wrote is shown as text."""
    parts = [
        f"# {_text(facts.name)}",
        _summary(facts),
        "## Content", _content(facts),
        "## Loading", _LOADING.replace("SPLIT", next(iter(facts.clips))),
        "## How it was made", _made(facts),
        "## People", _people(facts),
        "## Licence and consent", _terms(facts),
        "## Known gaps", _gaps(facts),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


_LOADING = """```python
import datasets

PATH = "."  # this folder; load_dataset takes its name on the Hub as well
clips = datasets.load_dataset(PATH, split="SPLIT", streaming=True)  # video, audio, lips, landmarks, ...
for name in ("mp4", "flac", "face.jpg"):  # without this they are decoded, for which datasets needs torchcodec
    clips = clips.cast_column(name, datasets.Value("binary"))
first = next(iter(clips))  # first["mp4"]["bytes"] is the video
table = datasets.Dataset.from_parquet(f"{PATH}/clips.parquet")  # a row of measurements for each clip
```

In the column `json`, -9999 stands for a number that was not measured and an empty text for a text that is
not there. In the table these are null."""


def _summary(facts: Facts) -> str:
    total, hours = sum(facts.clips.values()), sum(facts.hours.values())
    return (
        f"{total} clips ({_hours(hours)}) of people who speak, each with video, audio, lip masks, landmarks, "
        f"body joints, speech features and measurements, as WebDataset shards. Made by Talkforge "
        f"{_text(facts.dataset.tool_version)}; snapshot {facts.snapshot}"
        + (f" of {facts.made_at[:10]}." if facts.made_at else ".")
    )


def _content(facts: Facts) -> str:
    rows = [[split, count, _hours(facts.hours[split])] for split, count in facts.clips.items()]
    return _table(["split", "clips", "length"], rows) + (
        f"\n\nSplits are divided by {facts.statistics['identity']['split_by']}. Speech features: "
        f"{_text(facts.dataset.speech_encoder or 'not kept')}."
    )


def _made(facts: Facts) -> str:
    found = facts.statistics
    shown = [
        [step["step"], step["kind"], step["count"], _hours(step["hours"])]
        for step in found["funnel"]
        if step["lost"] or step["step"] in ("input", "candidates", "accepted")
    ]
    models = [
        [_text(m["name"]), _text(m["needed_by"]), _text(m["licence"]), "yes" if m["commercial_use"] else "no"]
        for m in found["models"]
    ]
    text = "What was left after each step; steps that nothing fell at are left out.\n\n"
    text += _table(["step", "of", "count", "length"], shown)
    text += "\n\nModels that measured, or decided:\n\n"
    return text + _table(["model", "for", "licence", "commercial use"], models)


def _people(facts: Facts) -> str:
    people = facts.statistics["people"]
    if not people or not people["balance"]:
        return "Nobody's identity was measured: how many people there are, and how evenly, is not known."
    balance = people["balance"]
    return (
        f"{people['kept']} people. The one with most hours has {balance['top_share']:.0%}, the first ten "
        f"have {balance['top_ten_share']:.0%}; Gini coefficient {balance['gini']:.2f}, as uneven as "
        f"{balance['effective']:.1f} people with equal hours (Hill number of order 2). People are clusters "
        "of face embeddings: one may be two, and two may be one."
    )


def _terms(facts: Facts) -> str:
    rows = [
        [_text(row["licence"]) or "not stated", _text(row["consent"]) or "not stated", row["sources"],
         row["accepted"]["clips"], _hours(row["accepted"]["hours"])]
        for row in facts.statistics["provenance"]
    ]  # fmt: skip
    thresholds = facts.dataset.config.thresholds
    gates = []
    if thresholds.require_consent:
        gates.append("clips without a stated consent were rejected")
    if thresholds.licences:
        gates.append(f"only these licences were kept: {_text(', '.join(thresholds.licences))}")
    if thresholds.respect_reservations:
        gates.append("clips of files whose content credentials reserve training were rejected")
    return (
        "As the lists of inputs state it. Talkforge does not check what they say.\n\n"
        + _table(["licence", "consent", "inputs", "clips", "length"], rows[:FIRST_SHOWN])
        + (f"\n\nand {len(rows) - FIRST_SHOWN} more" if len(rows) > FIRST_SHOWN else "")
        + (f"\n\nAs gates: {'; '.join(gates)}." if gates else "\n\nNo gate on consent or licence was on.")
        + f"\n\n{_credentials(facts)}"
        "\n\nFaces and voices are personal data, and face embeddings are biometric data. To have a person "
        "removed, ask whoever gave you this: `talkforge erase` removes a person from every file of the data "
        "set that this was made from."
    )


def _credentials(facts: Facts) -> str:
    """What content credentials (C2PA) say of training, in a sentence or two."""
    looked_at, reserved = facts.credentials
    if not looked_at:
        return "Content credentials (C2PA) of the files were not read."
    return (
        f"Content credentials (C2PA) were looked for in the files of {looked_at} of "
        f"{sum(facts.clips.values())} clips. Those of {reserved} clips reserve data mining or the training "
        "of generative models (`training-mining` of CAWG), or cannot be read."
    )


def _gaps(facts: Facts) -> str:
    found = facts.statistics
    gaps = []
    unstated = sum(row["accepted"]["clips"] for row in found["provenance"] if not row["consent"].strip())
    if unstated:
        gaps.append(f"No consent is stated for {unstated} clips.")
    unlicensed = sum(row["accepted"]["clips"] for row in found["provenance"] if not row["licence"].strip())
    if unlicensed:
        gaps.append(f"No licence is stated for {unlicensed} clips.")
    if "validation" not in facts.clips:
        gaps.append("There is no validation split.")
    if not found["languages"]:
        gaps.append("Nothing was transcribed: languages are not known.")
    if not found["people"]:
        gaps.append("Identities were not measured: the same person may be in both splits.")
    unscored = found["sync"]["unscored"]["clips"]
    if unscored:
        gaps.append(
            f"Synchrony of mouth and audio could not be scored for {unscored} of the candidate clips."
        )
    for absent in found["models_absent"]:
        gaps.append(
            f"The model {_text(absent['name'])} was enabled and not there: what it measures is missing."
        )
    gaps.append("Age, sex, skin colour and accent were not measured: how they are balanced is not known.")
    return "\n".join(f"- {gap}" for gap in gaps)


def _hours(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _text(value: str) -> str:
    """What somebody wrote, on one line and without meaning in Markdown or HTML."""
    plain = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", plain)


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


OPEN = "*to be filled in by the provider of the model*"
"""Stands in the summary of training content where Talkforge cannot know the answer."""


def training_summary(facts: Facts) -> str:
    """What is known of this data for the public summary of training content that the EU AI Act asks for.

    Follows the sections of the Commission's template. What belongs to the model, or was never said in the
    lists of inputs, is left open. Source: European Commission, Template for the Public Summary of Training
    Content for general-purpose AI models, July 2025; Regulation (EU) 2024/1689, Article 53(1)(d).
    """
    found, total = facts.statistics, sum(facts.hours.values())
    licences = [_text(name) or "not stated" for name in facts.licences]
    sources = [
        [_text(row["licence"]) or "not stated", _text(row["consent"]) or "not stated", row["sources"],
         _hours(row["accepted"]["hours"])]
        for row in found["provenance"][:FIRST_SHOWN]
    ]  # fmt: skip
    thresholds = facts.dataset.config.thresholds
    consent = "required; clips without one were rejected" if thresholds.require_consent else "not required"
    removed = [
        f"{rule['any']['clips']} clips by `{rule['code']}`"
        for rule in found["rules"]
        if rule["code"] in (*GOVERNANCE, FORBIDDEN_WORDS.code) and rule["any"]["clips"]
    ]
    parts = [
        "# Summary of training content",
        f"Of the data set {_text(facts.name)}, snapshot {facts.snapshot}, for the summary of a model that is "
        "trained on it. Read every line before you publish it.",
        "## 1. General information",
        f"- Provider, model, date of placing on the market: {OPEN}\n"
        f"- Modalities: video, audio{', text' if found['languages'] else ''}\n"
        f"- Size: {_hours(total)} of video with audio, {sum(facts.clips.values())} clips\n"
        f"- Languages: {', '.join(map(_text, facts.languages)) or 'not measured'}\n"
        f"- Latest date of acquisition: {OPEN}",
        "## 2. Data sources",
        "Video files that the maker of the data set named. Which of them are public data sets, licensed from "
        f"third parties, crawled, collected from users or synthetic: {OPEN}",
        _table(["licence", "consent of the people shown", "files", "length that was kept"], sources),
        f"Licences: {', '.join(licences)}.",
        "## 3. Data processing",
        f"- Reservations of rights (text and data mining): {OPEN}. {_credentials(facts)} "
        + (
            f"Only these licences were kept: {_text(', '.join(thresholds.licences))}."
            if thresholds.licences
            else "No licence was filtered out."
        )
        + f"\n- Consent: {consent}."
        f"\n- Removal of illegal content: {OPEN}. "
        f"Removed by the rules of this data set: {'; '.join(removed) or 'nothing'}.",
    ]
    return "\n\n".join(parts) + "\n"
