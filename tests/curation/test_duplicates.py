"""Copies of real clips, changed as copies are, against other clips; and the rule itself."""

from __future__ import annotations

import io
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from benchmarks.duplicates import made as dense_clips
from examples import portraits
from talkforge.curation import duplicates, media
from talkforge.curation.duplicates import DuplicateThresholds
from talkforge.curation.fingerprint import Fingerprint, FrameHasher, hash_audio
from talkforge.curation.media import probe
from talkforge.schemas.records import Input
from talkforge.schemas.units import AUDIO_HZ
from tests.conftest import RealClip

SAMPLE_HZ = 10
LENGTH_S = 3
Clip = tuple[list[np.ndarray], np.ndarray]


def read(path: Path) -> Clip:
    """Pictures at 10 Hz, and the sound."""
    video = probe.probe(path, Input(uri=path.name), probe.content_hash(path))
    frames: list[np.ndarray] = []
    for frame in media.read_frames(path, video):
        while video.start_s + len(frames) / SAMPLE_HZ < frame.until_s - 1e-6:
            frames.append(frame.rgb(longest_edge_px=480))
    return frames, media.read_audio(path, video, video.start_s, video.end_s)


def span(clip: Clip, start_s: float) -> Clip:
    frames, samples = clip
    first, sample = round(start_s * SAMPLE_HZ), round(start_s * AUDIO_HZ)
    return frames[first : first + LENGTH_S * SAMPLE_HZ], samples[sample : sample + LENGTH_S * AUDIO_HZ]


LEFT, RIGHT = (0.1, 0.3, 0.3, 0.7), (0.6, 0.3, 0.8, 0.7)
"""Places of a face, as shares of the picture."""


def printed(clip: Clip, place: tuple[float, ...] = LEFT) -> Fingerprint:
    """The fingerprint that a clip of these pictures has, with its face in one place."""
    hasher = FrameHasher(len(clip[0]), SAMPLE_HZ)
    for k, rgb in enumerate(clip[0]):
        height_px, width_px = rgb.shape[:2]
        hasher.push(range(k, k + 1), rgb, np.array(place, np.float32) * ([width_px, height_px] * 2))
    return Fingerprint(len(clip[1]) / AUDIO_HZ, hasher.hashes, hasher.face_boxes, hash_audio(clip[1]))


def aac(samples: np.ndarray, bit_rate: int) -> np.ndarray:
    """Through a lossy encoder, which also delays it."""
    file = io.BytesIO()
    with av.open(file, "w", format="adts") as out:
        stream = out.add_stream("aac", rate=AUDIO_HZ, layout="mono", bit_rate=bit_rate)
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = AUDIO_HZ, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    file.seek(0)
    with av.open(file) as again:
        return np.concatenate([frame.to_ndarray()[0] for frame in again.decode(audio=0)])


def jpeg(frame: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], cv2.IMREAD_COLOR)


def cropped(frame: np.ndarray) -> np.ndarray:
    y, x = (round(0.02 * n) for n in frame.shape[:2])
    return frame[y:-y, x:-x]


def brighter(frame: np.ndarray) -> np.ndarray:
    return np.clip(frame * 1.2 + 15, 0, 255).astype(np.uint8)


def noisy(samples: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(samples)) * samples.std() * 0.032
    return (samples + noise).astype(np.float32)


CHANGES: dict[str, Callable[[Clip], Clip]] = {
    "encoded again": lambda c: ([jpeg(f) for f in c[0]], aac(c[1], 24_000)),
    "half the size": lambda c: ([cv2.resize(f, None, fx=0.5, fy=0.5) for f in c[0]], aac(c[1], 48_000)),
    "cropped by 2%": lambda c: ([cropped(f) for f in c[0]], c[1]),
    "brighter, quieter, noisy": lambda c: ([brighter(f) for f in c[0]], noisy(c[1]) * np.float32(0.6)),
}


GRID = ("grid_bbaf2n.mpg", "grid_brbk7n.mpg", "grid_id2_swwp2s.mpg", "grid_lrwp9a.mpg")
MORE = ("st_katie.mp4", "vr_1.mp4", "fr_hamilton.mp4")


@pytest.fixture(scope="module")
def sentences(real_clip: RealClip) -> list[Clip]:
    """Sentences of four people, 3 s each."""
    return [span(read(real_clip(name)), 0) for name in GRID]


