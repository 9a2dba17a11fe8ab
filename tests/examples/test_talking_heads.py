"""The generated videos are what their truth says: checked on the pixels, on the samples, by ear
(a voice activity detector) and by eye (a face landmarker that knows nothing of the truth)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes
from scipy.signal import resample_poly

from examples import demo_videos
from examples.portraits import BLEND_PX, PEOPLE, PORTRAITS, Framing, Head, blend, frame, portrait
from examples.speech import SPEECH_HZ, VOICES, silence, speak
from examples.talking_heads import Acting, cut, side_by_side, talk, varied_take, write
from examples.warps import BrowWarp, MouthWarp, carried
from talkforge.curation.audio.vad import speech_probabilities
from talkforge.curation.media import probe, read_audio
from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import CommandError, MediaError
from talkforge.schemas.records import Input, Video
from tests.conftest import CLIPS, Packaged

TEXT = "Maybe my mother and five other people move above the blue water."
OUTER_LIP = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
"""The landmarker's points of the outer lip, in the order of `FaceTruth.contour`."""


def _probed(path: Path) -> Video:
    return probe.probe(path, Input(uri=str(path)), probe.content_hash(path))


def _filled(contour: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(contour * 16).astype(np.int32)], 1, shift=4)
    return mask.astype(bool)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


# --- speech --------------------------------------------------------------------------------------


@pytest.mark.parametrize("voice", VOICES)
def test_a_voice_activity_detector_hears_every_voice(voice: str) -> None:
    samples = resample_poly(speak(TEXT, voice).samples, 1, 3)[4000:-4000]
    assert np.mean(speech_probabilities(samples) > 0.5) >= 0.85
    assert np.abs(samples).max() < 0.95


def test_the_same_text_gives_the_same_samples_whatever_was_said_before() -> None:
    first = speak(TEXT, VOICES[0])
    speak("Something else.", VOICES[2], words_per_minute=140, pitch=40)
    again = speak(TEXT, VOICES[0])
    assert again.samples.tobytes() == first.samples.tobytes()
    assert again.mouth.tobytes() == first.mouth.tobytes()


def test_lips_meet_for_m_and_open_for_a() -> None:
    speech = speak("mama mama", VOICES[0], words_per_minute=120)
    jaw = speech.mouth[:, 0]
    inner = jaw[(jaw > 0.3).argmax() : len(jaw) - (jaw[::-1] > 0.3).argmax()]
    edges = np.flatnonzero(np.diff((inner > 0.15).astype(int)))
    closures = [inner[a:b].min() for a, b in pairwise(edges[::1]) if inner[a + 1 : b + 1].max() <= 0.15]
    assert len(closures) == 3
    assert max(closures) < 0.05
    assert jaw.max() > 0.5


def test_who_has_round_lips_and_we_wide_ones() -> None:
    who, we = (speak(word, VOICES[0]).mouth for word in ("who", "he"))
    assert who[:, 3].max() > 0.9
    assert who[:, 2].min() < -0.8
    assert we[:, 2].max() > 0.6
    assert we[:, 3].max() < 0.05


@pytest.mark.parametrize("text", ["Open all of them.", "Bright maps move."])
def test_a_mouth_never_jumps_not_even_at_the_first_sound(text: str) -> None:
    """What opens in one frame looks like a cut."""
    speech = speak(text, duration_s=4.0)  # said twice
    assert speech.mouth.max() > 0.5
    assert not speech.mouth[:60].any()
    assert np.abs(np.diff(speech.mouth, axis=0)).max() < 0.03  # in 1 ms


def test_pauses_are_as_long_as_they_are_asked_to_be() -> None:
    short, long = (speak(TEXT, VOICES[0], pause_s=pause_s) for pause_s in (0.25, 0.6))
    assert long.duration_s == pytest.approx(short.duration_s + 0.7)
    shift = round(0.35 * 1000)
    assert np.array_equal(long.mouth[shift : shift + len(short.mouth)], short.mouth)
    assert np.abs(long.samples[: 48 * 550]).max() < 0.01


