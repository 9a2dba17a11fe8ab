"""Exports to look at clips with: FiftyOne's labels, a Rerun recording for each clip, a Lance table of all.

    <split>/data/<clip id>.mp4, labels/<clip id>.json, manifest.json    for FiftyOne
    <split>/recordings/<clip id>.rrd     the video with landmarks, lips, joints, and curves below it
    clips.lance/                         the row of the ledger, split, text, video and audio of each clip

Rerun's and Lance's files note the time at which they are written, so two exports differ in their bytes.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from talkforge.curation.draw import loudness_dbfs, mouth_opening
from talkforge.curation.media import decode_flac
from talkforge.pipeline.exports.clips import ClipMembers, Source, Written
from talkforge.pipeline.exports.folder import ExportFolder, StoredFile
from talkforge.schemas import extras, sample, tar
from talkforge.schemas.arrays import Floats
from talkforge.schemas.checksum import sha256_of
from talkforge.schemas.errors import DatasetError, one_line
from talkforge.schemas.progress import ProgressCallback, counted

log = logging.getLogger(__name__)

TABLE = "clips.lance"

SILENCE_DBFS = -120.0
"""Level of digital silence in a recording, dB relative to full scale."""


@dataclass(frozen=True)
class RecordingFolder:
    """Writes clips as recordings that Rerun's viewer opens.

    Attributes:
        folder: of the export.
    """

    folder: ExportFolder

    def write(self, clip: ClipMembers) -> Written:
        """Write the recording of one clip."""
        import rerun

        found = sample.decode(clip.key, clip.members)
        name = f"{clip.split}/recordings/{clip.key}.rrd"
        with (
            self.folder.store.writing(name) as path,
            rerun.RecordingStream("talkforge", recording_id=clip.key) as recording,
        ):
            recording.save(str(path))
            _record(rerun, recording, clip, found)
            recording.flush()
            recording.disconnect()
        target = self.folder.path / name
        return {name: StoredFile(bytes=target.stat().st_size, sha256=sha256_of(target))}, {}


def _record(rerun: Any, recording: Any, clip: ClipMembers, found: sample.ShardSample) -> None:
    frames = found.meta.clip.num_frames
    at = np.arange(frames)
    times = _at(rerun, at, found.meta.clip.fps)
    video = rerun.AssetVideo(contents=found.mp4, media_type="video/mp4")
    recording.log("clip/video", video, static=True)
    stamps = video.read_frame_timestamps_nanos()
    recording.send_columns("clip/video", times, rerun.VideoFrameReference.columns_nanos(stamps[:frames]))
    for name, points in (("landmarks", found.landmarks), ("joints", found.joints)):
        _points(rerun, recording, f"clip/{name}", times, points[..., :2])
    _outlines(rerun, recording, "clip/lips", times, found.contour)
    loudness = loudness_dbfs(decode_flac(found.flac), frames, found.meta.clip.fps, SILENCE_DBFS)
    for name, values in (("mouth_opening", mouth_opening(found.landmarks)), ("loudness_dbfs", loudness)):
        seen = np.isfinite(values)
        recording.send_columns(
            name, _at(rerun, at[seen], found.meta.clip.fps), rerun.Scalars.columns(scalars=values[seen])
        )
    text = json.dumps(clip.ledger, indent=1, ensure_ascii=False, default=str)
    recording.log("ledger", rerun.TextDocument(text, media_type="text/plain"), static=True)


def _at(rerun: Any, frames: np.ndarray, fps: float) -> list[Any]:
    return [rerun.TimeColumn("frame", sequence=frames), rerun.TimeColumn("time", duration=frames / fps)]


def _points(rerun: Any, recording: Any, entity: str, times: list[Any], points: Floats) -> None:
    """Points of every frame; those that were not seen are left out."""
    seen = np.isfinite(points).all(axis=-1)
    columns = rerun.Points2D.columns(positions=points[seen]).partition(seen.sum(axis=1))
    recording.send_columns(entity, times, columns)


def _outlines(rerun: Any, recording: Any, entity: str, times: list[Any], contour: Floats) -> None:
    """A closed line in every frame that has one."""
    seen = np.isfinite(contour).all(axis=(1, 2))
    lines = [np.vstack([one, one[:1]]) for one in contour[seen]]
    columns = rerun.LineStrips2D.columns(strips=lines).partition(seen.astype(int))
    recording.send_columns(entity, times, columns)


@dataclass(frozen=True)
class LabelsFolder:
    """Writes clips as FiftyOne's `FiftyOneVideoLabelsDataset`.

    Attributes:
        folder: of the export.
    """

    folder: ExportFolder

    def write(self, clip: ClipMembers) -> Written:
        """Write video and labels of one clip."""
        found = sample.decode(clip.key, clip.members)
        labels = json.dumps(fiftyone_labels(found, clip.ledger, clip.text), ensure_ascii=False)
        files = self.folder.write(f"{clip.split}/data/{clip.key}.mp4", found.mp4)
        return files | self.folder.write(f"{clip.split}/labels/{clip.key}.json", labels.encode()), {}


ATTRIBUTES = {
    bool: "BooleanAttribute",
    int: "NumericAttribute",
    float: "NumericAttribute",
    str: "CategoricalAttribute",
}
"""Type of a value of the ledger -> class of ETA's attribute."""


