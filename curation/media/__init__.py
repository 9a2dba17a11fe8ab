"""Media files: decoding and encoding of video and audio, and what a file is.

Nothing outside this room uses PyAV on a media file.
"""

from talkforge.curation.media.audio import read_audio
from talkforge.curation.media.encode import decode_flac, encode_flac, encode_mp4
from talkforge.curation.media.frames import Picture, clip_size, frames_shown, pictures

__all__ = [
    "Picture",
    "clip_size",
    "decode_flac",
    "encode_flac",
    "encode_mp4",
    "frames_shown",
    "pictures",
    "read_audio",
]
