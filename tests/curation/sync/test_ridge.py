"""Sync: exact lags on made mouths, honest silence where there is nothing, real clips told apart."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from talkforge.curation import media
from talkforge.curation.face import landmarks
from talkforge.curation.media import probe
from talkforge.curation.sync import ridge
from talkforge.curation.sync.features import NUM_BANDS, NUM_MEASURES, POWER_FLOOR, audio_bands, mouth_measures
from talkforge.schemas.arrays import FaceTrack, Floats, Landmarks
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Clip, Input, Sync
from talkforge.schemas.units import frames_from_seconds
from tests.conftest import Packaged, RealClip

RNG_SEED = 7
KERNEL = np.random.default_rng(RNG_SEED).normal(size=(3, NUM_BANDS, NUM_MEASURES))


def speech_like(seed: int, frames: int) -> Floats:
    """Bands [F, 26] that wander as syllables do: smooth over three frames."""
    noise = np.random.default_rng(seed).normal(size=(frames + 2, NUM_BANDS))
    return (noise[:-2] + noise[1:-1] + noise[2:]).astype(np.float32)


def mouth_of(bands: Floats, seed: int, noise: float) -> Floats:
    """A mouth that is a fixed linear function of the frame's audio and its neighbours', and noise."""
    padded = np.pad(bands.astype(np.float64), ((1, 1), (0, 0)))
    clean = sum(padded[k : k + len(bands)] @ KERNEL[k] for k in range(3))
    clean /= np.std(clean)
    return (clean + noise * np.random.default_rng(seed).normal(size=clean.shape)).astype(np.float32)


def made(seed: int, frames: int, noise: float = 2.0) -> tuple[Floats, Floats]:
    bands = speech_like(seed, frames)
    return mouth_of(bands, seed + 1000, noise), bands


@pytest.fixture(scope="module")
def made_map() -> ridge.SyncMap:
    return ridge.SyncMap.fit((f"{seed:012x}", *made(seed, 250)) for seed in range(8))


@pytest.mark.parametrize("late", [-15, -9, -1, 0, 4, 15])
def test_a_made_shift_is_found_to_the_frame_with_its_sign(made_map: ridge.SyncMap, late: int) -> None:
    mouth, bands = made(50, 200)
    # Audio that sounds `late` frames after its mouth must be advanced: offset -late.
    result = ridge.score(mouth, np.roll(bands, late, axis=0), 25.0, made_map, "new")
    assert result.sync_offset_frames == -late
    assert result.sync_confidence is not None and result.sync_confidence >= ridge.SCORED_FROM
    assert result.sync_method == ridge.DATASET


@pytest.mark.parametrize("fps", [23.0, 24.0, 29.97, 30.0])
def test_other_frame_rates_report_frames_of_the_clip(made_map: ridge.SyncMap, fps: float) -> None:
    mouth, bands = made(51, 400)
    times = np.arange(int(399 / 25 * fps)) / fps
    at_fps = [
        np.stack([np.interp(times, np.arange(400) / 25, column) for column in array.T], axis=1)
        for array in (mouth, np.roll(bands, 10, axis=0))
    ]
    result = ridge.score(at_fps[0].astype(np.float32), at_fps[1].astype(np.float32), fps, made_map, "new")
    assert result.sync_offset_frames == -int(np.floor(10 / 25 * fps + 0.5))


def test_a_face_that_is_missing_for_a_while_does_not_disturb(made_map: ridge.SyncMap) -> None:
    mouth, bands = made(52, 250)
    mouth[60:110] = np.nan
    result = ridge.score(mouth, np.roll(bands, -6, axis=0), 25.0, made_map, "new")
    assert result.sync_offset_frames == 6


def test_unrelated_audio_is_unscored(made_map: ridge.SyncMap) -> None:
    results = [
        ridge.score(made(seed, 200)[0], speech_like(seed + 500, 200), 25.0, made_map, "new")
        for seed in range(60, 80)
    ]
    assert [r.sync_offset_frames for r in results] == [None] * 20
    assert all(r.sync_confidence is None and r.sync_zero_confidence is not None for r in results)


@pytest.mark.parametrize("case", ["silence", "still mouth", "no face", "short", "empty"])
def test_nothing_is_said_of_nothing(made_map: ridge.SyncMap, case: str) -> None:
    mouth, bands = made(53, 200)
    if case == "silence":
        bands = audio_bands(np.zeros(16000 * 8, np.float32), 200, 25.0)
    elif case == "still mouth":
        mouth = np.ones_like(mouth)
    elif case == "no face":
        mouth = np.full_like(mouth, np.nan)
    elif case == "short":
        mouth, bands = mouth[: ridge.MIN_FRAMES - 1], bands[: ridge.MIN_FRAMES - 1]
    else:
        mouth, bands = mouth[:0], bands[:0]
    result = ridge.score(mouth, bands, 25.0, made_map, "new")
    assert result == Sync(
        sync_method=ridge.DATASET,
        sync_offset_frames=None,
        sync_confidence=None,
        sync_zero_confidence=None,
    )


def test_a_clip_is_never_scored_by_its_own_video() -> None:
    mouth, bands = made(0, 250)
    only_itself = ridge.SyncMap.fit([("a" * 12, mouth, bands)])
    assert ridge.score(mouth, bands, 25.0, only_itself, "a" * 12).sync_zero_confidence is None
    assert ridge.score(mouth, bands, 25.0, only_itself, "b" * 12).sync_zero_confidence is not None


def test_map_algebra_is_exact() -> None:
    items = [(f"{seed % 4:012x}", *made(seed, 100)) for seed in range(6)]
    full = ridge.SyncMap.fit(items)
    assert full.video_ids == tuple(f"{i:012x}" for i in range(4))
    assert full.frames.tolist() == [200, 200, 100, 100]
    assert_same(ridge.SyncMap.fit(items[::-1]), full)
    gone = full.video_ids[1]
    assert_same(full.without([gone]), ridge.SyncMap.fit(item for item in items if item[0] != gone))
    assert_same(ridge.SyncMap.fit(items[:4]) + ridge.SyncMap.fit(items[4:]), full, exact=False)
    assert_same(full.without([gone]) + full.without(set(full.video_ids) - {gone}), full)
    assert full.without(full.video_ids).weights is None


def assert_same(a: ridge.SyncMap, b: ridge.SyncMap, exact: bool = True) -> None:
    assert a.video_ids == b.video_ids
    assert a.frames.tolist() == b.frames.tolist()
    for x, y in ((a.auto, b.auto), (a.cross, b.cross)):
        if exact:
            assert np.array_equal(x, y)
        else:  # the order of three clips' sum differs
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


def test_statistics_give_the_ridge_solution_of_the_frames() -> None:
    mouth, bands = made(3, 120)
    clip = ridge._prepare(mouth, bands, 25.0)
    width = 2 * ridge.CONTEXT
    padded = np.pad(clip.bands, ((width, width), (0, 0)))  # every window that touches the clip
    rows = np.array([padded[t : t + width + 1].ravel() for t in range(120 + width)])
    target = np.pad(clip.mouth, ((ridge.CONTEXT, ridge.CONTEXT), (0, 0)))
    gram = rows.T @ rows
    strength = ridge.RIDGE * np.trace(gram) / len(gram)
    direct = np.linalg.solve(gram + strength * np.eye(len(gram)), rows.T @ target)
    weights = ridge.SyncMap.fit([("v", mouth, bands)]).weights
    assert weights is not None
    np.testing.assert_allclose(weights.reshape(direct.shape), direct, atol=1e-9)


def test_a_saved_map_is_loaded_and_another_file_is_refused(made_map: ridge.SyncMap, tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    made_map.save(path)
    loaded = ridge.SyncMap.load(path)
    assert loaded.video_ids == made_map.video_ids and loaded.method == ridge.DATASET
    assert np.array_equal(loaded.cross, made_map.cross.astype(np.float32))
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first
    np.savez(path, method=np.array("x"))
    with pytest.raises(ModelError, match=r"sync map map\.npz"):
        ridge.SyncMap.load(path)
    with pytest.raises(ModelError, match=r"sync map none\.npz"):
        ridge.SyncMap.load(tmp_path / "none.npz")


def test_the_shipped_map_is_what_the_docs_say() -> None:
    shipped = ridge.SyncMap.load()
    assert shipped.method == ridge.SHIPPED
    assert len(shipped.video_ids) == 7
    assert shipped.frames.sum() / ridge.MAP_HZ == pytest.approx(46.0, abs=0.1)
    assert ridge.MAP_PATH.stat().st_size < 1_000_000


def test_a_data_set_of_its_own_is_used_from_two_minutes_and_five_videos() -> None:
    shipped = ridge.SyncMap.load()
    items = [(f"{seed:012x}", *made(seed, 625)) for seed in range(5)]
    assert ridge.dataset_map(items, 25.0).method == ridge.DATASET
    assert ridge.dataset_map(items, 25.0).video_ids == tuple(
        sorted({*shipped.video_ids, *(item[0] for item in items)})
    )
    assert ridge.dataset_map(items[:4], 25.0).method == ridge.SHIPPED
    assert ridge.dataset_map([(i, m[:590], b[:590]) for i, m, b in items], 25.0).method == ridge.SHIPPED
    assert_same(ridge.dataset_map(items[::-1], 25.0), ridge.dataset_map(items, 25.0))


def test_a_shared_video_counts_once_in_the_data_sets_map() -> None:
    shipped = ridge.SyncMap.load()
    own_id = shipped.video_ids[0]
    items = [(own_id if seed == 0 else f"{seed:012x}", *made(seed, 625)) for seed in range(5)]
    grown = ridge.dataset_map(items, 25.0)
    assert grown.frames[grown.video_ids.index(own_id)] == 625


def test_a_minority_out_of_sync_does_not_move_the_zero() -> None:
    items = []
    for seed in range(10):
        mouth, bands = made(seed, 400)
        items.append((f"{seed:012x}", mouth, np.roll(bands, 12, axis=0) if seed < 3 else bands))
    fitted = ridge.SyncMap.fit(items)
    offsets = [ridge.score(m, b, 25.0, fitted, video_id).sync_offset_frames for video_id, m, b in items]
    assert offsets == [-12] * 3 + [0] * 7


def test_bands_follow_the_frames_instants() -> None:
    samples = np.zeros(16000 * 2, np.float32)
    click = round(1.2 * 16000)
    samples[click - 80 : click + 80] = 0.5
    for fps in (23.0, 25.0, 30.0):
        bands = audio_bands(samples, int(2 * fps), fps)
        assert bands.shape == (int(2 * fps), NUM_BANDS) and bands.dtype == np.float32
        assert abs(int(bands.sum(axis=1).argmax()) / fps - 1.2) <= 0.5 / fps
    silent = audio_bands(np.zeros(100, np.float32), 10, 25.0)
    assert np.allclose(silent, np.log(POWER_FLOOR)) and silent.shape == (10, NUM_BANDS)


def test_a_tone_lands_in_rising_bands() -> None:
    time = np.arange(16000) / 16000
    best = [
        int(audio_bands(np.sin(2 * np.pi * hz * time).astype(np.float32), 25, 25.0)[12].argmax())
        for hz in (200, 800, 2000, 5000)
    ]
    assert all(a < b for a, b in pairwise(best))


def test_mouth_measures_ignore_size_place_and_turn_of_the_head() -> None:
    rng = np.random.default_rng(RNG_SEED)
    points = rng.normal(size=(5, 478, 3))
    shapes = rng.random((5, 52)).astype(np.float32)
    points[3], shapes[3] = np.nan, np.nan
    angle = 0.7
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])

    def measure(moved: np.ndarray) -> Floats:
        angles = np.zeros((5, 3), np.float32)
        return mouth_measures(Landmarks(moved.astype(np.float32), shapes, angles))

    plain, moved = measure(points), measure(3.5 * points @ turn.T + np.array([100.0, 50.0, 0.0]))
    assert plain.shape == (5, NUM_MEASURES) and np.isnan(plain[3]).all()
    np.testing.assert_allclose(moved, plain, rtol=1e-3, atol=1e-4)
    expected = np.linalg.norm(points[0, 13] - points[0, 14]) / np.linalg.norm(points[0, 33] - points[0, 263])
    assert plain[0, 0] == pytest.approx(expected, rel=1e-5)


def sync_row(zero: float | None) -> Sync:
    return Sync(sync_method="m", sync_offset_frames=None, sync_confidence=None, sync_zero_confidence=zero)


def test_the_speaker_is_named_only_with_a_margin() -> None:
    least, margin = ridge.SPEAKER_FROM, ridge.SPEAKER_MARGIN
    assert ridge.speaker({"a": sync_row(least + margin), "b": sync_row(least)}) == "a"
    assert ridge.speaker({"a": sync_row(0.0), "b": sync_row(least)}) == "b"
    assert ridge.speaker({"a": sync_row(least + margin - 0.01), "b": sync_row(least)}) is None
    assert ridge.speaker({"a": sync_row(least - 0.01), "b": sync_row(-2.0)}) is None
    assert ridge.speaker({"a": sync_row(least), "b": sync_row(None)}) == "a"
    assert ridge.speaker({"a": sync_row(None)}) is None
    assert ridge.speaker({}) is None


# ---------------------------------------------------------------------------- real clips

GRID = ("grid_bbaf2n.mpg", "grid_brbk7n.mpg", "grid_id2_swwp2s.mpg", "grid_lrwp9a.mpg")


@pytest.fixture(scope="module")
def talks(real_clip: RealClip, packaged: Packaged) -> dict[str, tuple[str, Floats, Floats]]:
    """Video id, mouth measures and bands of the clips, one face each that fills the picture."""
    landmarker = landmarks.FaceLandmarker(packaged("face_landmarker"))
    return {name: talk(real_clip(name), landmarker) for name in GRID}


def talk(path: Path, landmarker: landmarks.FaceLandmarker) -> tuple[str, Floats, Floats]:
    video = probe.probe(path, Input(uri=str(path)), probe.content_hash(path))
    first = landmarker.detect(next(media.read_frames(path, video)).rgb())
    assert first is not None
    box = np.concatenate([first.points[:, :2].min(0), first.points[:, :2].max(0)])[None].astype(np.float32)
    end_s, ones = video.end_s, np.ones(1, np.float32)
    track = FaceTrack(0, 0, 0.0, end_s, np.zeros(1), box, ones, "landmarker")
    frames = frames_from_seconds(end_s, 25.0)
    clip = Clip(
        clip_id="clip", video_id=video.video_id, uri=video.uri, scene=0, track=0, start_s=0.0, end_s=end_s,
        fps=25.0, num_frames=frames, width_px=video.width_px, height_px=video.height_px,
    )  # fmt: skip
    tracer = landmarks.LandmarkTracer(landmarker, track, clip, video)
    for frame in media.read_frames(path, video):
        tracer.push(media.clip_indices(frame, 0.0, 25.0, frames), frame.rgb())
    samples = media.read_audio(path, video, 0.0, frames / 25.0)
    return (
        video.video_id,
        mouth_measures(tracer.finish()),
        audio_bands(samples, frames, 25.0),
    )


def zero(face: tuple[str, Floats, Floats], bands: Floats) -> float:
    result = ridge.score(face[1], bands, 25.0, ridge.SyncMap.load(), face[0])
    assert result.sync_zero_confidence is not None
    return result.sync_zero_confidence


@pytest.mark.parametrize("name", [*GRID, "st_katie.mp4"])
def test_the_shipped_map_knows_the_clips_that_it_was_fitted_on(real_clip: RealClip, name: str) -> None:
    """So that it leaves a clip's own part out where it scores that clip."""
    assert probe.content_hash(real_clip(name))[:12] in ridge.SyncMap.load().video_ids


