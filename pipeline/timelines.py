"""Timelines of a data set's videos: built once, kept in `timelines/`, and used by whoever decodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from talkforge.curation.media import timeline
from talkforge.pipeline.store import Store, local_copy
from talkforge.schemas.errors import DatasetError
from talkforge.schemas.records import Video

FOLDER = "timelines"


@contextmanager
def local_video(store: Store, video: Video) -> Iterator[Path]:
    """A local copy of a video whose timeline is known, for as long as the block lasts.

    The timeline is read from the data set. Where it is not there, or damaged, it is built from the file's
    packets and kept.

    Args:
        store: the data set.
        video: one of its videos.

    Raises:
        MediaError: the video cannot be read.
        RunError: the data set cannot be read or written.
    """
    name = f"{FOLDER}/{video.video_id}.npz"
    with local_copy(store.input_uri(video.uri)) as path:
        try:
            known = timeline.from_bytes(store.read(name), name)
        except DatasetError:
            known = timeline.timeline_of(path, video.uri, video.audio_track)
            store.write(name, timeline.to_bytes(known))
        timeline.remember(path, video.uri, video.audio_track, known)
        yield path
