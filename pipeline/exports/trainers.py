"""Exports for other trainers: folders of video and audio with the list that each of them reads.

    <split>/videos/<clip id>.mp4     the clip, byte for byte as it lies in the shard
    <split>/audio/<clip id>.wav      its audio: 16 kHz, mono, 16 bit, as long as the video to the sample

Paths in lists are relative to the split's folder, but for musubi-tuner, whose TOML file needs absolute ones.
"""

from __future__ import annotations

import csv
import io
import json
import wave
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from talkforge.curation.media import decode_flac
from talkforge.pipeline.exports.clips import ClipMembers, Written
from talkforge.pipeline.exports.folder import ClipEntry, ExportFolder
from talkforge.schemas.units import AUDIO_HZ

PROMPT = "a person is talking"
"""Prompt of clips without a text: pandas, by which DiffSynth-Studio reads its list, takes an empty one for a
missing number. Source: ours."""

WAN_FPS = 16.0
"""Frame rate that musubi-tuner resamples videos to for Wan. Source: its docs/dataset_config.md."""

LONGEST_FRAMES = 81
"""Frames of Wan 2.1's own clips. Source: arXiv 2503.20314."""


def wav_bytes(flac: bytes) -> bytes:
    """WAV file, 16 kHz mono 16 bit, of the audio of a sample: the same samples."""
    pcm = np.round(decode_flac(flac) * 32768).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(AUDIO_HZ)
        file.writeframes(pcm.tobytes())
    return buffer.getvalue()


@dataclass(frozen=True)
class MediaFolder:
    """Writes clips as video and audio.

    Attributes:
        folder: of the export.
        prompt: stands where a clip has no text.
        beside: whether audio and prompt lie beside the video, under its name.
    """

    folder: ExportFolder
    prompt: str = PROMPT
    beside: bool = False

    def write(self, clip: ClipMembers) -> Written:
        """Write the files of one clip."""
        video = f"videos/{clip.key}.mp4"
        audio = f"videos/{clip.key}.wav" if self.beside else f"audio/{clip.key}.wav"
        prompt = " ".join((clip.text or self.prompt).split())
        files = self.folder.write(f"{clip.split}/{video}", clip.members["mp4"])
        files |= self.folder.write(f"{clip.split}/{audio}", wav_bytes(clip.members["flac"]))
        if self.beside:
            files |= self.folder.write(f"{clip.split}/videos/{clip.key}.txt", f"{prompt}\n".encode())
        cut = clip.meta.clip
        row = {
            "video": video,
            "audio": audio,
            "prompt": prompt,
            "prompt_is_default": not clip.text,
            "width": cut.width_px,
            "height": cut.height_px,
            "num_frames": cut.num_frames,
            "fps": cut.fps,
            "person_id": clip.meta.person_id,
        }
        return files, row


def videox_list(entries: Iterable[ClipEntry]) -> bytes:
    """`metadata.json` as VideoX-Fun's `VideoSpeechDataset` reads it, with the clip's id.

    Source: aigc-apps/VideoX-Fun, videox_fun/data/dataset_video.py (keys file_path, audio_path, text, type).
    """
    rows = [
        {
            "file_path": entry.row["video"],
            "audio_path": entry.row["audio"],
            "text": entry.row["prompt"],
            "type": "video",
            **{name: entry.row[name] for name in ("width", "height", "num_frames", "fps", "person_id")},
            "clip_id": entry.clip_id,
        }
        for entry in entries
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False).encode() + b"\n"


def diffsynth_list(entries: Iterable[ClipEntry]) -> bytes:
    """`metadata.csv` as DiffSynth-Studio's `UnifiedDataset` reads it, with the clip's id.

    To be used with `--data_file_keys video,input_audio --extra_inputs input_image,input_audio`.
    Source: modelscope/DiffSynth-Studio, examples/wanvideo/model_training/lora/Wan2.2-S2V-14B.sh.
    """
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["video", "prompt", "input_audio", "clip_id"])
    for entry in entries:
        writer.writerow([entry.row["video"], entry.row["prompt"], entry.row["audio"], entry.clip_id])
    return text.getvalue().encode()


def musubi_config(folder: ExportFolder, split: str, entries: Iterable[ClipEntry]) -> bytes:
    """`dataset.toml` of a split, as musubi-tuner reads it; paths are absolute.

    Every clip is cut into pieces of one length: 4 n + 1 frames at 16 frames/s, as many as the shortest clip
    has, and 81 at most. Nothing of a longer clip is left out but its end, and no clip is.
    Source: kohya-ss/musubi-tuner, docs/dataset_config.md (`source_fps`, `frame_extraction`).
    """
    rows = [entry.row for entry in entries]
    shortest = min(int(row["num_frames"] / row["fps"] * WAN_FPS) for row in rows)
    frames = 4 * ((min(shortest, LONGEST_FRAMES) - 1) // 4) + 1
    (area, _), *_ = Counter((row["width"], row["height"]) for row in rows).most_common(1)
    place = (folder.path / split).as_posix()
    lines = [
        "[general]",
        f"resolution = [{area[0]}, {area[1]}]",
        'caption_extension = ".txt"',
        "batch_size = 1",
        "enable_bucket = true",
        "bucket_no_upscale = true",
        "",
        "[[datasets]]",
        f"video_directory = {json.dumps(f'{place}/videos', ensure_ascii=False)}",
        f"cache_directory = {json.dumps(f'{place}/cache', ensure_ascii=False)}",
        f"target_frames = [{frames}]",
        'frame_extraction = "chunk"',
        f"source_fps = {float(rows[0]['fps'])!r}",
    ]
    return ("\n".join(lines) + "\n").encode()


def lists(folder: ExportFolder, name: str, keys: Mapping[str, Iterable[str]]) -> dict[str, bytes]:
    """The format's own lists, one for each split.

    Args:
        folder: with every clip in it.
        name: `videox`, `diffsynth` or `musubi`.
        keys: split -> ids of its clips in order.
    """
    found: dict[str, bytes] = {}
    for split, of_split in keys.items():
        entries = [folder.done[key] for key in of_split]
        if name == "videox":
            found[f"{split}/metadata.json"] = videox_list(entries)
        elif name == "diffsynth":
            found[f"{split}/metadata.csv"] = diffsynth_list(entries)
        else:
            found[f"{split}/dataset.toml"] = musubi_config(folder, split, entries)
    return found


def prompts_filled(entries: Iterable[ClipEntry]) -> int:
    """Clips without a text, for which the prompt stands in."""
    return sum(bool(entry.row.get("prompt_is_default")) for entry in entries)
