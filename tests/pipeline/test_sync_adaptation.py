"""The data set's own sync networks: who teaches, what wrong clips do to them, and when they are not kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from talkforge.curation.sync import contrastive, fitting
from talkforge.curation.sync.contrastive import Conv, Network, Scorer
from talkforge.curation.sync.features import NUM_BANDS
from talkforge.curation.sync.phones import NUM_PHONES
from talkforge.pipeline import stages, sync_adaptation
from talkforge.pipeline.calibrate import MARKER, TABLE, WEIGHTS, calibrate, read_calibrated
from talkforge.pipeline.ledger import CommittedClip, read_committed
from talkforge.pipeline.parts import Part, Window
from talkforge.pipeline.results import MeasuredClip, PartResult
from talkforge.pipeline.store import Store
from talkforge.schemas import extras
from talkforge.schemas.config import Config, Thresholds
from talkforge.schemas.errors import MissingExtraError
from talkforge.schemas.records import Clip, ClipMeasures, Face, Failure, Sync, clip_id
from tests.curation.sync.test_contrastive import copying, made
from tests.records import video

SECONDS, NOISE = 12, 4.0
ADAPT = Config(thresholds=Thresholds(adapt_sync=True))


def weak() -> Scorer:
    """A scorer that looks at two of the 26 measures that follow the audio."""
    (network,) = copying().networks
    mouth = network.mouth[0].weight.copy()
    mouth[2:] = 0
    return replace(copying(), networks=(Network((Conv(mouth, np.zeros(NUM_BANDS), 1),), network.audio),))


def patched(patch: pytest.MonkeyPatch) -> None:
    """The weak scorer as the shipped one, and fits that suit stacks of one layer."""
    scorer = weak()
    patch.setattr(Scorer, "load", lambda *_: scorer)
    patch.setattr(fitting, "RATE_FROM_SHIPPED", 2e-2)
    patch.setattr(sync_adaptation, "STEPS", 30)


@pytest.fixture(autouse=True)
def _shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch)


def measured(number: int, late: int = 0, voice: int | None = None, like: int | None = None) -> CommittedClip:
    """A clip of person `number`, with its audio late, with another's voice, or a copy of another."""
    mouth, bands = made(number if like is None else like, SECONDS * 25, NOISE)
    if voice is not None:
        bands = made(voice, SECONDS * 25, NOISE)[1]
    of = video(number, seconds=float(SECONDS))
    clip = Clip(
        clip_id=clip_id(of.video_id, 0, SECONDS, 0), video_id=of.video_id, uri=of.uri, scene=0, track=0,
        start_s=0.0, end_s=float(SECONDS), fps=25.0, num_frames=SECONDS * 25, width_px=64, height_px=64,
    )  # fmt: skip
    face = Face(source_fps=25.0, face_px=200.0, face_confidence=0.9, face_confidence_min=0.9, faces_max=1)
    measures = ClipMeasures(clip=clip, stopped_by=None, face=face)
    phones = np.zeros((len(mouth), NUM_PHONES), np.float16)
    features = {"mouth": mouth, "bands": np.roll(bands, late, axis=0), "phones": phones}
    return CommittedClip("000000", measures, features, None)


def store_of(path: Path, clips: list[CommittedClip]) -> Store:
    store = Store(str(path / "set"))
    windows = tuple(
        Window(video=video(number, seconds=float(SECONDS)), start_s=0.0, end_s=float(SECONDS))
        for number in range(len(clips))
    )
    part = Part(name="000000", windows=windows)
    found = [MeasuredClip(clip.measures, b"", features=dict(clip.features)) for clip in clips]
    stages.commit(PartResult(part, clips=found), store)
    return store


def scores(store: Store, number: int) -> Sync:
    wanted = measured(number).measures.clip.clip_id
    found = next(c for c in read_calibrated(store).clips if c.measures.clip.clip_id == wanted)
    assert found.measures.sync is not None
    return found.measures.sync


def taught(clips: list[CommittedClip]) -> list[str]:
    pairs = [(c, contrastive.score(c.features["mouth"], c.features["bands"], 25.0, weak())) for c in clips]
    people = {c.measures.clip.clip_id: c.measures.clip.video_id for c in clips}
    return [talk.name for talk in sync_adaptation.teachers(pairs, people)]


def key(clip: CommittedClip) -> str:
    return clip.measures.clip.clip_id


def test_only_clips_that_are_surely_in_sync_teach() -> None:
    right, early, other = measured(0), measured(1, late=-5), measured(2, voice=50)
    failed = replace(
        measured(3), failure=Failure(uri="x", video_id="", key="k", stage="trace", error="E", message="m")
    )
    assert taught([right, early, other, failed]) == [key(right)]