def test_grid_audio_is_told_from_the_same_600_ms_off(talks: dict[str, tuple[str, Floats, Floats]]) -> None:
    for name in GRID:
        own = zero(talks[name], talks[name][2])
        for late in (-15, 15):
            assert own > zero(talks[name], np.roll(talks[name][2], late, axis=0)), (name, late)


def test_grid_audio_is_told_from_another_speakers(talks: dict[str, tuple[str, Floats, Floats]]) -> None:
    own = {name: zero(talks[name], talks[name][2]) for name in GRID}
    pairs = [(own[a], zero(talks[a], talks[b][2])) for a in GRID for b in GRID if a != b]
    assert sum(true > other for true, other in pairs) >= 11, pairs  # of 12


def test_offsets_of_grid_clips_are_within_two_frames_where_scored(
    talks: dict[str, tuple[str, Floats, Floats]],
) -> None:
    scored = []
    for name in GRID:
        video_id, mouth, bands = talks[name]
        for late in (-10, -6, 0, 6, 10):
            result = ridge.score(mouth, np.roll(bands, late, axis=0), 25.0, ridge.SyncMap.load(), video_id)
            if result.sync_offset_frames is not None:
                scored.append(result.sync_offset_frames + late)
    assert len(scored) >= 8
    assert max(map(abs, scored)) <= 2, scored


def test_of_two_grid_speakers_the_one_heard_is_named(talks: dict[str, tuple[str, Floats, Floats]]) -> None:
    named = []
    for heard in GRID:
        for listener in GRID:
            if heard != listener:
                bands, fitted = talks[heard][2], ridge.SyncMap.load()
                rows = {
                    name: ridge.score(talks[name][1], bands, 25.0, fitted, talks[name][0])
                    for name in (heard, listener)
                }
                named.append({heard: "right", listener: "wrong", None: "unclear"}[ridge.speaker(rows)])
    assert (named.count("right") >= 9, named.count("wrong") <= 1) == (True, True), named
