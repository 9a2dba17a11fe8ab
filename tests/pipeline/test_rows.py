"""What the sparse pass says of a clip."""

from __future__ import annotations

import numpy as np
import pytest

from talkforge.curation.scan import Scan
from talkforge.pipeline.rows import ScannedWindow, cheap_measures
from talkforge.schemas.arrays import Audio, Detections, FaceTrack
from talkforge.schemas.config import MeasureConfig
from tests.records import clip_of, video

BOX = np.array([[10, 10, 40, 50]], np.float32)


@pytest.mark.parametrize(
    ("faces_at", "most"),
    [
        ({}, 1),  # no sample lies in the clip
        ({0.0: 0, 0.5: 1, 1.0: 0, 1.5: 1}, 1),  # no two samples in a row show the face
        ({0.0: 1, 0.5: 1, 1.0: 1}, 1),
        ({0.0: 2, 0.5: 2, 1.0: 1}, 2),
        ({0.0: 1, 0.5: 2, 1.0: 1}, 1),
    ],
)
def test_a_clip_shows_its_own_face_at_least(faces_at: dict[float, int], most: int) -> None:
    detections = tuple(
        Detections(time_s, np.repeat(BOX, count, axis=0), np.ones(count, np.float32))
        for time_s, count in faces_at.items()
    )
    both = np.repeat(BOX, 2, axis=0)
    track = FaceTrack(0, 0, 0.0, 2.0, np.array([0.0, 2.0]), both, np.ones(2, np.float32), "d")
    clip = clip_of(50, 64, 64)
    seen = Scan((), (track,), detections, {})
    window = ScannedWindow(video(1), Audio(0.0, np.zeros(32000, np.float32)), (), seen)
    assert cheap_measures(clip, track, window, MeasureConfig()).face.faces_max == most