@pytest.fixture(scope="module")
def talk(sentences: list[Clip]) -> Clip:
    """The four sentences one after the other."""
    return [rgb for frames, _ in sentences for rgb in frames], np.concatenate(
        [sound for _, sound in sentences]
    )


@pytest.fixture(scope="module", params=[GRID, MORE], ids=["grid", "more"])
def originals(request: pytest.FixtureRequest, real_clip: RealClip) -> dict[str, Clip]:
    """Spans of 3 s that do not overlap."""
    clips = {name: read(real_clip(name)) for name in request.param}
    return {
        f"{name}@{start_s}": span(clip, start_s)
        for name, clip in clips.items()
        for start_s in range(0, len(clip[1]) // AUDIO_HZ - LENGTH_S + 1, LENGTH_S)
    }


# --- real clips --------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_every_changed_copy_names_its_original_and_nothing_else_is_one(
    change: str, originals: dict[str, Clip]
) -> None:
    first = [(name, printed(clip)) for name, clip in originals.items()]
    copies = [(f"{name} copy", printed(CHANGES[change](clip))) for name, clip in originals.items()]
    expected = {f"{name} copy": name for name in originals}
    assert duplicates.near_duplicates([*first, *copies]) == expected


def test_a_span_that_begins_elsewhere_is_found_while_it_overlaps_by_half(talk: Clip) -> None:
    clips = [(str(start_s), printed(span(talk, start_s))) for start_s in (0.0, 1.002, 2.0, 4.5)]
    # The second shares two seconds of three with the first; the third one; the last half a second
    # with the third. And it is 250.5 hops later, the worst there is for landmarks.
    assert duplicates.near_duplicates(clips) == {"1.002": "0.0"}


def test_the_same_picture_with_other_words_is_no_duplicate(sentences: list[Clip]) -> None:
    (frames, words), (_, other_words) = sentences[:2]
    here, there = printed((frames, words)), printed((frames, other_words))
    assert np.array_equal(here.frame_hashes, there.frame_hashes)
    assert duplicates.near_duplicates([("here", here), ("dubbed", there)]) == {}


def test_the_same_words_with_another_picture_are_no_duplicate(sentences: list[Clip]) -> None:
    frames, samples = sentences[0]
    other = [portraits.frame("hopper", 360, 288).picture] * len(frames)
    clips = [("face", printed((frames, samples))), ("voice-over", printed((other, samples)))]
    assert duplicates.near_duplicates(clips) == {}


def opening(seed: int, seconds: float, noise: float = 0.0) -> np.ndarray:
    """Lips that open and close as somebody speaks, at 25 Hz."""
    drawn = np.random.default_rng(seed).standard_normal(round(25 * seconds) + 8)
    smooth = np.convolve(drawn, np.ones(4) / 4, "valid")[: round(25 * seconds)]
    return 0.1 + 0.1 * smooth + noise * np.random.default_rng(seed + 1).standard_normal(len(smooth))


def test_two_speakers_of_one_studio_with_one_voice_are_no_duplicates(sentences: list[Clip]) -> None:
    """The second is dubbed with the voice of the first: only the lips tell them apart."""
    true = replace(printed(sentences[0]), mouth=opening(0, 3))
    pictures = printed((sentences[1][0], sentences[0][1]))
    assert duplicates.near_duplicates([("a", true), ("b", replace(pictures, mouth=opening(0, 3, 0.02)))]) == {
        "b": "a"
    }
    assert duplicates.near_duplicates([("a", true), ("b", replace(pictures, mouth=opening(5, 3)))]) == {}


@pytest.mark.parametrize(
    "mouth",
    [np.zeros(0), np.full(75, 0.1), np.full(75, np.nan), opening(5, 1.4)],
    ids=["unknown", "at rest", "not seen", "short"],
)
def test_lips_that_say_nothing_decide_nothing(sentences: list[Clip], mouth: np.ndarray) -> None:
    true = replace(printed(sentences[0]), mouth=opening(0, 3))
    copy = replace(printed(sentences[0]), mouth=mouth)
    assert duplicates.near_duplicates([("a", true), ("b", copy)]) == {"b": "a"}


