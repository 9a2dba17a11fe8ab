"""Small shards of which every number is known: each frame shows its number, and so does all beside it.

Clip c, frame k: the frame has one colour, whose red stands for k and whose blue stands for c. The lips are
the left part of the lower half, wider with every frame, and missing in every seventh. Speech feature n is
(n, c, 0, ...). The identity is the c-th unit vector.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from talkforge.curation.media.encode import encode_flac, encode_mp4
from talkforge.pipeline import snapshots
from talkforge.pipeline.shards import ShardPlan, write_shard
from talkforge.pipeline.snapshots import Snapshot
from talkforge.pipeline.store import Store
from talkforge.schemas import sample
from talkforge.schemas.arrays import ClipArrays
from talkforge.schemas.config import Config
from talkforge.schemas.dataset import SCHEMA_VERSION, Dataset
from talkforge.schemas.npz import npz_bytes
from talkforge.schemas.records import Clip, ClipMeasures, Face, Identity, Motion, Verdict
from talkforge.schemas.sample import Members, Provenance, SampleMeta
from talkforge.schemas.units import features_from_frames, samples_from_frames

SPEECH_DIM, IDENTITY_DIM = 6, 16

MOTION_QUANTILES = {"omega_face": (0.0, 2.0, 4.0, 6.0, 8.0, 10.0), "omega_body": ()}
"""Percentiles 0, 20 ... 100 of the raw motion variances."""


@dataclass(frozen=True)
class Shown:
    """One clip."""

    number: int
    num_frames: int = 30
    height_px: int = 64
    width_px: int = 64
    fps: float = 25.0
    identity: bool = True
    omega: tuple[float | None, float | None] = (0.25, 0.75)
    moving: bool = False
    text: str = ""

    @property
    def key(self) -> str:
        """Its id: distinct for distinct numbers."""
        return f"clip{self.number:02d}"

    def lips(self) -> np.ndarray:
        """bool [F, H, W]; nothing in frames that are missing."""
        masks = np.zeros((self.num_frames, self.height_px, self.width_px), bool)
        for k in range(self.num_frames):
            if self.valid()[k]:
                masks[k, self.height_px // 2 :, : self.width_px * (k + 1) // (self.num_frames + 1)] = True
        return masks

    def motion(self) -> np.ndarray:
        """float16 [F, 8], motion of the face: of amplitude 1 in the first half of the clip, then of 3; NaN
        unless it is moving."""
        at = np.arange(self.num_frames)
        motion = np.full((self.num_frames, 8), np.nan, np.float16)
        if self.moving:
            motion[:] = (np.where(at < self.num_frames // 2, 1, 3) * (-1) ** at)[:, None]
        return motion

    def oval(self) -> np.ndarray:
        """float32 [F, 36, 2], the face: a rectangle from the 5th to the 20th column and row, 1 px lower with
        every frame."""
        corners = np.array([(4.5, 4.5), (19.5, 4.5), (19.5, 19.5), (4.5, 19.5)])
        shown = np.repeat(corners, 9, axis=0) + np.arange(self.num_frames)[:, None, None] * [0, 1]
        return shown.astype(np.float32)

    def face(self) -> np.ndarray:
        """bool [F, H, W], its pixels."""
        masks = np.zeros((self.num_frames, self.height_px, self.width_px), bool)
        for k in range(self.num_frames):
            masks[k, 5 + k : 20 + k, 5:20] = True
        return masks

    def valid(self) -> np.ndarray:
        """uint8 [F]: 0 in frames 3, 10, 17 ..., 1 in frame 5, else 2."""
        valid = np.full(self.num_frames, 2, np.uint8)
        valid[3::7], valid[5:6] = 0, 1
        return valid


def number_and_frame(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the clip and of the frame that frames [..., H, W, 3] show, each [...]."""
    mean = rgb.reshape(*rgb.shape[:-3], -1, 3).mean(axis=-2)
    assert np.ptp(rgb.astype(int), axis=(-3, -2)).max() <= 2, "a frame has one colour"
    return np.round((mean[..., 2] - 20) / 14).astype(int), np.round((mean[..., 0] - 24) / 7).astype(int)


@cache
def members_of(shown: Shown) -> Members:
    """The clip as a sample of a shard."""
    frames, fps = shown.num_frames, shown.fps
    valid = shown.valid()
    contour = np.full((frames, 4, 2), np.nan, np.float32)
    contour[valid > 0] = (shown.width_px / 2, shown.height_px / 2)
    speech = np.zeros((features_from_frames(frames, fps), SPEECH_DIM), np.float16)
    speech[:, 0], speech[:, 1] = np.arange(len(speech)), shown.number
    identity = np.eye(IDENTITY_DIM, dtype=np.float32)[shown.number % IDENTITY_DIM]
    arrays = ClipArrays(
        landmarks=np.zeros((frames, 478, 3), np.float32),
        contour=contour,
        lip_valid=valid,
        joints=np.zeros((frames, 2, 3), np.float32),
        face_rgb=np.zeros((112, 112, 3), np.uint8),
        speech=speech,
        identity=identity if shown.identity else identity[:0],
        face_motion=shown.motion(),
        face_contour=shown.oval(),
        face_valid=np.full(frames, 2, np.uint8),
    )
    return sample.encode(
        _meta(shown),
        arrays,
        sample.pack_mask(shown.lips()),
        mp4=_mp4(shown),
        flac=encode_flac(np.zeros(samples_from_frames(frames, fps), np.float32)),
        face_jpg=b"\xff\xd8\xff\xe0",
        text=shown.text,
    )


