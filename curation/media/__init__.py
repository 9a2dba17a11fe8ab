"""Decoding and encoding of video and audio files, and probing them.

No module outside this package opens a media file with PyAV.
"""

from talkforge.curation.media.audio import read_audio
from talkforge.curation.media.encode import decode_flac, decode_mp4, encode_flac, encode_mp4
from talkforge.curation.media.frames import Frame, clip_indices, read_frames
from talkforge.curation.media.geometry import (
    clip_size,
    from_clip_px,
    height_scale,
    longer_edge_px,
    on_grid,
    to_clip_px,
    uncropped,
    whole_frame,
)

__all__ = [
    "Frame",
    "clip_indices",
    "clip_size",
    "decode_flac",
    "decode_mp4",
    "encode_flac",
    "encode_mp4",
    "from_clip_px",
    "height_scale",
    "longer_edge_px",
    "on_grid",
    "read_audio",
    "read_frames",
    "to_clip_px",
    "uncropped",
    "whole_frame",
]