def fiftyone_labels(found: sample.ShardSample, row: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Labels of a clip in the format `eta.core.video.VideoLabels`.

    The clip has the ledger's columns that are not null. Each frame has the face's box, the outline of the
    lips and the joints that were seen, in fractions of the frame. Source: FiftyOneVideoLabelsDataset in
    FiftyOne's user guide.

    Args:
        found: the clip.
        row: of the ledger.
        text: transcript or caption, may be empty.
    """
    values = {**row, "text": text or None}
    attributes = [
        {"type": f"eta.core.data.{ATTRIBUTES[type(value)]}", "name": name, "value": value}
        for name, value in values.items()
        if type(value) in ATTRIBUTES and value != ""
    ]
    clip = found.meta.clip
    scale = np.array([clip.width_px, clip.height_px], np.float64)
    frames: dict[str, dict[str, Any]] = {}
    for k in range(clip.num_frames):
        frame: dict[str, Any] = {"frame_number": k + 1}
        points = found.landmarks[k, :, :2] / scale
        if np.isfinite(points).all():
            low, high = np.clip(points.min(axis=0), 0, 1), np.clip(points.max(axis=0), 0, 1)
            box = {"top_left": _xy(low), "bottom_right": _xy(high)}
            face = {"type": "eta.core.objects.DetectedObject", "label": "face", "bounding_box": box}
            frame["objects"] = {"objects": [face | {"frame_number": k + 1}]}
        outline = found.contour[k] / scale
        if np.isfinite(outline).all():
            lips = {"name": "lips", "closed": True, "filled": False, "points": [outline.round(5).tolist()]}
            frame["polylines"] = {"polylines": [lips]}
        joints = found.joints[k, :, :2] / scale
        if len(seen := joints[np.isfinite(joints).all(axis=1)]):
            frame["keypoints"] = {"keypoints": [{"name": "joints", "points": seen.round(5).tolist()}]}
        frames[str(k + 1)] = frame
    return {"attrs": {"attrs": attributes}, "frames": frames}


def _xy(point: np.ndarray) -> dict[str, float]:
    return {"x": round(float(point[0]), 5), "y": round(float(point[1]), 5)}


def fiftyone_manifests(keys: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
    """`manifest.json` of each split.

    Args:
        keys: split -> ids of its clips in order.
    """
    return {
        f"{split}/manifest.json": json.dumps(
            {
                "type": "eta.core.datasets.LabeledVideoDataset",
                "description": "",
                "index": [{"data": f"data/{key}.mp4", "labels": f"labels/{key}.json"} for key in of_split],
            },
            indent=1,
        ).encode()
        + b"\n"
        for split, of_split in keys.items()
    }


def write_lance(source: Source, folder: ExportFolder, on_progress: ProgressCallback) -> dict[str, StoredFile]:
    """Write the Lance table shard by shard, and go on behind the last one that is whole.

    Returns:
        Name -> what is there.

    Raises:
        DatasetError: the table has other clips than the snapshot.
    """
    extras.require("lance", "--as lance")
    import lance

    path, total = str(folder.path / TABLE), sum(map(len, source.keys.values()))
    done = _clips_in(lance, folder.path / TABLE)
    for split, shards in source.shards.items():
        for shard in shards:
            on_progress(counted("exporting", len(done), total, "clips"))
            if done.issuperset(shard.keys):
                continue
            with source.store.open(source.snapshot.tar(shard)) as stream:
                held = dict(tar.read_samples(stream, ("mp4", "flac", "txt")))
            lance.write_dataset(
                _rows(source, split, shard.keys, held), path, mode="append" if done else "create"
            )
            done |= set(shard.keys)
    found = lance.dataset(path).to_table(columns=["clip_id"]).column("clip_id").to_pylist()
    expected = [key for of_split in source.keys.values() for key in of_split]
    if sorted(found) != sorted(expected):
        raise DatasetError(f"{path}: expected {len(expected)} clips, found {len(found)} others")
    return {
        file.relative_to(folder.path).as_posix(): StoredFile(
            bytes=file.stat().st_size, sha256=sha256_of(file)
        )
        for file in sorted((folder.path / TABLE).rglob("*"))
        if file.is_file()
    }


def _clips_in(lance: Any, path: Path) -> set[str]:
    """Ids of the clips in a table. One that cannot be read is removed, and has none."""
    if not path.is_dir():
        return set()
    try:
        return set(lance.dataset(str(path)).to_table(columns=["clip_id"]).column("clip_id").to_pylist())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # damaged files make Lance panic, and that is no Exception
        log.warning("%s: cannot be read, and is written anew (%s)", path, one_line(error))
        shutil.rmtree(path)
        return set()


def _rows(source: Source, split: str, keys: tuple[str, ...], held: dict[str, dict[str, bytes]]) -> pa.Table:
    """One shard's rows; a further column of the user's lists, `source.show`, is called `source_show`."""
    rows = source.rows_of(keys)
    names = [name.replace(".", "_") for name in rows.column_names]
    table = rows.rename_columns(names).replace_schema_metadata(None)
    table = table.set_column(names.index("split"), "split", pa.array([split] * len(keys), pa.string()))
    for name, member in (("video_mp4", "mp4"), ("audio_flac", "flac")):
        table = table.append_column(name, pa.array([held[key][member] for key in keys], pa.large_binary()))
    texts = [sample.read_text(key, held[key]["txt"]) for key in keys]
    return table.append_column("text", pa.array(texts, pa.string()))