def test_a_copy_under_another_name_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [measured(0), measured(1)]
    seen: list[dict[str, object]] = []

    def copies(candidates: Iterable[tuple[dict[str, object], object]], _: Thresholds) -> dict[str, str]:
        seen.extend(row for row, _ in candidates)
        return {key(clips[1]): key(clips[0])}

    monkeypatch.setattr(sync_adaptation, "find_near_duplicates", copies)
    assert taught(clips) == [key(clips[0])]
    assert {"clip_id", "duration_s", "face_px", "sync_confidence"} <= set(seen[0])


def test_no_video_and_no_person_gives_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [measured(number) for number in range(4)]
    pairs = [(c, contrastive.score(c.features["mouth"], c.features["bands"], 25.0, copying())) for c in clips]
    one = {key(clip): "the same" for clip in clips}
    monkeypatch.setattr(sync_adaptation, "VIDEO_MOST_S", 10.0)
    monkeypatch.setattr(sync_adaptation, "PERSON_MOST_S", 25.0)
    frames = [len(talk.mouth) for talk in sync_adaptation.teachers(pairs, one)]
    assert sorted(frames) == [125, 250, 250]


@pytest.fixture(scope="module")
def mixed() -> list[CommittedClip]:
    """Of 20 people 10 are in sync, 6 are 2 to 6 frames off, 4 have another's voice."""
    off = (2, -3, 4, -5, 6, -6)
    clips = [measured(number) for number in range(10)]
    clips += [measured(10 + index, late=late) for index, late in enumerate(off)]
    return clips + [measured(number, voice=number + 100) for number in range(16, 20)]


