"""Sync: exact lags where mouth and audio share a signal, honest probabilities, real strangers told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from talkforge.curation import media
from talkforge.curation.face import landmarks
from talkforge.curation.media import probe
from talkforge.curation.sync import contrastive
from talkforge.curation.sync.contrastive import IN_SYNC, LAGS, SEARCH, Calibration, Conv, Network, Scorer
from talkforge.curation.sync.features import NUM_BANDS, NUM_MEASURES, audio_bands, mouth_measures
from talkforge.curation.sync.phones import NUM_PHONES, PhoneRecogniser
from talkforge.schemas.arrays import FaceTrack, Floats, Halves
from talkforge.schemas.config import Thresholds
from talkforge.schemas.errors import ModelError
from talkforge.schemas.records import Clip, Input, Sync
from talkforge.schemas.units import frames_from_seconds
from tests.conftest import SHARED, Packaged, RealClip

Talked = tuple[Floats, Floats, Halves]
"""Mouth measures, audio bands and phones of a clip."""

MADE = Calibration(similarity=30.0, significance=0.5, second=2.0, constant=1.0)


def copying() -> Scorer:
    """A scorer whose two stacks hand on what they are given: the mouth's posture, and the bands."""
    mouth = np.zeros((NUM_BANDS, 2 * NUM_MEASURES, 1))
    mouth[np.arange(NUM_BANDS), NUM_MEASURES + np.arange(NUM_BANDS), 0] = 1.0
    audio = np.eye(NUM_BANDS)[:, :, None]
    nothing = np.zeros(NUM_BANDS)
    return Scorer("copying", (Network((Conv(mouth, nothing, 1),), (Conv(audio, nothing, 1),)),), MADE)


def made(seed: int, frames: int, noise: float = 1.0) -> tuple[Floats, Floats]:
    """Bands that wander as syllables do, and a mouth whose first measures follow them, with noise."""
    rng = np.random.default_rng(seed)
    white = rng.normal(size=(frames + 2, NUM_BANDS))
    bands = white[:-2] + white[1:-1] + white[2:]
    mouth = rng.normal(size=(frames, NUM_MEASURES))
    mouth[:, :NUM_BANDS] = bands + noise * mouth[:, :NUM_BANDS]
    return mouth.astype(np.float32), bands.astype(np.float32)


@pytest.mark.parametrize("late", [-12, -6, -1, 0, 4, 12])
def test_a_made_shift_is_found_to_the_frame_with_its_sign(late: int) -> None:
    mouth, bands = made(1, 200)
    # Audio that sounds `late` frames after its mouth must be advanced: offset -late.
    found = contrastive.score(mouth, np.roll(bands, late, axis=0), 25.0, copying())
    assert found.sync_offset_frames == -late
    assert found.sync_offset_sd_frames is not None and found.sync_offset_sd_frames < 0.5
    assert found.sync_offset_probability is not None and found.sync_offset_probability > 0.99
    assert found.sync_probability is not None
    assert (found.sync_probability > 0.99) == (abs(late) <= IN_SYNC)
    assert (found.sync_probability < 0.01) == (abs(late) > IN_SYNC)


@pytest.mark.parametrize("fps", [23.976, 30.0, 50.0])
def test_offsets_are_told_in_frames_of_the_clip(fps: float) -> None:
    mouth, bands = made(2, 400)
    times = np.arange(int(399 / 25 * fps)) / fps

    def at(rows: Floats) -> Floats:
        columns = [np.interp(times, np.arange(400) / 25, column) for column in rows.T]
        return np.stack(columns, axis=1).astype(np.float32)

    found = contrastive.score(at(mouth), at(np.roll(bands, 10, axis=0)), fps, copying())
    assert found.sync_offset_frames == -int(np.floor(10 / 25 * fps + 0.5))


def test_a_face_that_is_missing_for_a_while_does_not_disturb() -> None:
    mouth, bands = made(3, 250)
    mouth[60:110] = np.nan
    found = contrastive.score(mouth, np.roll(bands, -6, axis=0), 25.0, copying())
    assert found.sync_offset_frames == 6
    evidence = copying().evidence(mouth, bands, 25.0)
    assert evidence is not None and evidence.seen_s == pytest.approx(8.0)


def test_another_voice_is_improbable_at_every_offset() -> None:
    found = [
        contrastive.score(made(seed, 200)[0], made(seed + 500, 200)[1], 25.0, copying()) for seed in range(20)
    ]
    assert max(row.sync_probability or 0.0 for row in found) < 0.1
    assert max(row.sync_offset_probability or 0.0 for row in found) < 0.5


@pytest.mark.parametrize("case", ["silence", "still mouth", "no face", "short", "empty"])
def test_nothing_is_said_of_nothing(case: str) -> None:
    mouth, bands = made(4, 200)
    if case == "silence":
        bands = audio_bands(np.zeros(16000 * 8, np.float32), 200, 25.0)
    elif case == "still mouth":
        mouth = np.ones_like(mouth)
    elif case == "no face":
        mouth = np.full_like(mouth, np.nan)
    elif case == "short":
        mouth, bands = mouth[: contrastive.MIN_FRAMES - 1], bands[: contrastive.MIN_FRAMES - 1]
    else:
        mouth, bands = mouth[:0], bands[:0]
    assert contrastive.score(mouth, bands, 25.0, copying()) == Sync(
        sync_method="copying", sync_offset_frames=None, sync_confidence=None, sync_zero_confidence=None
    )


