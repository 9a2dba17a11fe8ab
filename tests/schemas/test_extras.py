"""What is not installed is told in one line, with the command that installs it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from talkforge.curation.audio.speech_encoders import load_speech_encoder
from talkforge.curation.sync import speaker_scorer
from talkforge.curation.weights import registry
from talkforge.pipeline import caption, needs, stages
from talkforge.pipeline.ingest import find_inputs
from talkforge.pipeline.store import Store
from talkforge.schemas import extras
from talkforge.schemas.config import MeasureConfig, ScanConfig, SpeakerConfig, SpeechConfig
from talkforge.schemas.errors import MissingExtraError
from tests.command_line import run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package of an extra can be found."""
    names = {name for packages in extras.PACKAGES.values() for name in packages}

    class Blocker:
        def find_spec(self, name: str, *_: object) -> None:
            if name in names:
                raise ModuleNotFoundError(name)

    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Blocker(), *sys.meta_path])


@pytest.mark.parametrize("extra", extras.PACKAGES)
@pytest.mark.usefixtures("nothing_else")
def test_the_line_names_the_package_and_the_command(extra: str) -> None:
    with pytest.raises(MissingExtraError) as caught:
        extras.require(extra, "this")
    first = extras.PACKAGES[extra][0]
    assert str(caught.value) == f"this needs the package {first}: pip install 'talkforge[{extra}]'"


def test_what_is_there_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.PACKAGES, "some", ("json", "email.mime"))
    extras.require("some", "this")
    assert extras.missing("some") is None


@pytest.mark.usefixtures("nothing_else")
def test_every_use_of_torch_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "weights", lambda _: tmp_path)
    uses = {
        f"speech.embedding={tmp_path}": lambda: load_speech_encoder(SpeechConfig(embedding=str(tmp_path))),
        "measure.speaker": lambda: speaker_scorer.load(SpeakerConfig(syncnet=True)),
        "scan.scene_detector=transnet": lambda: stages._shot_network(ScanConfig(scene_detector="transnet")),
        "caption": lambda: caption.Captioner(caption.CaptionOptions(model="some/model")),
    }
    for use, call in uses.items():
        with pytest.raises(MissingExtraError) as caught:
            call()
        assert str(caught.value) == f"{use} needs the package torch: pip install 'talkforge[torch]'"


@pytest.mark.parametrize("uri", ["s3://bucket/set", "gs://bucket/set"])
@pytest.mark.usefixtures("nothing_else")
def test_a_store_without_its_driver(uri: str) -> None:
    driver, extra = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}[uri[:2]]
    message = f"{uri} needs the package {driver}: pip install 'talkforge[{extra}]'"
    for use in (lambda: Store(uri).exists("x"), lambda: find_inputs([uri])):
        with pytest.raises(MissingExtraError) as caught:
            use()
        assert str(caught.value) == message


@pytest.mark.usefixtures("nothing_else")
def test_a_run_ends_before_any_video_is_read() -> None:
    config = MeasureConfig.model_validate({"scan": {"scene_detector": "transnet"}})
    with pytest.raises(MissingExtraError, match=r"^transnetv2 needs the package torch: pip install "):
        needs.gather(config)


@pytest.mark.usefixtures("nothing_else")
@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "tiny-stage1", "--set", "data.shards=set", "--set", "run.out=run"),
        ("encode", "set", "--config", "tiny-stage1"),
        ("export", "run", "--out", "weights.pt"),
        ("generate", "run", "--image", "a.png", "--audio", "a.wav", "--out", "a.mp4"),
    ],
)
def test_commands_of_training_say_so(arguments: tuple[str, ...]) -> None:
    code, _, told = run(*arguments)
    assert code == 1
    assert told == f"talkforge: {arguments[0]} needs the package torch: pip install 'talkforge[train]'\n"


def test_every_extra_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras.PACKAGES) | {"dev"} == set(declared["optional-dependencies"])


def test_curating_loads_neither_torch_nor_matplotlib() -> None:
    """Each would cost every command and every worker a second and hundreds of megabytes."""
    code = (
        "import sys\n"
        "from talkforge.pipeline import cut, executor, jobs, shards, stages\n"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'mediapipe', 'scenedetect', 'webdataset',"
        " 'sklearn', 'pandas', 'scipy.signal', 'scipy.stats', 'ray', 'rtmlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
