"""One length, rate, crop, size and codec for both videos of a pair."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from talkforge.curation.media import encode_mp4
from talkforge.curation.media.audio import read_audio_file
from talkforge.curation.media.probe import content_hash, probe
from talkforge.schemas.errors import MediaError
from talkforge.schemas.records import Input, Rectangle, Video
from talkforge.training.evaluate.framing import common_part, prepare
from talkforge.training.evaluate.measures import Models
from talkforge.training.evaluate.videos import VideoPair
from tests.conftest import CLIPS


@pytest.fixture(scope="module")
def models() -> Models:
    return Models.load("none")


def ramp(path: Path, frames: int, fps: float, size: tuple[int, int], sound: bool = True) -> Path:
    """Frame k is grey of 20 + 4 k; the sound is a tone."""
    width, height = size
    images = (np.full((height, width, 3), 20 + 4 * k, np.uint8) for k in range(frames))
    samples = np.sin(np.arange(round(frames / fps * 48_000)) * 0.1).astype(np.float32)[:, None] / 2
    encode_mp4(path, images, fps, samples if sound else None, 12, "ultrafast")
    return path


def greys(frames: object) -> list[float]:
    return [float(rgb.mean()) for rgb in frames]  # type: ignore[attr-defined]


def test_both_get_the_shorter_length_the_lower_rate_and_the_smaller_size(
    tmp_path: Path, models: Models
) -> None:
    made = ramp(tmp_path / "made.mp4", 20, 25.0, (64, 48))
    true = ramp(tmp_path / "true.mp4", 50, 50.0, (128, 96))
    found = prepare(VideoPair("a", made, true), tmp_path, models, 60.0)
    assert (found.fps, found.num_frames, found.size) == (25.0, 20, (64, 48))
    assert greys(found.generated) == pytest.approx([20 + 4 * k for k in range(20)], abs=2)
    assert greys(found.truth) == pytest.approx([20 + 8 * k for k in range(20)], abs=2)
    assert next(iter(found.truth)).shape == (48, 64, 3)
    assert found.generated_sound is not None and len(found.generated_sound) == 12_800
    assert found.steps == (
        "the first 0.80 s, 20 frames, of up to 1.00 s",
        "25 frames per second; generated 25, true 50",
        "crop: none",
        "64x48 px; generated 64x48, true 128x96",
        "both encoded by x264, crf 18, veryfast",
    )


def test_a_generated_video_without_sound_is_heard_with_the_true_one(tmp_path: Path, models: Models) -> None:
    made = ramp(tmp_path / "made.mp4", 10, 25.0, (64, 48), sound=False)
    true = ramp(tmp_path / "true.mp4", 10, 25.0, (64, 48))
    found = prepare(VideoPair("a", made, true), tmp_path, models, 60.0)
    assert found.generated_sound is not None and found.true_sound is not None
    assert np.array_equal(found.generated_sound, found.true_sound) and found.generated_sound.std() > 0.1
    assert found.steps[-1] == "the generated video has no sound: that of the true one is used"
    silent = prepare(VideoPair("a", made, made), tmp_path, models, 60.0)
    assert silent.generated_sound is None and silent.true_sound is None


def test_no_more_is_compared_than_was_asked_for(tmp_path: Path, models: Models) -> None:
    one = ramp(tmp_path / "one.mp4", 20, 25.0, (64, 48))
    assert prepare(VideoPair("a", one, one), tmp_path, models, 0.4).num_frames == 10
    with pytest.raises(MediaError, match=r"^expected 5 frames in common, found 2$"):
        prepare(VideoPair("a", one, one), tmp_path, models, 0.1)


def test_a_damaged_file_is_named(tmp_path: Path, models: Models) -> None:
    true = ramp(tmp_path / "true.mp4", 10, 25.0, (64, 48))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(true.read_bytes()[:300])
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        prepare(VideoPair("a", broken, true), tmp_path, models, 60.0)
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    with pytest.raises(MediaError, match=r"empty\.mp4"):
        prepare(VideoPair("a", true, empty), tmp_path, models, 60.0)


def test_a_video_that_was_cut_out_of_the_true_one_is_compared_with_that_part(
    tmp_path: Path, models: Models
) -> None:
    """A square of 216 px, from (88, 40) of 360x288, at two thirds of the size."""
    import cv2

    source = CLIPS / "grid_lrwp9a.mpg"
    with av.open(str(source)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:8]
    cut = [
        np.asarray(cv2.resize(rgb[40:256, 88:304], (144, 144), interpolation=cv2.INTER_AREA), np.uint8)
        for rgb in images
    ]
    sound = read_audio_file(source, 48_000)[:15_360, None]
    encode_mp4(tmp_path / "cut.mp4", cut, 25.0, np.ascontiguousarray(sound), 12, "veryfast")
    pair = VideoPair("a", tmp_path / "cut.mp4", source)
    found = prepare(pair, tmp_path, models, 0.32)
    assert found.steps[2] == "crop: both to what they have in common"
    assert found.size[0] == pytest.approx(144, abs=6) and found.size[1] == pytest.approx(144, abs=6)
    made, true = (np.stack(list(side)).astype(float) for side in (found.generated, found.truth))
    apart = np.abs(made - true).mean()
    whole = np.abs(made - np.roll(true, 12, axis=2)).mean()
    assert apart < 8 and whole > 1.7 * apart


def video(width: int, height: int) -> Video:
    return Video(
        video_id="", sha256="", uri="", num_bytes=0, container="", video_codec="", pixel_format="",
        width_px=width, height_px=height, coded_width_px=width, coded_height_px=height, rotation_deg=0,
        sample_aspect_ratio=1.0, fps=25.0, fps_nominal=25.0, start_s=0.0, end_s=1.0,
    )  # fmt: skip


def test_the_common_part_lies_inside_both() -> None:
    # The generated video shows (200, 100) to (456, 356) of the true one, at half the size.
    made, true = video(128, 128), video(640, 480)
    inside = np.array([[2.0, 0, 200], [0, 2.0, 100]])
    assert common_part(inside, made, true) == (Rectangle(0, 0, 128, 128), Rectangle(200, 100, 256, 256))
    # Shifted to the left by 232: 32 of its 256 px lie outside.
    outside = np.array([[2.0, 0, -32], [0, 2.0, 100]])
    assert common_part(outside, made, true) == (Rectangle(16, 0, 112, 128), Rectangle(0, 100, 224, 256))
    with pytest.raises(MediaError, match="share less than half"):
        common_part(np.array([[2.0, 0, -200], [0, 2.0, 100]]), made, true)


def test_probing_leaves_the_file_as_it_is(tmp_path: Path, models: Models) -> None:
    one = ramp(tmp_path / "one.mp4", 10, 25.0, (64, 48))
    before = content_hash(one)
    prepare(VideoPair("a", one, one), tmp_path, models, 60.0)
    assert content_hash(one) == before and probe(one, Input(uri=str(one)), before).fps == 25.0