def _mp4(shown: Shown) -> bytes:
    colours = [(24 + 7 * k, 128, 20 + 14 * shown.number) for k in range(shown.num_frames)]
    images = (np.full((shown.height_px, shown.width_px, 3), colour, np.uint8) for colour in colours)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        encode_mp4(path, images, shown.fps, None, 1, "ultrafast")
        return path.read_bytes()


def _meta(shown: Shown) -> SampleMeta:
    clip = Clip(
        clip_id=shown.key,
        video_id="video",
        uri="video.mp4",
        scene=0,
        track=0,
        start_s=0.0,
        end_s=shown.num_frames / shown.fps,
        fps=shown.fps,
        num_frames=shown.num_frames,
        width_px=shown.width_px,
        height_px=shown.height_px,
    )
    face = Face(source_fps=25.0, face_px=32.0, face_confidence=0.9, face_confidence_min=0.9, faces_max=1)
    who = Identity(identity_model="unit", identity_consistency=1.0) if shown.identity else None
    return SampleMeta(
        measures=ClipMeasures(
            clip=clip,
            stopped_by=None,
            face=face,
            identity=who,
            # The variance of 1, -1, 1, ... is 1, and that of 3, -3, 3, ... is 9.
            motion=Motion(omega_face_raw=5.0, omega_body_raw=None, joints_valid_fraction=0.0),
        ),
        omega_face=shown.omega[0],
        omega_body=shown.omega[1],
        person_id=None,
        verdict=Verdict(clip_id=shown.key, accepted=True, reasons=()),
        provenance=Provenance(
            uri="video.mp4", sha256="00", source="", licence="", consent="", models={}, config_hash="",
            tool_version="0",
        ),
    )  # fmt: skip


def write_set(
    folder: Path,
    shards: Sequence[Sequence[Shown]],
    changes: Mapping[str, Mapping[str, bytes | None]] | None = None,
    embedding: str = "logmel-80",
    quantiles: Mapping[str, Sequence[float]] = MOTION_QUANTILES,
) -> str:
    """A data set of the given shards; returns the pattern that names them.

    Args:
        changes: key -> member -> other bytes, or None for a member that is taken away.
    """
    store = Store(str(folder))
    for number, clips in enumerate(shards):
        plan = ShardPlan(f"train-{number:06d}", tuple(clip.key for clip in clips), "f")
        write_shard(store, plan, [(clip.key, dict(members_of(clip))) for clip in clips])
        if changes and any(clip.key in changes for clip in clips):
            _rewrite(store, plan, [(clip.key, _changed(clip, changes.get(clip.key, {}))) for clip in clips])
    store.write("dataset.json", description(embedding, quantiles))
    return f"{folder}/shards/train-{{000000..{len(shards) - 1:06d}}}.tar"


def description(embedding: str, quantiles: Mapping[str, Sequence[float]]) -> bytes:
    """`dataset.json` of a data set whose speech features are of the encoder `embedding`."""
    config = Config.model_validate({"measure": {"speech": {"embedding": embedding}}})
    described = Dataset(
        schema_version=SCHEMA_VERSION,
        tool_version="0",
        config=config,
        config_hash="",
        models=(),
        joints=(),
        quantiles={name: tuple(values) for name, values in quantiles.items()},
    )
    return described.model_dump_json().encode()


def publish(folder: Path) -> Snapshot:
    """Make a snapshot of what `write_set` wrote."""
    store = Store(str(folder))
    tables = {name: b"" if name != "dataset.json" else store.read(name) for name in snapshots.TABLES}
    paths = [path for path in store.list("shards") if path.endswith(".json")]
    manifests = [sample.read_manifest(store.read(path), path) for path in paths]
    return snapshots.publish(store, manifests, tables, "0", keep=9)


def _changed(clip: Shown, changes: Mapping[str, bytes | None]) -> Members:
    members = members_of(clip) | changes
    return {name: data for name, data in members.items() if data is not None}


def _rewrite(store: Store, plan: ShardPlan, samples: Sequence[tuple[str, Members]]) -> None:
    """The tar file again, with members that no writer of ours would accept."""
    from webdataset import TarWriter

    assert store.local_root is not None
    with TarWriter(str(store.local_root / plan.tar), encoder=False) as tar:
        for key, members in samples:
            tar.write({"__key__": key, **members})


def write_latents(
    folder: Path, name: str, firsts: Mapping[int, Sequence[int]], *, encoders: bool = True
) -> None:
    """Latents of spans of 9 frames at 32 x 32 px: the number of the clip + first frame / 32 everywhere."""
    from webdataset import TarWriter

    (folder / "latents").mkdir(exist_ok=True)
    with TarWriter(str(folder / "latents" / f"{name}.tar"), encoder=False) as tar:
        for number, starts in firsts.items():
            values = number + np.array(starts)[:, None, None, None, None] / 32
            arrays = {
                "first_frame": np.array(starts, np.int32),
                "latents": np.broadcast_to(values, (len(starts), 16, 3, 4, 4)).astype(np.float16),
                "condition": np.broadcast_to(-values, (len(starts), 20, 3, 4, 4)).astype(np.float16),
            }
            if encoders:
                arrays |= {
                    "text": np.full((3, 2), number + 1, np.float16),
                    "empty_text": np.full((1, 2), 9, np.float16),
                    "image": np.full((len(starts), 5, 4), number + 0.5, np.float16),
                }
            tar.write({"__key__": f"clip{number:02d}", "latents.npz": npz_bytes(**arrays)})