def test_speech_after_speech() -> None:
    first, then = speak("Good morning."), speak("Move over.")
    both = first.then(then)
    assert np.array_equal(both.samples, np.concatenate([first.samples, then.samples]))
    at = round(first.duration_s * 1000)
    assert np.array_equal(both.mouth[:at], first.mouth[:at])
    assert np.array_equal(both.mouth[at : at + 700], then.mouth[:700])
    assert first.then(silence(0.5)).spoken and not silence(0.5).then(silence(0.5)).spoken


def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(CommandError, match="'en-xx'"):
        speak(TEXT, "en-xx")


# --- truth of the pictures -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PORTRAITS)
def test_the_contour_is_that_of_the_rendered_pixels(name: str) -> None:
    """Lips painted green move where the contour says, to within a fifteenth of their area."""
    head = frame(name, 640, 640)
    green = np.zeros_like(head.picture)
    green[_filled(head.face.outer, green.shape)] = (0, 255, 0)
    take = talk(replace(head, picture=green), speak(TEXT, duration_s=3), seed=2, acting=Acting(noise=0))
    overlaps = []
    for index, picture in enumerate(take.frames()):
        if index % 5 == 0:
            lips = binary_fill_holes(picture[..., 1] > 127)
            overlaps.append(_overlap(lips, _filled(take.faces[0].contour[index], lips.shape)))
    assert take.faces[0].opening.max() > 15
    assert min(overlaps) > 0.93


def test_carried_points_are_looked_up_where_they_came_from() -> None:
    warp = MouthWarp(frame("collins", 640, 640).face)
    rng = np.random.default_rng(0)
    low, high = np.array([0, 0, -1, 0, 1]), np.array([1, 1, 1, 1, 1])
    mouth = rng.uniform(low, high, (64, 5)).astype(np.float32)
    points = warp.face.outer[11:]
    moved = carried(points, lambda at: warp.field(at, lower=True), mouth)
    back = moved - np.einsum("fk,kfpc->fpc", mouth, warp.field(moved, lower=True))
    assert np.abs(back - points).max() < 1e-3
    assert np.abs(moved - points).max() > 10


@pytest.mark.parametrize("name", PORTRAITS)
def test_a_landmarker_follows_the_mouth(name: str, packaged: Packaged) -> None:
    mediapipe = pytest.importorskip("mediapipe")
    vision = mediapipe.tasks.vision
    base = mediapipe.tasks.BaseOptions(model_asset_path=str(packaged("face_landmarker")))
    take = talk(frame(name, 480, 480), speak(TEXT, duration_s=4), seed=1)
    truth, overlaps, apertures, openings = take.faces[0], [], [], []
    with vision.FaceLandmarker.create_from_options(
        vision.FaceLandmarkerOptions(base_options=base)
    ) as landmarker:
        for index, picture in enumerate(take.frames()):
            if index % 3:
                continue
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=picture)
            (face,) = landmarker.detect(image).face_landmarks
            points = np.array([[point.x * 480 - 0.5, point.y * 480 - 0.5] for point in face])
            found = _filled(points[list(OUTER_LIP)], picture.shape)
            overlaps.append(_overlap(found, _filled(truth.contour[index], picture.shape)))
            apertures.append(points[14, 1] - points[13, 1])
            openings.append(truth.opening[index])
    assert np.mean(overlaps) >= 0.8
    assert np.corrcoef(apertures, openings)[0, 1] > 0.95


@pytest.mark.parametrize("name", PEOPLE)
def test_everybody_is_blended_from_nobody_else_at_share_0(name: str) -> None:
    head = blend(name, "hopper", 0.0)
    assert head.picture.shape == (BLEND_PX, BLEND_PX, 3)
    assert head.face.height_px == pytest.approx(0.55 * BLEND_PX, rel=0.1)  # it was levelled
    assert (head.face.landmarks > 0).all() and (head.face.landmarks < BLEND_PX).all()
    nose = head.face.five[2]
    assert head.face.five[0, 1] < nose[1] < head.face.five[3, 1]
    assert head.face.five[0, 0] < nose[0] < head.face.five[1, 0]