@pytest.mark.parametrize("begins_s", [0.0, 0.4, 1.0])
def test_lips_are_compared_at_the_same_moment(sentences: list[Clip], begins_s: float) -> None:
    lips, (frames, samples) = opening(0, 4), sentences[0]
    later = frames[round(begins_s * SAMPLE_HZ) :], samples[round(begins_s * AUDIO_HZ) :]
    whole = replace(printed((frames, samples)), mouth=lips[:75])
    same = replace(printed(later), mouth=lips[round(25 * begins_s) : 75])
    assert duplicates.near_duplicates([("whole", whole), ("later", same)]) == {"later": "whole"}


def test_a_fingerprint_is_small_and_always_the_same(sentences: list[Clip]) -> None:
    one, two = printed(sentences[0]), printed(sentences[0])
    assert np.array_equal(one.audio_hashes, two.audio_hashes)
    assert np.array_equal(one.frame_hashes, two.frame_hashes)
    assert one.frame_hashes.nbytes + one.face_boxes.nbytes + one.audio_hashes.nbytes < 2000 * LENGTH_S


# --- the rule, on landmarks and pictures that are told ----------------------------------------------


def made(
    seed: int, *, shift_hops: int = 0, share: float = 1.0, bits: int = 0, place: tuple[float, ...] = LEFT,
    seconds: int = 10,
) -> Fingerprint:  # fmt: skip
    """A clip of 10 s: 200 peaks with three landmarks each, all later by a shift, a share of them kept;
    pictures of zeros with so many bits set. Fewer seconds are its beginning."""
    random = np.random.default_rng(seed)
    times, peaks = np.sort(random.integers(0, 2400, 200)), random.integers(0, 256, 200)
    rest = random.integers(0, 2**12, (3, 200))
    landmarks = ((times + shift_hops) << 20) | (peaks << 12) | rest
    kept = landmarks[:, np.random.default_rng(1).random(200) < share]
    kept = np.unique(kept[(kept >= 0) & (kept < (250 * seconds) << 20)]).astype(np.uint64)
    pictures = np.packbits(np.arange(64) < bits)[None].repeat(2 * seconds, 0)
    return Fingerprint(float(seconds), pictures, np.tile(np.float32(place), (2 * seconds, 1)), kept)


def test_the_first_of_equals_is_kept_and_the_rest_name_it() -> None:
    clips = [("b", made(0)), ("x", made(1)), ("a", made(0)), ("c", made(0, share=0.5))]
    assert duplicates.near_duplicates(clips) == {"a": "b", "c": "b"}
    assert duplicates.near_duplicates(clips[::-1]) == {"a": "c", "b": "c"}
    assert duplicates.near_duplicates([]) == {}


@pytest.mark.parametrize(("shift_hops", "same"), [(0, True), (1000, True), (-1000, True), (1300, False)])
def test_clips_that_share_less_than_half_are_two(shift_hops: int, same: bool) -> None:
    """A hop is 4 ms: 1000 are 4 s of ten, 1300 more than five."""
    assert duplicates.repeated(made(0), made(0, shift_hops=shift_hops), DuplicateThresholds()) is same


def test_pictures_differ_by_as_many_bits_as_are_allowed() -> None:
    limit = DuplicateThresholds(max_frame_bits=12)
    assert duplicates.repeated(made(0), made(0, bits=12), limit)
    assert not duplicates.repeated(made(0), made(0, bits=13), limit)


def test_landmarks_must_agree_at_one_shift() -> None:
    a = made(0)
    scattered = np.random.default_rng(5).permutation(2400)[: len(a.audio_hashes)]
    times = np.resize(scattered, len(a.audio_hashes)).astype(np.uint64)
    b = Fingerprint(
        10.0,
        a.frame_hashes,
        a.face_boxes,
        np.unique((a.audio_hashes & np.uint64(2**20 - 1)) | (times << np.uint64(20))),
    )
    assert not duplicates.repeated(a, b, DuplicateThresholds())


