"""Samples of a data set, as the Python API gives them.

Importing this module is cheap: what a function needs is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from talkforge.pipeline.store import Store
    from talkforge.schemas.arrays import Bytes, Floats
    from talkforge.schemas.sample import SampleMeta, ShardSample


@dataclass(frozen=True)
class Sample:
    """One clip of a data set. F frames of H x W pixels, L speech features at 50 Hz.

    The arrays are those that the shard holds. Frames, masks and audio are decoded by each call.
    """

    stored: ShardSample
    """The members of the sample, checked."""

    @property
    def key(self) -> str:
        """Id of the clip, as in `clip_id` of the ledger."""
        return self.stored.key

    @property
    def meta(self) -> SampleMeta:
        """The clip's span, every measurement, verdict, motion intensity, person and provenance."""
        return self.stored.meta

    @property
    def text(self) -> str:
        """Transcript or caption, may be empty."""
        return self.stored.text

    @property
    def lip_valid(self) -> Bytes:
        """[F] uint8: 0 the lips are missing, 1 interpolated, 2 measured."""
        return self.stored.lip_valid

    @property
    def lip_contour(self) -> Floats:
        """[F, P, 2] float32, outline of the outer lips in clip pixels; NaN where missing."""
        return self.stored.contour

    @property
    def landmarks(self) -> Floats:
        """[F, 478, 3] float32 in clip pixels; NaN where the face was not seen."""
        return self.stored.landmarks

    @property
    def blendshapes(self) -> np.ndarray:
        """[F, 52] float16 in 0 to 1, named by `BLENDSHAPES`; NaN where not seen or not measured."""
        return self.stored.blendshapes

    @property
    def face_valid(self) -> Bytes:
        """[F] uint8: 0 the face is missing, 1 interpolated, 2 measured."""
        return self.stored.face_valid

    @property
    def face_contour(self) -> Floats:
        """[F, 36, 2] float32, outline of the face in clip pixels; NaN where missing."""
        return self.stored.face_contour

    @property
    def joints(self) -> Floats:
        """[F, J, 3] float32: x, y in clip pixels, score 0 to 1; NaN where not seen."""
        return self.stored.joints

    @property
    def speech(self) -> np.ndarray:
        """[L, D] float16, speech features at 50 Hz."""
        return self.stored.speech

    @property
    def identity(self) -> Floats | None:
        """[D] float32 of unit length, or None where no face embedding was measured."""
        return self.stored.identity if len(self.stored.identity) else None

    def frames(self) -> Bytes:
        """The frames, uint8 RGB [F, H, W, 3].

        Raises:
            MediaError: the MP4 file is damaged.
        """
        from talkforge.curation.media import decode_mp4

        return decode_mp4(self.stored.mp4)

    def masks(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Lip-tracing masks of frames [first, last), bool [n, H, W]; all False where the lips are missing.

        Args:
            first: the first frame.
            last: the frame after the last one; None means the end.
        """
        return self.stored.masks(first, last)

    def face_masks(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Masks of the face, from hairline to chin, in frames [first, last).

        Args:
            first: the first frame.
            last: the frame after the last one; None means the end.

        Returns:
            bool [n, H, W], `face_contour` filled; all False where the face is missing.
        """
        from talkforge.curation.face.lips import rasterise_all

        clip = self.meta.clip
        return rasterise_all(self.face_contour[first:last], clip.height_px, clip.width_px)

    def audio(self) -> Floats:
        """The audio, float32 [N] in -1 to 1, 16 kHz mono; N / 16000 = F / fps.

        Raises:
            MediaError: the FLAC file is damaged.
        """
        from talkforge.curation.media import decode_flac

        return decode_flac(self.stored.flac)


def read_shard(store: Store, url: str) -> Iterator[Sample]:
    """The samples of one shard.

    Args:
        store: the data set.
        url: the tar file's path or URI, below the data set's.

    Raises:
        DatasetError: the tar file is missing, or it or a sample is damaged. The message names both.
    """
    from talkforge.pipeline.shards import read_samples
    from talkforge.schemas import sample
    from talkforge.schemas.errors import DatasetError

    name = url.removeprefix(f"{store.root}/")
    try:
        for key, members in read_samples(store, name):
            yield Sample(sample.decode(key, members))
    except DatasetError as error:
        raise DatasetError(f"{url}: {error}") from None