def test_a_blend_lies_between_two_people() -> None:
    """Points and pixels: where its eye is, it looks like the mean of both people's eyes."""
    one, other = (blend(name, name, 0.0) for name in ("grid_bbaf2n", "grid_brbk7n"))
    half = blend("grid_bbaf2n", "grid_brbk7n", 0.5)
    assert half.face.landmarks == pytest.approx((one.face.landmarks + other.face.landmarks) / 2, abs=1e-3)

    def patch(head: Head) -> Floats:
        found: Floats = cv2.getRectSubPix(head.picture, (9, 9), head.face.five[0].tolist()).astype(np.float32)
        return found

    expected = (patch(one) + patch(other)) / 2
    assert np.abs(patch(half) - expected).mean() < 0.3 * np.abs(patch(one) - patch(other)).mean()
    quarter, most = (blend("grid_bbaf2n", "grid_brbk7n", share) for share in (0.25, 0.75))
    distances = [np.abs(patch(head) - patch(one)).mean() for head in (quarter, half, most)]
    assert distances[0] < distances[1] < distances[2]


def test_brows_are_raised_and_eyes_stay() -> None:
    face = frame("collins", 320, 320, Framing(face_px=200)).face
    warp, brows = BrowWarp(face), face.shape[36:56]
    moved = warp.field(brows)
    assert (moved[:, 0] == 0).all() and moved[:, 1].mean() < -0.02 * face.height_px
    assert np.abs(warp.field(face.eyes.reshape(-1, 2))).max() < 0.01 * face.height_px
    assert not warp.field(np.concatenate([face.outer, face.chin[None]])).any()
    speech = speak(TEXT, duration_s=2)
    still, lively = (
        talk(frame("collins", 96, 96, Framing(60)), speech, seed=1, acting=Acting(brows=raised, noise=0))
        for raised in (0.0, 1.0)
    )
    assert not still.faces[0].brows.any() and 0.3 < np.abs(lively.faces[0].brows).max() <= 1.74
    assert np.array_equal(still.faces[0].contour, lively.faces[0].contour)
    assert not np.array_equal(list(still.frames()), list(lively.frames()))


def test_a_mirrored_face_is_annotated_from_left_to_right() -> None:
    plain = frame("hopper", 320, 320).face
    mirrored = frame("hopper", 320, 320, Framing(0.41 * 320, mirror=True)).face
    for face in (plain, mirrored):
        assert face.outer[0, 0] < face.outer[5, 0] < face.outer[10, 0]
        assert face.outer[5, 1] < face.outer[0, 1] < face.outer[15, 1]
        assert (np.diff(face.inner_upper[:, 0]) > 0).all()
        assert (np.diff(face.eyes[..., 0], axis=-1) > 0).all()
        assert abs(face.outer[0, 1] - face.outer[10, 1]) < 0.01  # the mouth is level
    assert not np.allclose(plain.outer, mirrored.outer, atol=1)


def test_portraits_are_the_ones_that_were_annotated() -> None:
    assert portrait("collins").picture.shape == (512, 512, 3)
    assert portrait("hopper").picture.shape == (600, 512, 3)


# --- takes and files -------------------------------------------------------------------------------


def test_silence_keeps_the_mouth_shut_while_the_head_moves() -> None:
    take = talk(frame("hopper", 128, 128), silence(4.0), seed=3)
    (truth,) = take.faces
    assert not truth.speaks
    assert truth.opening.max() < 0.5
    assert np.ptp(truth.contour[:, 0], axis=0).min() > 0.3
    assert not take.samples.any()


def test_a_take_is_the_same_every_time_and_another_for_another_seed() -> None:
    def digest(seed: int) -> str:
        take = varied_take(seed, size_px=96, duration_s=1)
        picture = hashlib.sha256(take.samples.tobytes())
        for shown in take.frames():
            picture.update(shown.tobytes())
        return picture.hexdigest()

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