def test_the_shortest_clip_that_is_long_enough_is_scored() -> None:
    mouth, bands = made(5, contrastive.MIN_FRAMES)
    found = contrastive.score(mouth, bands, 25.0, copying())
    assert found.sync_probability is not None and found.sync_offset_frames == 0


def test_drift_is_the_second_halfs_offset_minus_the_firsts() -> None:
    mouth, bands = made(6, 300)
    drifting = np.concatenate([bands[:150], np.roll(bands, 3, axis=0)[150:]])
    found = contrastive.score(mouth, drifting, 25.0, copying())
    assert found.sync_drift_frames == pytest.approx(-3.0, abs=0.1)
    assert contrastive.score(mouth, bands, 25.0, copying()).sync_drift_frames == pytest.approx(0.0, abs=0.1)
    short = round(contrastive.DRIFT_MIN_S * 25) - 1
    assert contrastive.score(mouth[:short], bands[:short], 25.0, copying()).sync_drift_frames is None
    strange = contrastive.score(mouth, made(600, 300)[1], 25.0, copying())
    assert strange.sync_drift_frames is None, "a half that fits nowhere has no offset"


def test_without_evidence_the_probability_is_the_prior() -> None:
    found = contrastive.posterior(np.zeros(len(LAGS)))
    assert found.unrelated == pytest.approx(1 - contrastive.PRIOR_TOGETHER)
    near = found.lags[np.abs(LAGS) <= IN_SYNC].sum()
    assert near == pytest.approx(contrastive.PRIOR_TOGETHER * contrastive.PRIOR_IN_SYNC)
    assert found.lags.sum() + found.unrelated == pytest.approx(1.0)


def test_evidence_at_a_lag_goes_by_bayes_rule() -> None:
    ratios = np.full(len(LAGS), -np.inf)
    ratios[SEARCH] = np.log(9.0)
    prior = contrastive.posterior(np.zeros(len(LAGS))).lags[SEARCH]
    expected = 9 * prior / (9 * prior + 1 - contrastive.PRIOR_TOGETHER)
    assert contrastive.posterior(ratios).lags[SEARCH] == pytest.approx(expected)


def test_a_saved_scorer_is_loaded_and_other_files_are_refused(tmp_path: Path) -> None:
    path, (mouth, bands) = tmp_path / "weights.npz", made(7, 100)
    path.write_bytes(copying().to_bytes({"people": 3}))
    loaded = Scorer.load(path)
    assert loaded.name == "copying" and loaded.calibration == MADE
    assert contrastive.score(mouth, bands, 25.0, loaded) == contrastive.score(mouth, bands, 25.0, copying())
    first = path.read_bytes()
    assert loaded.to_bytes({"people": 3}) == first
    with np.load(path) as file:
        arrays = dict(file)
    about = json.loads(arrays["about"].item())
    assert about["people"] == 3
    np.savez(path, **{**arrays, "about": np.array(json.dumps({**about, "format": 99}))})
    with pytest.raises(
        ModelError, match=r"sync weights weights\.npz: expected those of this version: format 99"
    ):
        Scorer.load(path)
    path.write_bytes(first[:100])
    with pytest.raises(ModelError, match=r"sync weights weights\.npz"):
        Scorer.load(path)
    with pytest.raises(ModelError, match=r"sync weights none\.npz"):
        Scorer.load(tmp_path / "none.npz")


def row(probability: float | None) -> Sync:
    return Sync(
        sync_method="m", sync_offset_frames=0, sync_confidence=0.0, sync_zero_confidence=0.0,
        sync_probability=probability,
    )  # fmt: skip


def test_the_speaker_is_named_only_with_a_lead() -> None:
    assert contrastive.speaker({"a": row(0.9), "b": row(0.1)}) == "a"
    assert contrastive.speaker({"a": row(0.1), "b": row(0.9)}) == "b"
    assert contrastive.speaker({"a": row(0.9), "b": row(0.8)}) is None
    assert contrastive.speaker({"a": row(0.49), "b": row(0.0)}) is None
    assert contrastive.speaker({"a": row(0.5), "b": row(None)}) == "a"
    assert contrastive.speaker({"a": row(None)}) is None
    assert contrastive.speaker({}) is None


# ---------------------------------------------------------------------------- the shipped weights

GRID = ("grid_bbaf2n.mpg", "grid_brbk7n.mpg", "grid_id2_swwp2s.mpg", "grid_lrwp9a.mpg")
"""The shipped weights were fitted on these, among others."""

STRANGERS = ("grid_s34.mpg", "misc_ian.mp4", "vidtimit_fadg0.mp4", "vox_62.mp4", "vox_67.mp4")
"""People that nothing was fitted on."""


