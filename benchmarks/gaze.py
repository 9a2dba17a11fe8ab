"""How far the measured gaze follows eyes that turn by a known angle: python -m benchmarks.gaze FILE...

The irises of the first face of each file (an image or a video) are moved in the image, within their lids. So
the truth is known, but a lid does not follow the eye up and down, as it does in life.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import av
import cv2
import numpy as np

from talkforge.curation.face import eyes
from talkforge.curation.face.landmarks import DetectedFace, FaceLandmarker
from talkforge.curation.weights import registry
from talkforge.schemas.arrays import Bytes, Floats, Landmarks

IRISES = ((468, (469, 471)), (473, (474, 476)))
"""Landmarks of the middle of each iris, and of its left and right edge."""

FACE_PX, MARGIN = 512, 1.6
"""Edge of the square in which a face is shown, and the square's edge in units of the face."""

TURNS_DEG = (-25.0, -12.0, 12.0, 25.0)


def iris_px(points: Floats) -> float:
    """Diameter of the irises, mean of both, of landmarks [478, 3]."""
    edges = [points[left, :2] - points[right, :2] for _, (left, right) in IRISES]
    return float(np.mean([np.linalg.norm(edge) for edge in edges]))


def turned(rgb: Bytes, points: Floats, yaw_deg: float, pitch_deg: float) -> Bytes:
    """A face whose eyes are turned: each iris is moved, and what is around it gives way.

    Args:
        rgb: uint8 [H, W, 3].
        points: landmarks [478, 3] in it.
        yaw_deg: by how much, to the viewer's right.
        pitch_deg: by how much, upwards.
    """
    reach = iris_px(points) / eyes.IRIS_MM * eyes.CENTRE_MM
    move = reach * np.sin(np.radians([yaw_deg, -pitch_deg])).astype(np.float32)
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]].astype(np.float32)
    map_x, map_y, radius = x.copy(), y.copy(), iris_px(points) / 2
    for middle, _ in IRISES:
        distance = np.hypot(x - points[middle, 0] - move[0], y - points[middle, 1] - move[1])
        weight = np.clip((2.2 * radius - distance) / (1.2 * radius), 0, 1)
        map_x -= weight * move[0]
        map_y -= weight * move[1]
    return np.asarray(cv2.remap(rgb, map_x, map_y, cv2.INTER_LINEAR), np.uint8)


def close_up(rgb: Bytes, landmarker: FaceLandmarker) -> tuple[Bytes, DetectedFace] | None:
    """A square around the face of an image, and its landmarks; None without a face."""
    found = landmarker.detect(np.ascontiguousarray(rgb))
    if found is None:
        return None
    low, high = found.points[:, :2].min(0), found.points[:, :2].max(0)
    edge = MARGIN * float((high - low).max())
    x, y = np.maximum(((low + high - edge) / 2).astype(int), 0)
    square = rgb[y : y + int(edge), x : x + int(edge)]
    shown = np.asarray(cv2.resize(square, (FACE_PX, FACE_PX), interpolation=cv2.INTER_CUBIC), np.uint8)
    again = landmarker.detect(shown)
    return None if again is None else (shown, again)


def gaze(found: DetectedFace) -> Floats:
    """Yaw and pitch of the gaze in one image, degrees; NaN with closed eyes."""
    one = Landmarks(found.points[None], found.blendshapes[None], found.angles_deg[None])
    return np.asarray(eyes.gaze_deg(one)[0], np.float32)


def followed(rgb: Bytes, landmarker: FaceLandmarker) -> tuple[float, float] | None:
    """Measured over true turn of the eyes of a face, to the side and up and down; None without open eyes.

    Up and down the eyes are turned by half of `TURNS_DEG`.
    """
    shown = close_up(rgb, landmarker)
    if shown is None:
        return None
    square, found = shown
    slopes = []
    for axis, share in ((0, 1.0), (1, 0.5)):
        turns = [(share * turn * (axis == 0), share * turn * (axis == 1)) for turn in TURNS_DEG]
        seen = [landmarker.detect(turned(square, found.points, *turn)) for turn in turns]
        measured = [np.nan if one is None else gaze(one)[axis] for one in seen]
        true = share * np.array(TURNS_DEG)
        known = np.isfinite(measured)
        if known.sum() < 2:
            return None
        slopes.append(float(np.polyfit(true[known], np.array(measured)[known], 1)[0]))
    return slopes[0], slopes[1]


def first_frame(path: Path) -> Bytes:
    """The first frame of an image or a video."""
    with av.open(str(path)) as container:
        return np.asarray(next(container.decode(video=0)).to_ndarray(format="rgb24"), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    landmarker = FaceLandmarker(registry.weights("face_landmarker"))
    slopes = []
    for path in parser.parse_args().files:
        found = followed(first_frame(path), landmarker)
        said = "no open eyes" if found is None else f"{found[0]:.2f} to the side, {found[1]:.2f} up and down"
        sys.stdout.write(f"{path.name}: {said}\n")
        slopes += [] if found is None else [found]
    if slopes:
        mean, deviation = np.mean(slopes, axis=0), np.std(slopes, axis=0)
        said = ", ".join(f"{m:.2f} (sd {d:.2f})" for m, d in zip(mean, deviation, strict=True))
        sys.stdout.write(f"{len(slopes)} faces: {said}\n")


if __name__ == "__main__":
    main()