def test_a_cut_joins_two_shots_at_the_named_frame() -> None:
    speech = speak(TEXT, duration_s=2.4)
    wide = talk(frame("collins", 128, 128, Framing(40)), speech.span(0, 1), seed=1)
    close = talk(frame("collins", 128, 128, Framing(64)), speech.span(1, 2.4), seed=2)
    take = cut(wide, close)
    assert take.cuts == (25,)
    assert take.num_frames == len(take.faces[0].contour) == 60
    assert len(take.samples) == round(2.4 * SPEECH_HZ)
    pictures = np.stack([cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY) for shown in take.frames()]).astype(float)
    changes = np.abs(np.diff(pictures, axis=0)).mean((1, 2))
    assert changes.argmax() == 24
    assert changes[24] > 5 * np.delete(changes, 24).max()


def test_two_people_are_side_by_side_and_one_speaks() -> None:
    left = talk(frame("hopper", 96, 128), silence(1.0), seed=1)
    right = talk(frame("collins", 96, 128), speak(TEXT, duration_s=2), seed=2)
    take = side_by_side(left, right)
    assert take.num_frames == 25
    assert [face.speaks for face in take.faces] == [False, True]
    assert take.faces[0].box[:, 2].max() < 96 < take.faces[1].box[:, 0].min()
    assert next(take.frames()).shape == (128, 192, 3)
    assert len(take.samples) == SPEECH_HZ


@pytest.mark.parametrize("late_s", [0.0, 0.48, -0.2])
def test_the_file_has_its_audio_as_late_as_asked(tmp_path: Path, late_s: float) -> None:
    take = talk(frame("hopper", 96, 96), speak(TEXT, duration_s=3), seed=1)
    path = tmp_path / "head.mp4"
    write(path, take, audio_offset_s=late_s)
    video = _probed(path)
    heard = read_audio(path, video, 0.0, 3.0)
    spoken = resample_poly(take.samples, 1, 3)
    lag = np.correlate(heard, spoken, "full").argmax() - (len(spoken) - 1)
    assert lag / 16000 == pytest.approx(late_s, abs=0.001)
    assert (video.fps, video.duration_s) == (25.0, pytest.approx(3.0, abs=0.001))


def test_the_demo_set_is_what_its_truth_says(tmp_path: Path) -> None:
    demo_videos.make(tmp_path, size_px=96)
    truth = json.loads((tmp_path / "truth.json").read_text(encoding="utf-8"))
    assert sorted([*truth, "truth.json"]) == sorted(path.name for path in tmp_path.iterdir())
    for name, row in truth.items():
        if row["status"] != "measured" or "fps" not in row:
            continue
        video = _probed(tmp_path / name)
        assert video.duration_s == pytest.approx(row["num_frames"] / row["fps"], abs=0.001), name
        assert video.has_audio == row["sound"], name
        assert len(row["faces"]) == len(row["expected"]), name
        assert all(last - first >= 100 for first, last in (face["frames"] for face in row["faces"])), name
    for name in ("grid_bbaf2n.mpg", "grid_brbk7n.mpg", "grid_id2_swwp2s.mpg", "grid_lrwp9a.mpg"):
        assert (tmp_path / name).read_bytes() == (CLIPS / name).read_bytes()
        assert truth[name] == {"what": truth[name]["what"], "status": "measured", "expected": [[]]}
    assert truth["out_of_sync.mp4"]["sync_offset_frames"] == -12
    assert truth["cut.mp4"]["cuts"] == [125]
    copy, original = tmp_path / "the same again.mp4", tmp_path / "speaker_one.mp4"
    assert copy.read_bytes() == original.read_bytes()
    for name in ("broken.mp4", "not_a_video.mp4"):
        with pytest.raises(MediaError, match="expected a video file"):
            _probed(tmp_path / name)
