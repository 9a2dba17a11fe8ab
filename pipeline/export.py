"""`talkforge export SET --as FORMAT`: the clips of a snapshot in a layout that another tool reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from talkforge.pipeline import snapshots
from talkforge.pipeline.dataset import exclusive, load_dataset, tool_version
from talkforge.pipeline.exports import huggingface, latents, shard_indexes, stableavatar, trainers, viewers
from talkforge.pipeline.exports.clips import Source, open_source, write_clips
from talkforge.pipeline.exports.folder import Export, ExportFolder
from talkforge.pipeline.store import Store
from talkforge.schemas import extras
from talkforge.schemas.errors import CommandError
from talkforge.schemas.progress import Progress, ProgressCallback, no_progress

FORMATS = {
    "energon": "Megatron-Energon",
    "wids": "wids",
    "huggingface": "the Hugging Face Hub",
    "videox": "VideoX-Fun",
    "diffsynth": "DiffSynth-Studio",
    "musubi": "musubi-tuner",
    "stableavatar": "StableAvatar",
    "fastvideo": "FastVideo",
    "automodel": "NeMo Automodel",
    "fiftyone": "FiftyOne",
    "rerun": "Rerun",
    "lance": "Lance",
}
"""What `--as` takes -> what reads it."""

BESIDE = ("energon", "wids")
"""Formats that are written beside the shards unless another folder is given."""


@dataclass(frozen=True)
class Options:
    """What is exported, and how.

    Attributes:
        out: folder of the export. None: beside the shards, where the format can be.
        split: `train` or `validation`; None means both.
        snapshot: number or tag; None means the current one.
        prompt: stands where a clip has no text.
        workers: threads.
    """

    out: Path | None = None
    split: str | None = None
    snapshot: int | str | None = None
    prompt: str = trainers.PROMPT
    workers: int = 1


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        place: the folder.
        export: what it holds.
        notes: what the user should know, one line each.
    """

    place: str
    export: Export
    notes: tuple[str, ...] = field(default=())


def export(
    store: Store, name: str, options: Options, on_progress: ProgressCallback = no_progress
) -> Exported:
    """Write the clips of a snapshot in another layout, or go on with it.

    Args:
        store: the data set.
        name: key of `FORMATS`.
        options: what is exported, and where to.
        on_progress: called for each clip or shard.

    Raises:
        CommandError: there is no such format, the folder holds something else, or there is nothing to export.
        DatasetError: the data set is damaged.
        RunError: the folder cannot be written to.
    """
    if name not in FORMATS:
        raise CommandError(f"--as {name}: expected {', '.join(FORMATS)}")
    if options.out is None and name not in BESIDE:
        raise CommandError(f"--as {name}: expected a folder to write to (--out DIR)")
    if options.out is not None and "://" in str(options.out):
        raise CommandError(f"--out {options.out}: expected a folder on this machine")
    if name in ("rerun", "lance"):
        extras.require(name, f"--as {name}")
    load_dataset(store)
    source = open_source(store, options.snapshot, options.split)
    wanted = Export(
        format=name,
        dataset=store.root,
        snapshot=source.snapshot.number,
        snapshot_sha256=snapshots.manifest_sha256(store, source.snapshot),
        options=_asked(name, options),
        tool_version=tool_version(),
    )
    if options.out is None:
        return _beside(store, source, wanted, options)
    folder = ExportFolder(options.out, wanted)
    return Exported(str(folder.path), *_write(source, folder, name, options, on_progress))


def _asked(name: str, options: Options) -> dict[str, str]:
    """Options that decide what is in the folder."""
    asked = {"split": options.split} if options.split else {}
    return asked | ({"prompt": options.prompt} if name in ("videox", "diffsynth", "musubi") else {})


def _beside(store: Store, source: Source, wanted: Export, options: Options) -> Exported:
    """Write the index into the data set's folder of shards."""
    place = f"{store.root}/{snapshots.SHARDS}"
    if options.snapshot is not None or options.split is not None:
        raise CommandError(
            "--snapshot, --split: go with --out DIR; beside the shards lies an index of all of them"
        )
    with exclusive(store):
        for shards in source.shards.values():
            for shard in shards:
                name = f"{snapshots.SHARDS}/{shard.name}.tar"
                if not store.exists(name) or store.size(name) != shard.bytes:
                    raise CommandError(
                        f"{place}: {shard.name}.tar is not here (run.plain_shards is off?); give --out DIR"
                    )
        files = _INDEXES[wanted.format](source, "")
        for name, data in files.items():
            store.write(f"{snapshots.SHARDS}/{name}", data)
    finished = wanted.model_copy(
        update={
            "complete": True,
            "clips": {split: len(keys) for split, keys in source.keys.items()},
            "files": len(files),
            "bytes": sum(map(len, files.values())),
        }
    )
    return Exported(place, finished)


_INDEXES: dict[str, Callable[[Source, str], dict[str, bytes]]] = {
    "energon": shard_indexes.energon_files,
    "wids": shard_indexes.wids_files,
}


def _write(
    source: Source, folder: ExportFolder, name: str, options: Options, on_progress: ProgressCallback
) -> tuple[Export, tuple[str, ...]]:
    if name in _INDEXES:
        on_progress(Progress("linking"))
        files = shard_indexes.link_shards(source, folder.store, "")
        clips = {split: len(keys) for split, keys in source.keys.items()}
        return folder.close(files, clips, _INDEXES[name](source, "")), ()
    if name == "huggingface":
        on_progress(Progress("linking"))
        return huggingface.write(source, folder), ()
    if name == "fastvideo":
        files, clips = latents.write_fastvideo(source, folder, on_progress)
        return folder.close(files, clips, {}), _without_latents(source, clips)
    if name == "automodel":
        keys = latents.write_automodel(source, folder, on_progress)
        finished = folder.finish(keys, latents.automodel_lists(folder, keys))
        return finished, _without_latents(source, finished.clips)
    if name == "lance":
        files = viewers.write_lance(source, folder, on_progress)
        return folder.close(files, {split: len(keys) for split, keys in source.keys.items()}, {}), ()
    if name == "fiftyone":
        write_clips(source, folder, viewers.LabelsFolder(folder).write, options.workers, on_progress)
        return folder.finish(source.keys, viewers.fiftyone_manifests(source.keys)), ()
    if name == "rerun":
        write_clips(source, folder, viewers.RecordingFolder(folder).write, options.workers, on_progress)
        return folder.finish(source.keys, {}), ()
    if name == "stableavatar":
        write_clips(source, folder, stableavatar.AvatarFolder(folder).write, options.workers, on_progress)
        return folder.finish(source.keys, stableavatar.path_lists(folder, source.keys)), ()
    media = trainers.MediaFolder(folder, options.prompt, beside=name == "musubi")
    write_clips(source, folder, media.write, options.workers, on_progress)
    finished = folder.finish(source.keys, trainers.lists(folder, name, source.keys))
    filled = trainers.prompts_filled(folder.done.values())
    notes = (f"{filled} clips have no text: their prompt is {options.prompt!r} (--prompt)",) if filled else ()
    return finished, notes


def _without_latents(source: Source, clips: Mapping[str, int]) -> tuple[str, ...]:
    left = sum(map(len, source.keys.values())) - sum(clips.values())
    return (f"{left} clips have no latents (talkforge encode left them out)",) if left else ()