def talk(path: Path, landmarker: landmarks.FaceLandmarker) -> Talked:
    """Mouth measures, bands and phones of a clip with one face, which fills the picture, at 25 frames/s."""
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
    heard = (samples, frames, 25.0)
    return mouth_measures(tracer.finish()), audio_bands(*heard), PhoneRecogniser().measure(*heard)


def probabilities(talks: dict[str, Talked]) -> tuple[list[float], list[float], list[float]]:
    """Of every clip as it is, with its audio moved by 400 ms either way, and with every other's voice."""
    scorer = Scorer.load()

    def of(a: str, b: str, late: int = 0) -> float:
        mouth, (_, bands, phones) = talks[a][0], talks[b]
        frames = (np.arange(len(mouth)) - late) % len(bands)
        found = contrastive.score(mouth, bands[frames], 25.0, scorer, phones[frames])
        assert found.sync_probability is not None
        return found.sync_probability

    true = [of(a, a) for a in talks]
    moved = [of(a, a, late) for a in talks for late in (-10, 10)]
    strange = [of(a, b) for a in talks for b in talks if a != b]
    return true, moved, strange


@pytest.fixture(scope="module")
def grid(real_clip: RealClip, packaged: Packaged) -> dict[str, Talked]:
    landmarker = landmarks.FaceLandmarker(packaged("face_landmarker"))
    return {name: talk(real_clip(name), landmarker) for name in GRID}


@pytest.fixture(scope="module")
def strangers(packaged: Packaged) -> dict[str, Talked]:
    paths = [SHARED / "people" / "real" / name for name in STRANGERS]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"people that the weights were not fitted on are not here: {SHARED.name}/people")
    landmarker = landmarks.FaceLandmarker(packaged("face_landmarker"))
    return {path.name: talk(path, landmarker) for path in paths}


def test_the_shipped_weights_are_small_and_say_what_they_are() -> None:
    scorer = Scorer.load()
    assert scorer.name == "phonetic-v1" and scorer.phonetic
    assert contrastive.WEIGHTS_PATH.stat().st_size < 2_000_000
    with np.load(contrastive.WEIGHTS_PATH, allow_pickle=False) as file:
        about = json.loads(file["about"].item())
    assert set(GRID) < set(about["files"]) and about["people"] == len(about["files"])
    assert not set(STRANGERS) & set(about["files"])
    earlier = Scorer.load(contrastive.BANDS_ONLY_PATH)
    assert earlier.name == "contrastive-v1" and not earlier.phonetic


def test_a_phonetic_scorer_wants_phones_and_another_leaves_them_out() -> None:
    mouth, bands = made(8, 100)
    with pytest.raises(ValueError, match=r"phones: expected shape \[100, 45\], found \[0\]"):
        contrastive.score(mouth, bands, 25.0, Scorer.load())
    phones = np.random.default_rng(0).normal(size=(100, NUM_PHONES)).astype(np.float16)
    without = contrastive.score(mouth, bands, 25.0, copying())
    assert contrastive.score(mouth, bands, 25.0, copying(), phones) == without


def test_a_while_of_another_voice_shows_in_the_worst_window() -> None:
    mouth, bands = made(9, 300, 0.5)
    strange = bands.copy()
    strange[100:200] = made(900, 100)[1]
    own, turned = (contrastive.score(mouth, heard, 25.0, copying()) for heard in (bands, strange))
    assert own.sync_probability is not None and own.sync_probability > 0.99
    assert turned.sync_probability is not None and turned.sync_probability > 0.99
    assert own.sync_worst_probability is not None and own.sync_worst_probability > 0.9
    assert turned.sync_worst_probability is not None and turned.sync_worst_probability < 0.1
    # A constant offset is no turn; a clip of one window has nothing to compare.
    off = contrastive.score(mouth, np.roll(bands, 8, axis=0), 25.0, copying())
    assert off.sync_worst_probability is not None and off.sync_worst_probability > 0.9
    assert contrastive.score(mouth[:75], bands[:75], 25.0, copying()).sync_worst_probability is None


def test_a_pause_is_no_turn() -> None:
    mouth, bands = made(10, 300, 0.5)
    bands[100:200] -= 9.0  # 39 dB
    found = contrastive.score(mouth, bands, 25.0, copying())
    assert found.sync_worst_probability is not None and found.sync_worst_probability > 0.5


def test_grid_speakers_fit_their_own_audio_best(grid: dict[str, Talked]) -> None:
    """Sentences of GRID have one rhythm, so that another speaker's fits too well for any threshold."""
    true, moved, strange = probabilities(grid)
    assert min(true) > 0.99 and max(moved) < 0.1
    others = np.array(strange).reshape(len(GRID), len(GRID) - 1)
    assert (np.array(true)[:, None] > others).sum() >= 11  # of 12


def test_strangers_are_told_apart(strangers: dict[str, Talked]) -> None:
    """Clips of 3 to 6.3 s."""
    true, moved, strange = probabilities(strangers)
    least = Thresholds().min_sync_probability
    assert least is not None
    assert min(true) > 0.9, true
    assert sum(p < 0.5 for p in moved) == 10, moved
    assert sum(p < least for p in strange) >= 19, strange  # of 20
