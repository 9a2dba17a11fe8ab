"""Head angles from face landmarks: MediaPipe's canonical face, fitted to the points as a camera sees them.

Source: MediaPipe, tasks/cc/vision/face_geometry/libs/geometry_pipeline.cc and procrustes_solver.cc.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from talkforge.schemas.arrays import Doubles, Floats

NUM_MESH_POINTS = 468
"""Points of the canonical face. Those of the irises are not among them."""

FIELD_OF_VIEW_DEG = 63.0
"""Vertical field of view of the camera that the fit assumes. Source: MediaPipe, face_landmarker_graph.cc."""

_VERTEX_FLOATS = 5
"""Numbers of a vertex in the file: x, y, z and two of the texture."""


class HeadPose:
    """The canonical face and the fit to it.

    Args:
        metadata: `geometry_pipeline_metadata_landmarks.binarypb` of the face landmarker's bundle, which holds
            the canonical face in cm and the weights of the points by which it is fitted.
    """

    def __init__(self, metadata: bytes) -> None:
        fields = list(_fields(metadata))
        numbers = b"".join(
            bytes(value)
            for number, mesh in fields
            if number == 1
            for inner, value in _fields(mesh)
            if inner == 3
        )
        vertices = np.frombuffer(numbers, "<f4").reshape(-1, _VERTEX_FLOATS)[:, :3]
        basis = [dict(_fields(value)) for number, value in fields if number == 2]
        self._ids = np.array([entry[1] for entry in basis])
        self._weights = np.array([np.frombuffer(entry[2], "<f4")[0] for entry in basis], np.float64)
        canonical = vertices[self._ids].astype(np.float64)
        self._share = (self._weights / self._weights.sum())[:, None]
        canonical -= (canonical * self._share).sum(0)
        self._canonical = canonical * self._weights[:, None]
        self._size = float((canonical * self._canonical).sum())

    def angles_deg(self, points: Floats, width_px: int, height_px: int) -> Floats:
        """Yaw, pitch and roll float32 [3] in degrees, see `head_angles`.

        Args:
            points: landmarks [478, 3] in pixels from the image's edge; z has the scale of x.
            width_px: width of the image.
            height_px: height of the image.
        """
        height = 2 * np.tan(np.radians(FIELD_OF_VIEW_DEG) / 2)  # of what the camera sees at distance 1
        scale = np.array([height / height_px, -height / height_px, height / height_px])
        origin = np.array([-width_px / height_px * height / 2, height / 2, 0.0])
        seen = points[:NUM_MESH_POINTS].astype(np.float64) * scale + origin
        depth = seen[:, 2].mean()
        seen = seen[self._ids]
        first, _ = self._fitted(seen * (1, 1, -1))
        second, _ = self._fitted(_at_distance(seen, depth, first))
        _, rotation = self._fitted(_at_distance(seen, depth, first * second))
        return head_angles(rotation)

    def _fitted(self, points: Doubles) -> tuple[float, Doubles]:
        """Scale and rotation [3, 3] that take the canonical face to points [n, 3], by weighted squares."""
        spread = (points - (points * self._share).sum(0)).T @ self._canonical
        left, _, right = np.linalg.svd(spread)
        if np.linalg.det(left) * np.linalg.det(right) < 0:  # a mirrored face is no rotation
            left[:, 2] *= -1
        rotation = left @ right
        return float((spread * rotation).sum() / self._size), rotation


def _at_distance(seen: Doubles, depth: float, scale: float) -> Doubles:
    """Points [n, 3] on the camera's plane, moved to where a face of this scale stands."""
    z = (seen[:, 2] - depth + 1) / scale
    return np.stack([seen[:, 0] * z, seen[:, 1] * z, -z], 1)


def head_angles(matrix: np.ndarray) -> Floats:
    """Yaw, pitch and roll float32 [3], in degrees, of a facial transformation matrix, [4, 4] or [3, 3].

    Yaw is positive when the face turns to the viewer's right, pitch when it looks up, and roll when the head
    leans clockwise in the image. Source: MediaPipe's metric space has x to the right, y up and z towards the
    viewer. The rotation is yaw about y, then pitch about x, then roll about z.
    """
    # The third column is where the face's own z axis points. Its x and z give the yaw, its y the pitch. The
    # second row holds the vertical parts of the face's axes, which give the roll.
    side, up = matrix[:3, 2], matrix[1, :3]
    yaw = np.arctan2(side[0], side[2])
    pitch = np.arctan2(side[1], np.hypot(side[0], side[2]))
    roll = -np.arctan2(up[0], up[1])
    return np.degrees([yaw, pitch, roll]).astype(np.float32)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protobuf message: the number of each, and an integer or the bytes of it.

    Source: the wire format of Protocol Buffers. MediaPipe's own reader would cost the import of MediaPipe.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield number, message[at : at + size]
        at += size
