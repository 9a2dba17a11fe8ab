"""The paper's metrics, each by the network that defines it: FID, FVD, Sync-C, Sync-D and ES.

A network is used where its weights are on this machine (`talkforge models --fetch`). Where they are not, the
metric is not computed, and no other takes its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from talkforge.curation.face import identity
from talkforge.curation.face.crops import crop_face, smooth_boxes
from talkforge.curation.sync.syncnet import SyncNet
from talkforge.curation.weights import registry
from talkforge.curation.weights.torch import inference
from talkforge.schemas import extras
from talkforge.schemas.arrays import Bytes, Doubles, Floats
from talkforge.schemas.errors import ModelError, TalkforgeError, one_line
from talkforge.training.evaluate.figures import frechet
from talkforge.training.evaluate.measures import Values, VideoTrace

FID_FRAMES = 16
"""Frames of a video that FID takes, evenly spaced. Source: ours; the paper does not say."""

FVD_FRAMES = 16
"""Consecutive frames of one I3D feature. Source: Unterthiner et al., FVD (2019)."""

FVD_SPANS = 4
"""Most spans of a video that FVD takes, evenly spaced. Source: ours; the paper does not say."""

I3D_PX = 224
"""Edge of I3D's input."""

ES_PER_S = 5.0
"""Frames per second that ES takes. Source: ours; the paper does not say."""

NOT_READ = {
    "idc": "needs DINO ViT-B/16, which this version does not read",
    "sd": "needs RAFT and SAM, which this version does not read; flow_subject is another measure",
    "bd": "needs RAFT and SAM, which this version does not read; flow_background is another measure",
    "aesthetics": "needs LAION's predictor over CLIP ViT-L/14, which this version does not read",
}
"""Metrics of the paper that are never computed, and why."""

WEIGHTS = {
    "fid": "fid_inception",
    "fvd": "fvd_i3d",
    "sync_c": "syncnet_v2",
    "sync_d": "syncnet_v2",
    "es": "w600k_r50",
}
"""Metric -> its weights in the registry."""


@dataclass
class PaperNetworks:
    """The networks whose weights are here.

    Attributes:
        inception: images uint8 [N, H, W, 3] -> float64 [N, 2048], or None.
        i3d: spans uint8 [N, 16, H, W, 3] -> float64 [N, 400], or None.
        syncnet: SyncNet, or None.
        arcface: face embedder, or None.
        why_not: why a metric is not computed, by its name.
    """

    inception: Callable[[Bytes], Doubles] | None = None
    i3d: Callable[[Bytes], Doubles] | None = None
    syncnet: SyncNet | None = None
    arcface: identity.Embedder | None = None
    why_not: dict[str, str] = field(default_factory=lambda: dict(NOT_READ))

    @classmethod
    def load(cls) -> PaperNetworks:
        """Load what is here. Nothing is fetched."""
        found = cls()
        found.inception = found._loaded(("fid",), _load_inception)
        found.i3d = found._loaded(("fvd",), _load_i3d)
        found.syncnet = found._loaded(("sync_c", "sync_d"), SyncNet)
        found.arcface = found._loaded(
            ("es",), lambda path: identity.ArcFace("w600k_r50", path, registry.MODELS["w600k_r50"].sha256)
        )
        return found

    def _loaded(self, metrics: tuple[str, ...], load: Callable[[Path], Any]) -> Any:
        """What `load` makes of the metrics' weights; None where they are not here, and why."""
        name = WEIGHTS[metrics[0]]
        try:
            if name != "w600k_r50":
                extras.require("torch", metrics[0])
            path = registry.present(name)
            if path is None:
                raise ModelError(registry.how_to_get(name))
            return load(path)
        except TalkforgeError as error:
            self.why_not |= dict.fromkeys(metrics, one_line(error))
            return None

    def described(self) -> list[dict[str, str]]:
        """Name, sha256 and licence of the weights that are used."""
        names = dict.fromkeys(weights for metric, weights in WEIGHTS.items() if metric not in self.why_not)
        found = [registry.MODELS[name] for name in names]
        return [{"name": one.name, "sha256": one.sha256, "licence": one.licence} for one in found]

    def of_video(
        self, frames: Iterable[Bytes], trace: VideoTrace, samples: Floats | None
    ) -> tuple[Values, dict[str, Doubles]]:
        """Sync-C, Sync-D and ES of a video, and the features that FID and FVD take.

        Args:
            frames: uint8 RGB [H, W, 3] each.
            trace: of these frames.
            samples: its sound, as of `with_sound`.

        Returns:
            The values, and features [n, D] by 'fid' and 'fvd'.
        """
        values: Values = dict.fromkeys(("sync_c", "sync_d", "es"))
        if not (self.inception or self.i3d or self.syncnet or self.arcface):
            return values, {}
        count = len(trace.landmarks.points)
        boxes = smooth_boxes(trace.boxes) if len(trace.boxes) else None
        points, seen = trace.points_px, trace.landmarks.seen
        still = {*np.linspace(0, count - 1, min(FID_FRAMES, count)).round().astype(int).tolist()}
        starts = span_starts(count)
        every = max(1, round(trace.fps / ES_PER_S))
        images: list[Bytes] = []
        faces: list[Bytes] = []
        aligned: list[Bytes] = []
        spans: dict[int, list[Bytes]] = {start: [] for start in starts} if self.i3d else {}
        for k, rgb in enumerate(frames):
            if self.inception and k in still:
                images.append(rgb)
            for start, inside in spans.items():
                if start <= k < start + FVD_FRAMES:
                    inside.append(_at(rgb, I3D_PX))
            if self.syncnet and boxes is not None and samples is not None:
                faces.append(crop_face(rgb, boxes[k]))
            if self.arcface and seen[k] and k % every == 0:
                aligned.append(identity.align(rgb, points[k]))
        if self.syncnet and faces and samples is not None:
            score = self.syncnet.score(np.stack(faces), samples, trace.fps)
            if score is not None:
                values["sync_c"], values["sync_d"] = score.sync_c, score.sync_d
        if self.arcface and len(aligned) > 1:
            values["es"] = consistency(self.arcface.embed(np.stack(aligned)))
        features = {}
        if self.inception and images:
            features["fid"] = self.inception(np.stack(images))
        if self.i3d and spans:
            features["fvd"] = self.i3d(np.stack([np.stack(inside) for inside in spans.values()]))
        return values, features


