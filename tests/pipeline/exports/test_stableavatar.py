"""StableAvatar's folders: frames, masks and audio of one clip fit together, and lie in the right shape."""

from __future__ import annotations

import wave
from pathlib import Path

import cv2
import numpy as np
import pytest

from talkforge.pipeline.export import Options, export
from talkforge.pipeline.exports.stableavatar import crop_of, face_mask, shape_of
from talkforge.schemas.npz import npz_bytes
from tests.pipeline.exports.published_set import publish
from tests.training.shard_files import Shown

WIDE = Shown(4, num_frames=8, width_px=128, height_px=64)


def landmarks(frames: int, left: float, top: float, size: float) -> np.ndarray:
    """[F, 478, 3] on the edge of a square; nothing in frame 2."""
    along = np.linspace(0, 4, 478, endpoint=False)
    edge = [(a, 0) if a < 1 else (1, a - 1) if a < 2 else (3 - a, 1) if a < 3 else (0, 4 - a) for a in along]
    points = np.zeros((frames, 478, 3), np.float32)
    points[..., :2] = np.array([left, top]) + size * np.array(edge)
    points[2] = np.nan
    return points


@pytest.mark.parametrize(
    ("size", "shape"),
    [((512, 512), "square"), ((640, 512), "square"), ((832, 480), "rec"), ((1920, 1080), "rec"),
     ((480, 832), "vec"), ((720, 900), "square"), ((1080, 1920), "vec")],
)  # fmt: skip
def test_a_clip_goes_where_its_shape_is(size: tuple[int, int], shape: str) -> None:
    assert shape_of(*size) == shape


def test_the_crop_is_around_the_face_and_inside_the_frame() -> None:
    face = landmarks(4, 90, 10, 20)
    assert crop_of(face, 128, 64, (512, 512)) == (64, 0, 64, 64)  # as far right as the frame goes
    assert crop_of(landmarks(4, 50, 10, 20), 128, 64, (512, 512)) == (28, 0, 64, 64)
    assert crop_of(face * np.nan, 128, 64, (512, 512)) == (32, 0, 64, 64)
    assert crop_of(face, 128, 64, (832, 480)) == (17, 0, 111, 64)


def test_a_face_mask_is_the_hull_of_the_landmarks() -> None:
    mask = face_mask(landmarks(4, 10, 20, 30)[0], 128, 64)
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
    rows, columns = np.nonzero(mask)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (10, 40, 20, 50)
    assert not face_mask(landmarks(4, 10, 20, 30)[2], 128, 64).any()


def test_the_loader_finds_frames_masks_and_audio_that_belong_together(tmp_path: Path) -> None:
    points = landmarks(WIDE.num_frames, 40, 8, 40)
    changes = {WIDE.key: {"landmarks.npz": npz_bytes(points=points)}}
    store = publish(tmp_path / "set", {"train": [[WIDE]]}, changes=changes)
    done = export(store, "stableavatar", Options(tmp_path / "out"))
    assert done.export.clips == {"train": 1}
    root = tmp_path / "out" / "train"
    (line,) = (root / "video_rec_path.txt").read_text().splitlines()
    assert Path(line) == root / "rec" / "speech" / WIDE.key and "speech" in line
    assert (root / "video_square_path.txt").read_text() == (root / "video_vec_path.txt").read_text() == ""
    video = cv2.VideoCapture(f"{line}/sub_clip.mp4")
    assert (video.get(cv2.CAP_PROP_FPS), video.get(cv2.CAP_PROP_FRAME_COUNT)) == (25, WIDE.num_frames)
    names = [f"frame_{number}.png" for number in range(WIDE.num_frames)]
    crop = crop_of(points, WIDE.width_px, WIDE.height_px, (832, 480))
    for folder in ("images", "face_masks", "lip_masks"):
        assert {path.name for path in Path(line, folder).iterdir()} == set(names)
    for number, name in enumerate(names):
        bgr = cv2.imread(f"{line}/images/{name}", cv2.IMREAD_UNCHANGED)
        assert bgr.shape == (480, 832, 3)
        assert abs(bgr[..., 2].mean() - (24 + 7 * number)) < 2.5  # red stands for the frame
        lips = cv2.imread(f"{line}/lip_masks/{name}", cv2.IMREAD_UNCHANGED)
        face = cv2.imread(f"{line}/face_masks/{name}", cv2.IMREAD_UNCHANGED)
        assert lips.shape == face.shape == (480, 832)
        for mask, true in ((lips, WIDE.lips()[number]), (face, face_mask(points[number], 128, 64) > 0)):
            assert set(np.unique(mask)) <= {0, 255}
            part = true[:, crop[0] : crop[0] + crop[2]]
            assert abs((mask > 0).mean() - part.mean()) < 0.02
    with wave.open(f"{line}/audio.wav") as audio:
        assert audio.getnframes() / 16000 == WIDE.num_frames / 25