@pytest.fixture(scope="module")
def fitted(mixed: list[CommittedClip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `mixed` after calibration; tests that change it take a copy."""
    path = tmp_path_factory.mktemp("fitted")
    store = store_of(path, mixed)
    with pytest.MonkeyPatch.context() as patch:
        patched(patch)
        assert calibrate(store, read_committed(store), ADAPT)
    return path


def copied(fitted: Path, tmp_path: Path) -> Store:
    shutil.copytree(fitted / "set", tmp_path / "set")
    return Store(str(tmp_path / "set"))


def test_clips_that_are_off_and_other_voices_do_not_move_the_zero(
    fitted: Path, mixed: list[CommittedClip]
) -> None:
    """30 % of the clips are off by 2 to 6 frames, a fifth have another's voice."""
    store = Store(str(fitted / "set"))
    assert Scorer.from_bytes(store.read(WEIGHTS), WEIGHTS).calibration == weak().calibration
    found = [scores(store, number) for number in range(20)]
    assert {one.sync_method for one in found} == {"copying+own"}
    assert [one.sync_offset_frames for one in found[:16]] == [0] * 10 + [-2, 3, -4, 5, -6, 6]
    assert min(one.sync_probability or 0.0 for one in found[:12]) > 0.9  # three frames off is in sync
    assert max(one.sync_probability or 0.0 for one in found[12:]) < 0.1
    assert max(one.sync_offset_probability or 0.0 for one in found[16:]) < 0.5
    # The shipped scorer is less sure of those that are in sync.
    shipped = [contrastive.score(c.features["mouth"], c.features["bands"], 25.0, weak()) for c in mixed[:10]]
    assert min(one.sync_probability or 0.0 for one in shipped) < min(
        one.sync_probability or 0.0 for one in found[:10]
    )


def test_a_third_of_wrong_voices_is_told_from_the_rest(tmp_path: Path) -> None:
    clips = [measured(number) for number in range(12)]
    clips += [measured(number, voice=number + 100) for number in range(12, 18)]
    store = store_of(tmp_path, clips)
    assert calibrate(store, read_committed(store), ADAPT)
    found = [scores(store, number) for number in range(18)]
    assert min(one.sync_probability or 0.0 for one in found[:12]) > 0.9
    assert max(one.sync_probability or 0.0 for one in found[12:]) < 0.1


def test_every_person_is_scored_by_networks_that_never_saw_them(monkeypatch: pytest.MonkeyPatch) -> None:
    talks = [fitting.Talk(f"{n}", f"p{n}", *made(n, 100, NOISE)) for n in range(10)]
    fitted: list[set[str]] = []

    def fit(seen: list[fitting.Talk], *_: object) -> Network:
        fitted.append({talk.person for talk in seen})
        return copying().networks[0]

    monkeypatch.setattr(fitting, "fit", fit)
    adapted = sync_adaptation.adapt(talks, weak())
    assert adapted is not None and len(fitted) == sync_adaptation.FOLDS
    for talk in talks:
        scorer = adapted.scorer(talk.person)
        number = next(n for n, one in enumerate(adapted.folds) if one is scorer)
        assert talk.person not in fitted[number]


def test_networks_that_do_not_help_are_not_kept(
    tmp_path: Path, mixed: list[CommittedClip], monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = Network((Conv(np.ones((4, 58, 1)), np.ones(4), 1),), (Conv(np.ones((4, 26, 1)), np.ones(4), 1),))
    monkeypatch.setattr(fitting, "fit", lambda *_: deaf)
    monkeypatch.setattr(
        fitting, "by_folds", lambda talks, *_: [(list(talks), replace(weak(), networks=(deaf,)))]
    )
    store = store_of(tmp_path, mixed)
    calibrate(store, read_committed(store), ADAPT)
    assert scores(store, 0).sync_method == "copying"
    monkeypatch.setattr(sync_adaptation, "adapt", lambda *_: pytest.fail("tried again"))
    store.delete(MARKER)
    calibrate(store, read_committed(store), ADAPT)


def test_scores_come_from_the_weights_that_the_data_set_keeps(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copied(fitted, tmp_path)
    before, weights = store.read(TABLE), store.read(WEIGHTS)
    about = Scorer.about(weights)
    assert sum(map(len, about["people"])) == 11 and len(about["people"]) == sync_adaptation.FOLDS
    # Another machine without torch reads them.
    monkeypatch.setattr(fitting, "fit", lambda *_: pytest.fail("fitted again"))
    monkeypatch.setattr(extras, "missing", lambda _: "torch")
    store.delete(MARKER)
    store.delete(TABLE)
    calibrate(store, read_committed(store), ADAPT)
    assert (store.read(TABLE), store.read(WEIGHTS)) == (before, weights)


def test_damaged_weights_are_fitted_again_and_a_line_says_so(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = copied(fitted, tmp_path)
    store.write(WEIGHTS, store.read(WEIGHTS)[:200])
    store.delete(MARKER)
    monkeypatch.setattr(sync_adaptation, "adapt", lambda *_: None)
    calibrate(store, read_committed(store), ADAPT)
    assert scores(store, 0).sync_method == "copying"
    (line,) = caplog.messages
    assert line.startswith("the data set's sync networks are fitted again: sync weights sync.npz: expected")


def test_without_torch_the_shipped_weights_score_and_a_line_says_so(
    tmp_path: Path,
    mixed: list[CommittedClip],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def require(extra: str, use: str) -> None:
        raise MissingExtraError(f"{use} needs the package torch: pip install 'talkforge[{extra}]'")

    monkeypatch.setattr(extras, "require", require)
    store = store_of(tmp_path, mixed)
    calibrate(store, read_committed(store), ADAPT)
    assert scores(store, 0).sync_method == "copying"
    assert caplog.messages == [
        "sync is scored by the shipped weights alone: thresholds.adapt_sync needs the package torch: "
        "pip install 'talkforge[torch]'"
    ]


def test_networks_of_footage_that_is_gone_are_removed_without_torch_too(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who was erased must not be left in them."""

    def require(_extra: str, use: str) -> None:
        raise MissingExtraError(f"{use} needs torch")

    store = copied(fitted, tmp_path)
    assert store.exists(WEIGHTS)
    monkeypatch.setattr(extras, "require", require)
    committed = read_committed(store)
    store.delete(MARKER)
    calibrate(store, replace(committed, clips=committed.clips[1:]), ADAPT)
    assert not store.exists(WEIGHTS) and scores(store, 1).sync_method == "copying"


@pytest.mark.parametrize("change", ["off", "few", "of an earlier version"])
def test_nothing_is_fitted_unless_it_is_wanted_and_there_is_enough(
    tmp_path: Path, mixed: list[CommittedClip], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(fitting, "fit", lambda *_: pytest.fail("fitted"))
    clips = mixed[:9] if change == "few" else mixed
    if change == "of an earlier version":  # there were no phones
        clips = [replace(c, features={k: v for k, v in c.features.items() if k != "phones"}) for c in clips]
    store = store_of(tmp_path, clips)
    calibrate(store, read_committed(store), Config() if change == "off" else ADAPT)
    assert not store.exists(WEIGHTS)
    assert scores(store, 0).sync_method == "copying"


def test_switching_it_off_brings_the_shipped_scores_back(fitted: Path, tmp_path: Path) -> None:
    store = copied(fitted, tmp_path)
    assert scores(store, 0).sync_method == "copying+own"
    calibrate(store, read_committed(store), Config())
    assert scores(store, 0).sync_method == "copying" and not store.exists(WEIGHTS)
    assert "state" in json.loads(store.read(MARKER))