def span_starts(num_frames: int) -> list[int]:
    """First frames of the spans that FVD takes of a video: at most `FVD_SPANS`, evenly spaced, apart.

    Args:
        num_frames: of the video. Fewer than `FVD_FRAMES` give none.
    """
    count = min(num_frames // FVD_FRAMES, FVD_SPANS)
    if not count:
        return []
    return np.linspace(0, num_frames - FVD_FRAMES, count).round().astype(int).tolist() if count > 1 else [0]


def consistency(vectors: Floats) -> float:
    """Mean cosine similarity of each vector to the first one and to the one before.

    Source: subject consistency of VBench (Huang et al., CVPR 2024), eq. 1. FantasyTalking says "between
    frames" and no more.

    Args:
        vectors: [n, D] of unit length, n at least 2.
    """
    exact = vectors.astype(np.float64)
    first, before = exact[1:] @ exact[0], (exact[1:] * exact[:-1]).sum(axis=1)
    return round(float((first + before).mean() / 2), 4)


def distance(name: str, generated: list[Doubles], truth: list[Doubles]) -> float | None:
    """FID or FVD of the features of all videos; None with fewer than two on a side.

    Args:
        name: 'fid' or 'fvd', for the number of digits.
        generated: features [n, D] of each generated video.
        truth: of each true one.
    """
    one, other = (np.concatenate(side) if side else np.zeros((0, 1)) for side in (generated, truth))
    if min(len(one), len(other)) < 2:
        return None
    return round(frechet(one, other), 3 if name == "fid" else 2)


def _at(rgb: Bytes, edge_px: int) -> Bytes:
    """A frame as a square of `edge_px`, by area where it shrinks."""
    shrinks = min(rgb.shape[:2]) > edge_px
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (edge_px, edge_px), interpolation=how), np.uint8)


def _load_inception(path: Path) -> Callable[[Bytes], Doubles]:
    import torch

    from talkforge.training.evaluate import inception

    network = inception.load(path)

    def features(images: Bytes) -> Doubles:
        with inference():
            return np.asarray(network(torch.from_numpy(images)).numpy(), np.float64)

    return features


def _load_i3d(path: Path) -> Callable[[Bytes], Doubles]:
    """I3D as a TorchScript file. Its sha256 was checked: such a file is a program."""
    import torch

    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ModelError(f"fvd_i3d: {path}: is no TorchScript file: {one_line(error, 150)}") from None

    def features(spans: Bytes) -> Doubles:
        with inference():
            x = torch.from_numpy(spans).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
            found = [network(one[None], rescale=False, resize=False, return_features=True) for one in x]
            return np.asarray(torch.cat(found).numpy(), np.float64)

    return features