@pytest.mark.parametrize("files", [1, 4096])
def test_of_very_many_copies_all_are_found(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    monkeypatch.setattr(duplicates, "COMPARED_CLIPS", 2)
    monkeypatch.setattr(duplicates, "BLOCK_PAIRS", 3)
    monkeypatch.setattr(duplicates, "CLIPS_IN_FILE", files)
    clips = [(str(k), made(k % 2)) for k in range(10)]
    assert duplicates.near_duplicates(clips) == {str(k): str(k % 2) for k in range(2, 10)}


def indexed(folder: Path, *clips: np.ndarray) -> list[list[int]]:
    """Pairs of clips that an index compares."""
    index = duplicates.Index(folder, len(clips))
    for number, hashes in enumerate(clips):
        index.add(np.full(len(hashes), number), hashes)
    return index.pairs().tolist()


def heard(*peaks: tuple[int, int]) -> np.ndarray:
    """Hashes of peaks (time in hops, value): three for each."""
    return np.array(
        [(t << 20) | (value << 12) | (value + k) for t, value in peaks for k in range(3)], np.uint64
    )


A, B, C, D = (5, 17), (9, 80), (200, 33), (204, 140)


@pytest.mark.parametrize(
    ("other", "compared"),
    [
        ([A, B], False),  # many keys, and all of one moment
        ([A, B, C, D], True),
        ([A, B, (201, 33), (205, 140)], True),  # a shift between two hops is spread over both
        ([A, B, (202, 33), (206, 140)], False),
        ([(1005, 17), (1009, 80), (1200, 33), (1204, 140)], True),
    ],
)
@pytest.mark.parametrize("files", [1, 4096])
def test_clips_are_compared_that_share_keys_of_two_moments_at_one_shift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, other: list[tuple[int, int]], compared: bool
) -> None:
    monkeypatch.setattr(duplicates, "CLIPS_IN_FILE", files)
    assert indexed(tmp_path, heard(A, B, C, D), heard(*other)) == ([[0, 1]] if compared else [])


def test_what_is_compared_holds_every_copy_and_little_more() -> None:
    """Against all pairs of clips whose hashes are as dense as those of speech.

    One in twenty is a copy with four in ten of its hashes.
    """
    clips = dense_clips(60, duration_s=3)
    with tempfile.TemporaryDirectory() as folder:
        found = indexed(Path(folder), *(print_.audio_hashes for _, print_ in clips))
    every = itertools.combinations(range(60), 2)
    agree = [[a, b] for a, b in every if duplicates.agreement(clips[a][1], clips[b][1]) is not None]
    assert agree == [[0, 59], [1, 58], [2, 57]]
    assert found == agree


def test_an_excerpt_repeats_the_whole_and_not_the_other_way_round() -> None:
    whole, excerpt = ("whole", made(0)), ("excerpt", made(0, seconds=4))
    assert duplicates.near_duplicates([whole, excerpt]) == {"excerpt": "whole"}
    assert duplicates.near_duplicates([excerpt, whole]) == {}


@pytest.mark.parametrize(("seconds", "same"), [(2, False), (4, True)])
def test_a_jingle_that_two_clips_begin_with_does_not_make_them_one(seconds: int, same: bool) -> None:
    jingle, first, then = made(0, seconds=seconds), made(1), made(2)
    limit = np.uint64((250 * seconds) << 20)
    first, then = (
        replace(
            clip,
            audio_hashes=np.unique(
                np.concatenate([jingle.audio_hashes, clip.audio_hashes[clip.audio_hashes >= limit]])
            ),
        )
        for clip in (first, then)
    )
    assert duplicates.repeated(first, then, DuplicateThresholds()) is same


def test_two_people_in_one_picture_are_two_and_each_copy_names_its_own() -> None:
    clips = [("left", made(0)), ("right", made(0, place=RIGHT))]
    copies = [("right copy", made(0, place=RIGHT)), ("left copy", made(0))]
    expected = {"right copy": "right", "left copy": "left"}
    assert duplicates.near_duplicates([*clips, *copies]) == expected


@pytest.mark.parametrize(("shift", "same"), [(0.09, True), (0.11, False)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_face_stays_one_while_it_is_moved_by_less_than_half_its_width(
    shift: float, same: bool, axis: int
) -> None:
    square = np.array([0.4, 0.4, 0.6, 0.6])
    moved = square + np.array([shift, 0, shift, 0] if axis == 0 else [0, shift, 0, shift])
    a, b = made(0, place=tuple(square)), made(0, place=tuple(moved))
    assert duplicates.repeated(a, b, DuplicateThresholds()) is same


def test_pictures_that_are_not_there_are_not_compared() -> None:
    whole, torn = made(0), made(0, bits=64)
    torn.frame_hashes[0] = whole.frame_hashes[0]
    torn.face_boxes[1:] = np.nan
    assert duplicates.repeated(whole, torn, DuplicateThresholds())
    torn.face_boxes[:] = np.nan
    assert not duplicates.repeated(whole, torn, DuplicateThresholds())
