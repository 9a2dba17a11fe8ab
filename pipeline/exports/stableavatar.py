"""Export for StableAvatar: frames, masks of face and lips, and audio of every clip, in folders by shape.

    <split>/<square|vec|rec>/speech/<clip id>/
        sub_clip.mp4  audio.wav
        images/frame_0.png  face_masks/frame_0.png  lip_masks/frame_0.png ...
    <split>/video_square_path.txt, video_vec_path.txt, video_rec_path.txt

Its loader stretches frames to the size that it trains at. They are therefore cropped to that shape around the
face, and scaled, here. Masks are 8 bit grey, 0 or 255; a frame in which the face or the lips were not found
has an empty one. Source: Francis-Rings/StableAvatar, README.md (Model Training) and
wan/dataset/talking_video_dataset_fantasy.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from talkforge.curation.media import decode_mp4
from talkforge.curation.media.encode import encode_mp4
from talkforge.pipeline.exports.clips import ClipMembers, Written
from talkforge.pipeline.exports.folder import ClipEntry, ExportFolder
from talkforge.pipeline.exports.trainers import wav_bytes
from talkforge.schemas import sample
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.errors import RunError

SHAPES = {"square": (512, 512), "vec": (480, 832), "rec": (832, 480)}
"""Folder -> width and height in pixels of the frames in it. Source: StableAvatar's README."""

KIND = "speech"
"""Folder of clips whose prompt is "The protagonist is talking". Source: StableAvatar's loader."""

CRF, PRESET = 18, "veryfast"
"""Of the video beside the frames, from which the loader takes the frame rate. Source: ours."""


def shape_of(width_px: int, height_px: int) -> str:
    """The folder whose shape is nearest to that of a clip, by the logarithm of width over height."""
    return min(SHAPES, key=lambda name: abs(np.log(SHAPES[name][0] / SHAPES[name][1] * height_px / width_px)))


def crop_of(
    landmarks: Floats, width_px: int, height_px: int, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Largest rectangle of a clip with the shape of `size`, as near to the middle of the face as it can be.

    Args:
        landmarks: [F, 478, 3], NaN where the face was not seen; without any the middle of the frame counts.
        width_px: of the clip.
        height_px: of the clip.
        size: width and height that the rectangle will be scaled to.

    Returns:
        Left, top, width, height, in pixels of the clip.
    """
    scale = min(width_px / size[0], height_px / size[1])
    crop_width, crop_height = round(size[0] * scale), round(size[1] * scale)
    points = landmarks[..., :2][np.isfinite(landmarks[..., :2]).all(axis=-1)]
    middle = (points.min(axis=0) + points.max(axis=0)) / 2 if len(points) else (width_px / 2, height_px / 2)
    left = int(np.clip(round(middle[0] - crop_width / 2), 0, width_px - crop_width))
    top = int(np.clip(round(middle[1] - crop_height / 2), 0, height_px - crop_height))
    return left, top, crop_width, crop_height


def face_mask(points: Floats, width_px: int, height_px: int) -> Bytes:
    """The convex hull of a frame's landmarks: uint8 [H, W], 0 or 255.

    Args:
        points: [478, 3] in pixels; NaN where the face was not seen, which gives an empty mask.
        width_px: of the frame.
        height_px: of the frame.
    """
    mask = np.zeros((height_px, width_px), np.uint8)
    if np.isfinite(points[:, :2]).all():
        hull = cv2.convexHull(np.round(points[:, :2]).astype(np.int32))
        cv2.fillConvexPoly(mask, hull, 255)
    return mask


@dataclass(frozen=True)
class AvatarFolder:
    """Writes clips as StableAvatar's loader reads them.

    Attributes:
        folder: of the export.
    """

    folder: ExportFolder

    def write(self, clip: ClipMembers) -> Written:
        """Write the folder of one clip."""
        found = sample.decode(clip.key, clip.members)
        cut = found.meta.clip
        shape = shape_of(cut.width_px, cut.height_px)
        size = SHAPES[shape]
        left, top, width, height = crop_of(found.landmarks, cut.width_px, cut.height_px, size)

        def cropped(image: np.ndarray, how: int) -> Bytes:
            part = image[top : top + height, left : left + width]
            return np.asarray(cv2.resize(part, size, interpolation=how), np.uint8)

        grows = size[0] > width
        frames = [cropped(rgb, cv2.INTER_CUBIC if grows else cv2.INTER_AREA) for rgb in decode_mp4(found.mp4)]
        name = f"{clip.split}/{shape}/{KIND}/{clip.key}"
        with self.folder.filling(name) as (path, files):
            for folder in ("images", "face_masks", "lip_masks"):
                (path / folder).mkdir()
            for number, rgb in enumerate(frames):
                (lips,) = found.masks(number, number + 1)
                face = face_mask(found.landmarks[number], cut.width_px, cut.height_px)
                _write_png(path / "images" / f"frame_{number}.png", rgb[..., ::-1])
                _write_png(path / "face_masks" / f"frame_{number}.png", cropped(face, cv2.INTER_NEAREST))
                mask = lips.astype(np.uint8) * np.uint8(255)
                _write_png(path / "lip_masks" / f"frame_{number}.png", cropped(mask, cv2.INTER_NEAREST))
            encode_mp4(path / "sub_clip.mp4", frames, cut.fps, None, CRF, PRESET)
            (path / "audio.wav").write_bytes(wav_bytes(found.flac))
        crop = {"left_px": left, "top_px": top, "width_px": width, "height_px": height}
        return files, {"folder": name, "shape": shape, "num_frames": len(frames), "crop": crop}


def _write_png(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), np.ascontiguousarray(image)):
        raise RunError(f"cannot write {path}")


def path_lists(folder: ExportFolder, keys: Mapping[str, Iterable[str]]) -> dict[str, bytes]:
    """`video_<shape>_path.txt` of every split: the folder of each clip, absolute, one a line.

    Args:
        folder: with every clip in it.
        keys: split -> ids of its clips in order.
    """
    found: dict[str, bytes] = {}
    for split, of_split in keys.items():
        entries: list[ClipEntry] = [folder.done[key] for key in of_split]
        for shape in SHAPES:
            lines = [str(folder.path / e.row["folder"]) for e in entries if e.row["shape"] == shape]
            found[f"{split}/video_{shape}_path.txt"] = "".join(f"{line}\n" for line in lines).encode()
    return found
