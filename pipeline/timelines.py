"""Timelines of a data set's videos: built once, kept in `timelines/`, and used by whoever decodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from talkforge.curation.media import timeline_files
from talkforge.curation.media.probe import content_hash
from talkforge.pipeline.ingest import stamp_of
from talkforge.pipeline.store import Store, local_copy
from talkforge.schemas.errors import DatasetError, MediaError
from talkforge.schemas.records import Video

FOLDER = "timelines"


@contextmanager
def local_video(store: Store, video: Video, stamp: str | None = None) -> Iterator[Path]:
    """A local copy of a video whose timeline is known, for as long as the block lasts.

    The timeline is read from the data set. Where it is not there, or damaged, it is built from the file's
    packets and kept.

    Args:
        store: the data set.
        video: one of its videos.
        stamp: state of the file when it was hashed, see `ingest.stamp_of`. Where it is given, a file that is
            not the one that was measured is refused.

    Raises:
        MediaError: the video cannot be read, or has changed.
        RunError: the data set cannot be read or written.
    """
    name = f"{FOLDER}/{video.video_id}.npz"
    uri = store.input_uri(video.uri)
    with local_copy(uri, store.limits) as path:
        if stamp is not None:
            _check_unchanged(path, uri, video, stamp)
        try:
            known = timeline_files.from_bytes(store.read(name), name)
        except DatasetError:
            known = timeline_files.timeline_of(path, video.uri, video.audio_track)
            store.write(name, timeline_files.to_bytes(known))
        timeline_files.remember(path, video.uri, video.audio_track, known)
        yield path


def _check_unchanged(path: Path, uri: str, video: Video, stamp: str) -> None:
    """A local file in the state that was measured is trusted; any other file and every copy is hashed."""
    if "://" not in uri and stamp and stamp == stamp_of(uri):
        return
    if content_hash(path) != video.sha256:
        raise MediaError(
            f"{uri!r}: the file has changed since it was measured; `talkforge curate` measures it anew"
        )
