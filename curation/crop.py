"""The crop of a clip: one rectangle around its person, decided before any frame is measured densely.

A large frame is otherwise scaled down as a whole, and a person on a stage is left with a few pixels. The
rectangle does not move within a clip: a crop that follows the face would add motion that nobody made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from talkforge.curation.media import on_grid, whole_frame
from talkforge.schemas.arrays import Detections, FaceTrack, Floats
from talkforge.schemas.config import ClipConfig, MeasureConfig
from talkforge.schemas.records import Rectangle, Video


class Reach(NamedTuple):
    """How far a crop reaches beyond the face's box, in the median of the box's longer side."""

    above: float
    beside: float
    below: float


_PERSON = Reach(0.8, 1.5, 3.0)

REACH = {"face": Reach(0.6, 0.6, 0.5), "person": _PERSON, "auto": _PERSON}
"""Source: ours. Above the box there is hair, 0.35 of it. A shoulder ends one box beside it, the waist lies
three below."""

WORTH_FRACTION = 0.9
"""A crop that would keep more than this fraction of the frame is not made: it would gain next to nothing."""

IN_VIEW_FRACTION = 0.1
"""A face is in view of a crop if at least this fraction of its box is."""


LEAST_SCALE = 0.25
"""Where clips are cropped, faces are detected in frames of at least this scale. Source: ours. A face of 128
source pixels, which makes a clip, then has 32. In 480 px of a 4K frame it has 16, and of six people with 150
source pixels CenterFace missed one and was unsure of two."""


def detection_edge_px(video: Video, config: MeasureConfig) -> int:
    """Longest edge of the frames in which faces are detected."""
    edge_px = config.scan.longest_edge_px
    if not _is_cropped(video, config.clip):
        return edge_px
    return max(edge_px, round(LEAST_SCALE * max(video.width_px, video.height_px)))


def _is_cropped(video: Video, config: ClipConfig) -> bool:
    if config.crop == "auto":
        return max(video.width_px, video.height_px) > config.longest_edge_px
    return config.crop != "none"


def crop_of(
    video: Video, track: FaceTrack, start_s: float, end_s: float, config: ClipConfig
) -> Rectangle | None:
    """What a clip shows of its frames, in display pixels. None: the whole frame.

    The rectangle holds every box that the face has in the clip, with the reach of `config.crop` times
    `config.crop_margin` as far as the frame has it. With `config.crop_aspect` it then grows to that aspect
    where the frame has room, else it gives up reach. Where the face moves too far for that, it keeps the face
    and not the aspect. Its edges lie on the grid of `on_grid`.

    Args:
        video: the video.
        track: the face, with boxes in display pixels.
        start_s: start of the clip in source seconds.
        end_s: end of the clip in source seconds, exclusive.
        config: which crop.
    """
    if not _is_cropped(video, config):
        return None
    inside = (track.times_s > start_s) & (track.times_s < end_s)
    boxes = np.vstack([track.box_at(start_s), track.boxes[inside], track.box_at(end_s)]).astype(np.float64)
    unit_px = float(np.median(np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])))
    face = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    reach = REACH[config.crop]
    margin = np.array([-reach.beside, -reach.above, reach.beside, reach.below])
    frame = np.array([0.0, 0.0, video.width_px, video.height_px])
    region = _within(face + margin * config.crop_margin * unit_px, frame)
    if config.crop_aspect is not None:
        region = _with_aspect(region, _within(face, frame), frame, config.crop_aspect)
    left, top, width, height = (float(value) for value in (*region[:2], *(region[2:] - region[:2])))
    found = on_grid(video, Rectangle(left, top, width, height))
    whole = whole_frame(video)
    kept = found.width_px * found.height_px / (whole.width_px * whole.height_px)
    return None if kept > WORTH_FRACTION else found


def _within(box: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """The part of a box [4] that lies in the frame [4]."""
    return np.concatenate([np.maximum(box[:2], frame[:2]), np.minimum(box[2:], frame[2:])])


def _with_aspect(region: np.ndarray, face: np.ndarray, frame: np.ndarray, aspect: float) -> np.ndarray:
    """A box [4] of this aspect around the region; the region itself where the face would not fit into it."""
    width, height = region[2:] - region[:2]
    size = np.array([max(width, height * aspect), max(height, width / aspect)])
    size *= min(1.0, *(frame[2:] / size))
    if (size < face[2:] - face[:2]).any():
        return region
    # The middle of the region, moved so that the face is inside, then so that all of it is in the frame.
    # Height that the frame does not have is given up below.
    middle = (region[:2] + region[2:] - size) / 2
    corner = np.array([middle[0], min(middle[1], region[1])])
    corner = np.clip(corner, face[2:] - size, face[:2])
    corner = np.clip(corner, 0, frame[2:] - size)
    return np.concatenate([corner, corner + size])


def in_view(detections: Detections, crop: Rectangle | None) -> int:
    """How many of the faces of a sample a crop shows.

    Args:
        detections: boxes in display pixels.
        crop: in display pixels. None: the whole frame.
    """
    if crop is None or not len(detections.boxes):
        return len(detections.boxes)
    return int((_visible_fractions(detections.boxes, crop) >= IN_VIEW_FRACTION).sum())


def _visible_fractions(boxes: Floats, crop: Rectangle) -> np.ndarray:
    low = np.array([crop.left_px, crop.top_px])
    high = low + np.array([crop.width_px, crop.height_px])
    shown = np.clip(np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low), 0, None)
    return np.asarray(shown.prod(axis=1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-6))
