"""Fitting of the sync networks: numpy computes what torch fitted; calibration tells the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from talkforge.curation.sync import contrastive, fitting
from talkforge.curation.sync.contrastive import IN_SYNC, LAGS, Calibration, Evidence, Scorer
from talkforge.curation.sync.features import NUM_BANDS, NUM_MEASURES, mouth_input
from talkforge.curation.sync.fitting import Case, Talk
from talkforge.curation.sync.phones import NUM_PHONES
from tests.curation.sync.test_contrastive import copying, made

torch = pytest.importorskip("torch")


def talks(count: int, frames: int, noise: float = 0.5) -> list[Talk]:
    return [Talk(f"{seed}", f"{seed}", *made(seed, frames, noise)) for seed in range(count)]


def test_numpy_computes_what_torch_fitted() -> None:
    torch.manual_seed(0)
    stack = fitting._new(NUM_BANDS)
    for layer in stack:
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    features = np.random.default_rng(0).normal(size=(40, NUM_BANDS))
    with torch.no_grad():
        raw = stack.eval()(torch.from_numpy(features.T[None]).float())[0].numpy().T
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    folded = fitting._folded(stack)
    np.testing.assert_allclose(contrastive._run(folded, features), expected, atol=1e-4)
    again = fitting._folded(fitting._begun(folded))
    np.testing.assert_allclose(contrastive._run(again, features), expected, atol=1e-4)


def test_a_network_learns_from_others_what_it_needs_to_place_a_stranger() -> None:
    seen = talks(6, 200)
    network = fitting.fit(seen, seed=0, steps=40)
    mouth, bands = made(100, 150, 0.5)
    scorer = Scorer("made", (network,), fitting.NOT_CALIBRATED)
    for late in (-6, 0, 9):
        evidence = scorer.evidence(mouth, np.roll(bands, late, axis=0), 25.0)
        assert evidence is not None
        assert LAGS[evidence.by_lag.argmax()] == -late


def test_a_piece_is_spoilt_without_losing_its_shape() -> None:
    rng = np.random.default_rng(3)
    talk = Talk("a", "a", *made(3, 60))  # shorter than a piece
    mouth, bands, _ = fitting._piece(talk, rng)
    assert mouth.shape == (fitting.PIECE_FRAMES, NUM_MEASURES)
    assert bands.shape == (fitting.PIECE_FRAMES, NUM_BANDS)
    spoilt = fitting._spoilt_audio(bands, talk.bands, rng)
    assert spoilt.shape == bands.shape and np.isfinite(spoilt).all()
    assert fitting._spoilt_mouth(mouth, rng).shape == mouth_input(mouth)[0].shape


def test_an_offset_that_is_known_is_put_right_in_the_pieces() -> None:
    ramp = np.arange(100.0)[:, None]
    talk = Talk("a", "a", np.repeat(ramp, NUM_MEASURES, 1), np.repeat(ramp, NUM_BANDS, 1), offset=4)
    mouth, bands, _ = fitting._piece(talk, np.random.default_rng(0))
    inside = (bands[:, 0] > 0) & (bands[:, 0] < 99)
    np.testing.assert_allclose((mouth[:, 0] - bands[:, 0])[inside], 4.0)


def spoken(talk: Talk) -> Talk:
    """The clip with phones that say what the bands say, and bands that say nothing."""
    rng = np.random.default_rng(int(talk.name))
    phones = np.zeros((len(talk.bands), NUM_PHONES), np.float16)
    phones[:, :NUM_BANDS] = talk.bands
    return replace(talk, phones=phones, bands=rng.normal(size=talk.bands.shape).astype(np.float32))


def test_a_network_learns_from_phones_where_all_of_the_footage_has_them() -> None:
    seen = [spoken(talk) for talk in talks(6, 200)]
    scorer = Scorer("made", (fitting.fit(seen, seed=0, steps=40),), fitting.NOT_CALIBRATED)
    assert scorer.phonetic
    (stranger,) = [spoken(talk) for talk in talks(7, 150)[6:]]
    for late in (-6, 0, 9):
        bands, phones = stranger.heard(0, 150, late)
        evidence = scorer.evidence(stranger.mouth, bands, 25.0, phones)
        assert evidence is not None
        assert LAGS[evidence.by_lag.argmax()] == -late
    begun = fitting.fit([replace(talk, phones=None) for talk in seen], seed=0, steps=1)
    assert not Scorer("made", (begun,), fitting.NOT_CALIBRATED).phonetic
    # What begins with other weights takes what they take.
    assert not Scorer("made", (fitting.fit(seen, 0, begun, steps=1),), fitting.NOT_CALIBRATED).phonetic


def test_a_voice_in_the_rhythm_of_another_is_where_and_as_fast_as_it_fits_best() -> None:
    rng = np.random.default_rng(1)
    loudness = gaussian_filter1d(rng.normal(size=400), 4.0) * 20
    bands = (loudness[:, None] + 0.01 * rng.normal(size=(400, NUM_BANDS))).astype(np.float32)
    voice = Talk("v", "v", np.zeros((400, NUM_MEASURES), np.float32), bands)
    for speed in fitting.SPEEDS:
        own = fitting.at_instants(bands, 120 + speed * np.arange(75)).astype(np.float32)
        found, phones = fitting._in_rhythm(own, voice)
        assert phones is None and found.shape == own.shape
        assert np.corrcoef(found.mean(axis=1), own.mean(axis=1))[0, 1] > 0.95
    short = replace(voice, bands=bands[:40])
    assert fitting._in_rhythm(bands[:75], short)[0].shape == (75, NUM_BANDS)


def test_cases_know_their_truth() -> None:
    people = talks(4, 150)
    found = fitting.cases(people[:1], copying(), 3.0, people, np.random.default_rng(0))
    kinds = [case.kind for case in found]
    assert kinds.count("true") == 2 and kinds.count("voice") == 2 * fitting.STRANGERS
    assert kinds.count("rhythm") == 2 * fitting.STRANGERS and kinds.count("frozen") == 2
    for case in found:
        best = int(LAGS[case.evidence.by_lag.argmax()])
        if case.lag is not None:
            assert best == case.lag, case.kind
        else:
            assert case.evidence.by_lag.max() < 0.3, case.kind


def test_clips_that_are_too_short_for_a_piece_give_none() -> None:
    people = talks(3, 60)
    assert fitting.cases(people[:1], copying(), 3.0, people, np.random.default_rng(0)) == []


def test_calibrated_probabilities_are_frequencies() -> None:
    """Similarities of the two kinds are drawn from known distributions that overlap."""
    rng = np.random.default_rng(0)

    def case(true: bool) -> Case:
        by_lag = 0.08 * rng.normal(size=len(LAGS))
        if true:
            by_lag[np.abs(LAGS) <= 1] += 0.25
        return Case("p", "true" if true else "voice", 3.0, 0 if true else None, Evidence(by_lag, 0.08, 3.0))

    calibration = fitting.calibrate([case(true) for true in [True, False] * 400])
    fresh = [(true, case(true)) for true in [True, False] * 400]
    scorer = Scorer("made", copying().networks, calibration)
    near = np.abs(LAGS) <= IN_SYNC
    told = np.array([contrastive.posterior(scorer.log_ratios(c.evidence)).lags[near].sum() for _, c in fresh])
    truth = np.array([true for true, _ in fresh])
    assert told[truth].mean() > 0.9 and told[~truth].mean() < 0.1
    assert abs(told.mean() - truth.mean()) < 0.05
    assert isinstance(calibration, Calibration)


def test_folds_part_people_and_each_is_judged_by_the_others() -> None:
    people = talks(5, 100)
    found = fitting.by_folds(people, 5, steps=2)
    assert sorted(talk.person for held, _ in found for talk in held) == sorted(t.person for t in people)
    assert all(len(scorer.networks) == 1 for _, scorer in found)
    start = found[0][1].networks
    grown = fitting.by_folds(people, 2, start, steps=1)
    assert all(scorer.networks[0] is start[0] and len(scorer.networks) == 2 for _, scorer in grown)
