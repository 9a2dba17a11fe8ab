"""What a run does about weights that are not there, before it reads any video."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from talkforge.curation.audio import speech_encoders
from talkforge.curation.audio.logmel import LogMelEncoder
from talkforge.curation.weights import registry
from talkforge.curation.weights.download import FetchProgress, ProgressCallback
from talkforge.pipeline import jobs
from talkforge.pipeline.executor import InlineExecutor
from talkforge.pipeline.needs import gather, needs
from talkforge.pipeline.store import Store
from talkforge.schemas.config import Config, MeasureConfig, load_config
from talkforge.schemas.errors import ModelError

CONFIGS = Path(__file__).parents[2] / "configs"

PACKAGED = (
    "centerface", "face_landmarker", "silero_vad", "pose_detector", "pose_landmark_full", "dnsmos",
    "fireredvad_aed", "brisque", "pp_ocr_v4_det", "palm_detector", "hand_landmark_full",
)  # fmt: skip
"""Models that the tests of this file do without the package index: they are here, or they are not."""


def test_singing_needs_the_network_of_music_even_where_that_is_optional_or_off() -> None:
    for settings in (["sound.optional=true"], ["sound.music=false"]):
        config = load_config(None, ["speech.singing=true", *settings]).measure
        (need,) = [need for need in needs(config) if need.name == "fireredvad_aed"]
        assert (need.section, need.off, need.optional) == ("speech", (("singing", False),), False)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which weights are found; small files stand for those that packages carry."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("TALKFORGE_MODELS", str(folder))
    monkeypatch.setenv("TALKFORGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_check", lambda *_: None)
    monkeypatch.setattr(speech_encoders, "load_speech_encoder", lambda _: LogMelEncoder())
    for name in PACKAGED:
        put(folder, name)
    return folder


def put(folder: Path, *names: str) -> None:
    for name in names:
        for piece in registry.MODELS[name].files():
            path = folder / piece.name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"weights")


def measuring(*settings: str) -> MeasureConfig:
    return load_config(None, settings).measure


def paper() -> MeasureConfig:
    return load_config(CONFIGS / "curate.yaml").measure


def test_the_papers_preset_names_everything_that_is_missing(place: Path) -> None:
    shutil.rmtree(place)
    with pytest.raises(ModelError) as caught:
        gather(paper(), lambda step: pytest.fail(f"{step} was fetched"))
    head, *lines, rest, command = str(caught.value).split("\n  ")
    assert head == "weights are missing:"
    assert [line.partition(":")[0] for line in lines] == [
        "scrfd", "dwpose", "wav2vec2-base-960h", "w600k_r50", "light_asd", "syncnet_v2",
    ]  # fmt: skip
    for line in lines:
        entry = registry.MODELS[line.partition(":")[0]]
        assert entry.file in line and entry.address in line and entry.licence in line
        assert "put it into the folder that TALKFORGE_MODELS names" in line
    assert [line.endswith("(optional)") for line in lines] == [False] * 4 + [True] * 2
    for name in set(PACKAGED) - {"centerface", "pose_detector", "pose_landmark_full"}:
        assert f"{name} ({registry.MODELS[name].package})" in rest
    assert command == (
        "where there is a network: "
        "talkforge models --fetch scrfd dwpose wav2vec2-base-960h w600k_r50 light_asd syncnet_v2"
    )


def test_a_run_without_its_weights_reads_no_video_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    assert place.is_dir()
    video = tmp_path / "a.mp4"
    video.write_bytes(b"never opened")

    def start() -> InlineExecutor:
        pytest.fail("the run began")

    with pytest.raises(ModelError, match="weights are missing:\n  scrfd: "):
        jobs.curate([str(video)], Store(str(tmp_path / "set")), Config(measure=paper()), start)
    assert not (tmp_path / "set").exists()


def test_what_is_optional_and_absent_is_switched_off_and_told(place: Path) -> None:
    put(place, "scrfd", "dwpose", "wav2vec2-base-960h", "w600k_r50", "syncnet_v2")
    gathered = gather(paper())
    assert (gathered.config.speaker.active_speaker, gathered.config.speaker.syncnet) == (False, True)
    (absent,) = gathered.absent
    assert (absent.name, absent.needed_by) == ("light_asd", registry.MODELS["light_asd"].needed_by)
    assert absent.why.startswith("light_asd: no package carries lightasd_finetuning_TalkSet.model: put")
    used = {use.name: use.sha256 for use in gathered.used}
    registered = ["scrfd", "face_landmarker", "silero_vad", "dwpose", "dnsmos", "fireredvad_aed"]
    registered += ["brisque", "pp_ocr_v4_det", "palm_detector", "hand_landmark_full"]
    registered += ["wav2vec2-base-960h", "w600k_r50", "syncnet_v2"]
    assert list(used) == [*registered, "phonetic-v1", "hama_asr", "covered-mouth-v1"]
    assert {name: used[name] for name in registered} == {n: registry.MODELS[n].sha256 for n in registered}


def test_what_is_not_optional_ends_the_run(place: Path) -> None:
    assert place.is_dir()
    with pytest.raises(ModelError, match=r"weights are missing:\n  light_asd: .*\n  where there"):
        gather(measuring("speaker.active_speaker=true", "identity.model=none"))
    with pytest.raises(ModelError, match=r"weights are missing:\n  w600k_r50: "):
        gather(measuring("identity.model=w600k_r50"))


def test_auto_is_settled_once_for_all_workers(place: Path) -> None:
    absent = gather(measuring())
    assert (absent.config.identity.model, [a.name for a in absent.absent]) == ("none", ["w600k_r50"])
    put(place, "mobilefacenet")
    here = gather(measuring())
    assert (here.config.identity.model, here.absent) == ("mobilefacenet", ())
    assert "mobilefacenet" in {use.name for use in here.used}
    put(place, "w600k_r50")
    assert gather(measuring()).config.identity.model == "w600k_r50"


def test_half_of_a_pair_is_not_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / registry.MODELS["pose_landmark_full"].file).unlink()
    steps: list[FetchProgress] = []

    def unreachable(name: str, on_progress: ProgressCallback) -> Path:
        on_progress(FetchProgress(name, 0, None))
        raise ModelError(f"{name}: no index")

    monkeypatch.setattr(registry, "fetch", unreachable)
    gathered = gather(measuring("motion.optional=true"), steps.append)
    why = {absent.name: absent.why for absent in gathered.absent}
    assert why["pose_landmark_full"] == "pose_landmark_full: no index"
    assert gathered.config.motion.body == "none"
    assert not {"pose_detector", "pose_landmark_full"} & {use.name for use in gathered.used}
    with pytest.raises(ModelError, match=r"weights are missing:\n  pose_landmark_full: no index\n"):
        gather(measuring())
    assert [step.what for step in steps] == ["pose_landmark_full"]


def test_altered_weights_end_the_run_even_where_they_are_optional(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALKFORGE_MODELS", str(place))
        for name in PACKAGED:
            (place / registry.MODELS[name].file).unlink(missing_ok=True)
        put(place, "light_asd")
        with pytest.raises(
            ModelError, match=r"light_asd: .*expected sha256 efc37583.*\(7 of 4175289 bytes\)"
        ):
            gather(measuring("speaker.active_speaker=true", "speaker.optional=true"))


def test_the_offline_preset_asks_for_nothing_but_packages() -> None:
    config = load_config(CONFIGS / "offline.yaml").measure
    for need in needs(config):
        assert registry.MODELS[need.name].package or (need.section == "identity" and need.optional)


def test_every_section_that_can_be_switched_off_says_whether_it_is_optional(place: Path) -> None:
    put(place, "mobilefacenet")
    switches = ("sound.dnsmos", "speaker.active_speaker", "speaker.syncnet", "picture.text", "picture.hands")
    everything = measuring(*(f"{switch}=true" for switch in switches))
    for need in needs(everything):
        assert bool(need.section) == bool(need.off)
        if need.section:
            section = getattr(everything, need.section)
            assert isinstance(section.optional, bool)
            assert set(dict(need.off)) <= set(type(section).model_fields)


def test_the_models_of_a_run_and_its_speech_encoder_are_named(place: Path) -> None:
    assert place.is_dir()
    gathered = gather(measuring("sound.music=true", "motion.body=none", "identity.model=none"))
    expected = ["centerface", "face_landmarker", "silero_vad", "fireredvad_aed", "logmel-80"]
    assert [use.name for use in gathered.used][:-3] == expected  # then sync, its phones, covered mouths
    assert (gathered.encoder.name, gathered.encoder.dim) == ("logmel-80", 80)
