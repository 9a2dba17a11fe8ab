"""Candidate clips: the spans that face tracks are split into.

Every second of a track belongs to exactly one candidate, however short. A candidate that is too short is
rejected by the verdict, so it appears in the ledger and is counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from talkforge.curation.crop import crop_of
from talkforge.curation.media import clip_size
from talkforge.schemas.arrays import FaceTrack
from talkforge.schemas.config import ClipConfig
from talkforge.schemas.records import Clip, Video, clip_id
from talkforge.schemas.units import frames_from_seconds, seconds_from_frames

Segment = tuple[float, float]
"""(start_s, end_s), half open, in source seconds."""


class Candidate(NamedTuple):
    """A candidate clip and the face track that it is a span of."""

    clip: Clip
    track: FaceTrack


def candidates(
    video: Video, tracks: Sequence[FaceTrack], speech: Sequence[Segment], config: ClipConfig
) -> list[Candidate]:
    """Candidate clips of the tracks, in order of start and track.

    A track longer than `config.max_s` is split into near-equal parts. Each split moves to the nearest
    pause of speech, so that words stay whole where they can. Parts shorter than one frame are dropped.

    Args:
        video: the video that the tracks were found in.
        tracks: face tracks, in source seconds.
        speech: spans of speech, ascending.
        config: greatest length, frame rate, size and crop of a clip.
    """
    found = []
    for track in tracks:
        for start_s, end_s in split_span(track.start_s, track.end_s, speech, config.max_s):
            num_frames = frames_from_seconds(end_s - start_s, config.fps)
            if num_frames < 1:
                continue
            end_s = start_s + seconds_from_frames(num_frames, config.fps)
            crop = crop_of(video, track, start_s, end_s, config)
            width_px, height_px = clip_size(video, config.longest_edge_px, crop)
            left_px, top_px, crop_width_px, crop_height_px = crop or (None,) * 4
            clip = Clip(
                clip_id=clip_id(video.video_id, start_s, end_s, track.track),
                video_id=video.video_id,
                uri=video.uri,
                scene=track.scene,
                track=track.track,
                start_s=start_s,
                end_s=end_s,
                fps=config.fps,
                num_frames=num_frames,
                width_px=width_px,
                height_px=height_px,
                crop_left_px=left_px,
                crop_top_px=top_px,
                crop_width_px=crop_width_px,
                crop_height_px=crop_height_px,
            )
            found.append(Candidate(clip, track))
    return sorted(found, key=lambda found: (found.clip.start_s, found.clip.track, found.clip.clip_id))


def split_span(start_s: float, end_s: float, speech: Sequence[Segment], max_s: float) -> list[Segment]:
    """Split a span into the fewest near-equal parts of at most `max_s`, preferably in pauses of speech.

    A split moves by at most a quarter of a part from its ideal time to the middle of the nearest pause. If no
    pause is that near, it stays at the ideal time, or as near to it as the split before it leaves room for.

    Args:
        start_s: start of the span in source seconds.
        end_s: end of the span in source seconds, exclusive.
        speech: spans of speech, ascending.
        max_s: greatest length of a part.
    """
    parts = int(np.ceil((end_s - start_s) / max_s - 1e-6))
    if parts <= 1:
        return [(start_s, end_s)]
    pauses = [(a[1] + b[0]) / 2 for a, b in itertools.pairwise(speech)]
    edges = [start_s]
    for index in range(1, parts):
        ideal_s = start_s + (end_s - start_s) * index / parts
        # This part must not be longer than max_s, and the rest must fit into the parts that remain.
        reach_s = (end_s - start_s) / parts / 4
        low_s = max(ideal_s - reach_s, end_s - (parts - index) * max_s)
        high_s = min(ideal_s + reach_s, edges[-1] + max_s)
        near = [pause for pause in pauses if low_s <= pause <= high_s]
        plain_s = min(max(ideal_s, low_s), high_s)
        edges.append(min(near, key=lambda pause: abs(pause - ideal_s), default=plain_s))
    edges.append(end_s)
    return list(itertools.pairwise(edges))


def union(spans: Sequence[Segment]) -> list[Segment]:
    """The union of the spans: overlapping ones are merged, ascending."""
    merged: list[Segment] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((start_s, end_s))
    return merged
