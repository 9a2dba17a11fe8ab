"""The studio through its addresses: what is handed over, videos, cancelling, and what is refused."""

from __future__ import annotations

import io
import threading
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image
from torch import Tensor

from talkforge.local_page import POLICY, Server
from talkforge.studio.server import controls, make_app
from talkforge.studio.studio import Settings, Studio
from talkforge.training.generate.job import Job, generate
from talkforge.training.generate.pipeline import GenerationPipeline, Source
from talkforge.training.generate.savings import Savings
from talkforge.training.wan.talking_wan import TalkingWan
from tests.command_line import run as command
from tests.training.batches import some_info
from tests.training.generate.test_job import calls_of
from tests.training.generate.test_portrait import two_faces
from tests.training.runs import SMALL
from tests.training.speakers import EDGE_PX, a_run, portrait, tone

TOKEN = "secret"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on log-mel features, without identities. Its windows have 9 frames, of which 5 may be given."""
    info = some_info(speech_dim=80, identity_dim=0)
    return a_run(tmp_path_factory.mktemp("run"), info, data__prefix_frames=5)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Portraits with one and two faces, and a tone of 0.9 s: 23 frames, 5 windows."""
    folder = tmp_path_factory.mktemp("files")
    portrait(folder / "one.png")
    two_faces(folder / "two.png")
    tone(folder / "tone.wav", 0.9)
    return folder


def studio_of(run: Path, folder: Path) -> Studio:
    (folder / "given").mkdir()
    (folder / "videos").mkdir()
    pipeline = GenerationPipeline.load(run, "cpu")
    return Studio(pipeline, Source(run), Savings(), folder / "given", folder / "videos")


@pytest.fixture
def studio(run: Path, tmp_path: Path) -> Iterator[Studio]:
    found = studio_of(run, tmp_path)
    yield found
    found.close()


@pytest.fixture
def client(studio: Studio) -> FlaskClient:
    return make_app(studio, "Studio", TOKEN).test_client()


def get(client: FlaskClient, path: str, **headers: str) -> Any:
    return client.get(f"/{TOKEN}/{path}", headers=headers)


def post(client: FlaskClient, path: str, data: Any = b"") -> Any:
    given = {"json": data} if isinstance(data, dict) else {"data": data}
    return client.post(f"/{TOKEN}/{path}", **given)


def hand_over(client: FlaskClient, files: Path, image: str = "one.png") -> None:
    assert post(client, "portrait", (files / image).read_bytes()).status_code == 200
    assert post(client, "audio", (files / "tone.wav").read_bytes()).status_code == 200


def finish(studio: Studio) -> None:
    assert studio._thread is not None
    studio._thread.join()


# --------------------------------------------------------------------------- what is handed over


def test_faces_are_named_and_the_chosen_one_is_framed(client: FlaskClient, files: Path) -> None:
    found = post(client, "portrait", (files / "two.png").read_bytes()).json
    assert (found["width_px"], found["height_px"], found["face"]) == (600, 300, 2)
    assert [(one["number"], one["place"]) for one in found["faces"]] == [(1, "left"), (2, "right")]
    assert all(0 <= value <= 1 for one in found["faces"] for value in one["box"])
    assert found["faces"][0]["box"][2] < 1 / 3 < found["faces"][1]["box"][0]
    frames = [Image.open(io.BytesIO(get(client, f"frame{q}").data)) for q in ("", "?face=1", "?face=2")]
    assert {frame.size for frame in frames} == {(EDGE_PX, EDGE_PX)}
    assert frames[0].tobytes() == frames[2].tobytes() != frames[1].tobytes()
    assert get(client, "frame?face=3").json == {"error": "face 3: the portrait has 2"}
    assert Image.open(io.BytesIO(get(client, "portrait").data)).size == (600, 300)
    assert get(client, "about").json["portrait"] == found


def test_a_large_portrait_is_shown_small(client: FlaskClient) -> None:
    data = cv2.imencode(".png", np.zeros((2048, 1024, 3), np.uint8))[1].tobytes()
    assert post(client, "portrait", data).json["faces"] == []
    assert Image.open(io.BytesIO(get(client, "portrait").data)).size == (512, 1024)


def test_what_the_model_hears_is_played(client: FlaskClient, files: Path) -> None:
    found = post(client, "audio", (files / "tone.wav").read_bytes()).json
    assert found == {"duration_s": pytest.approx(0.9, abs=1e-3), "frames": 23}
    answer = get(client, "audio")
    with wave.open(io.BytesIO(answer.data)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (1, 16_000, 14_400)
    assert get(client, "audio", Range="bytes=0-3").data == b"RIFF"
    assert get(client, "about").json["audio"] == found


@pytest.mark.parametrize(
    ("path", "data", "error"),
    [
        ("portrait", b"", "portrait: expected an image, found an empty file"),
        ("portrait", b"words", "portrait: expected an image, found a file that is none"),
        ("audio", b"", "audio: expected audio, found an empty file"),
        ("audio", b"words", "audio: expected audio or video, found "),
        ("make", {}, "expected a portrait first"),
    ],
)
def test_what_cannot_be_used_is_one_line(client: FlaskClient, path: str, data: Any, error: str) -> None:
    answer = post(client, path, data)
    assert answer.status_code == 409 and answer.json["error"].startswith(error)
    assert "\n" not in answer.json["error"] and "/given/" not in answer.json["error"]
    assert get(client, path if path != "make" else "audio").status_code == 409  # nothing was taken


def test_a_damaged_file_leaves_what_was_there(client: FlaskClient, files: Path) -> None:
    hand_over(client, files)
    before = get(client, "about").json
    whole = (files / "two.png").read_bytes()
    assert post(client, "portrait", whole[: len(whole) // 2]).status_code == 409
    assert post(client, "audio", b"words").status_code == 409
    assert get(client, "about").json == before


def test_sound_that_is_too_long_or_too_large_is_refused(
    client: FlaskClient, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("talkforge.studio.studio.MOST_SECONDS", 0.5)
    answer = post(client, "audio", (files / "tone.wav").read_bytes())
    assert answer.json == {
        "error": "audio: expected at most 0.5 s, found 1 s: talkforge generate makes longer videos"
    }
    client.application.config["MAX_CONTENT_LENGTH"] = 1000
    assert post(client, "audio", (files / "tone.wav").read_bytes()).status_code == 413


def test_settings_are_no_place_for_files(client: FlaskClient, files: Path) -> None:
    hand_over(client, files)
    assert post(client, "make", {"prompt": "x" * 70_000}).status_code == 413
    assert client.post(f"/{TOKEN}/make", data=b"{}").status_code == 415
    assert client.post(f"/{TOKEN}/make", data=b"{", content_type="application/json").status_code == 400


# --------------------------------------------------------------------------- videos


def test_a_video_is_that_of_the_command(
    client: FlaskClient, studio: Studio, run: Path, files: Path, tmp_path: Path
) -> None:
    hand_over(client, files, "two.png")
    asked = {"omega_face": 0.9, "seed": 3, "face": 1, "sample": {"windows": "continue", "steps": 2}}
    answer = post(client, "make", asked)
    assert (answer.status_code, answer.json["status"]) == (202, "working")
    finish(studio)
    state = get(client, "state").json
    assert (state["status"], state["error"], state["videos"]) == ("done", "", ["video-0001.mp4"])
    assert (state["phase"], state["done"], state["total"]) == ("decoding", 23, 23)
    job = Job(
        files / "two.png", files / "tone.wav", tmp_path / "same.mp4", omega_face=0.9, seed=3, face=1
    )  # fmt: skip
    generate(Source(run), job, asked["sample"], device="cpu")
    data = job.out.read_bytes()
    assert get(client, "video/1").data == data
    part = get(client, "video/1", Range="bytes=10-19")
    assert (part.status_code, part.data, part.mimetype) == (206, data[10:20], "video/mp4")
    assert [get(client, f"video/{n}").status_code for n in (0, 2)] == [404, 404]
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == ["video-0001.mp4"]
    post(client, "make", {})
    finish(studio)
    assert get(client, "state").json["videos"] == ["video-0001.mp4", "video-0002.mp4"]


def test_a_cancelled_video_goes_on_and_meanwhile_another_is_refused(
    client: FlaskClient, studio: Studio, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five windows and three steps: the seventh call waits, and the video is cancelled in it."""
    reached, go_on = threading.Event(), threading.Event()
    calls: list[int] = []
    real: Callable[..., Tensor] = TalkingWan.forward

    def forward(self: TalkingWan, *given: Any) -> Tensor:
        calls.append(len(calls))
        if len(calls) == 7:
            reached.set()
            assert go_on.wait(60)
        return real(self, *given)

    hand_over(client, files)
    asked = {"sample": {"steps": 3}}
    with monkeypatch.context() as patch:
        patch.setattr(TalkingWan, "forward", forward)
        post(client, "make", asked)
        assert reached.wait(60)
        state = get(client, "state").json
        assert (state["status"], state["phase"]) == ("working", "generating")
        assert (state["done"], state["total"]) == (6, 15)
        assert state["detail"].startswith("step 2 of 3, window 1 of 5, left 0:")
        answer = post(client, "make", asked)
        assert (answer.status_code, answer.json["error"]) == (
            409, "a video is being made: cancel it, or wait for it",
        )  # fmt: skip
        post(client, "cancel")
        go_on.set()
        finish(studio)
    assert len(calls) == 7  # the call that ran was the last
    assert get(client, "state").json["status"] == "cancelled"
    assert [path.name for path in (tmp_path / "videos").iterdir()] == [".video-0001.mp4.work"]
    seen = calls_of(monkeypatch)
    post(client, "make", asked)
    finish(studio)
    assert len(seen) == 15 - 5  # one step of five windows was kept
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["video-0001.mp4"]


def test_a_video_that_fails_says_why_and_the_next_may_succeed(
    client: FlaskClient, studio: Studio, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: object) -> Tensor:
        raise RuntimeError("CUDA out of memory.\nTried to allocate 9 GiB")

    hand_over(client, files)
    with monkeypatch.context() as patch:
        patch.setattr(TalkingWan, "forward", forward)
        post(client, "make", {})
        finish(studio)
    state = get(client, "state").json
    assert (state["status"], state["videos"]) == ("failed", [])
    assert state["error"].startswith("RuntimeError: CUDA out of memory.") and "\n" not in state["error"]
    post(client, "make", {})
    finish(studio)
    assert get(client, "state").json["status"] == "done"


@pytest.mark.parametrize(
    ("asked", "status", "error"),
    [
        ({"omega_face": 1.5}, 409, "--omega-face 1.5: expected 0 to 1"),
        ({"omega_body": -0.1}, 409, "--omega-body -0.1: expected 0 to 1"),
        ({"omega_face": float("nan")}, 400, "omega_face"),
        ({"omega_face": "0.5"}, 400, "omega_face"),
        ({"seed": -1}, 409, "--seed -1: expected 0 to 9223372036854775807"),
        ({"seed": 1.5}, 400, "seed"),
        ({"face": 2}, 409, "face 2: the portrait has 1"),
        ({"prompt": "a man"}, 409, "--prompt: has no effect, the model has no text encoder"),
        ({"out": "/etc/passwd"}, 400, "out"),
        ({"sample": {"steps": 0}}, 409, "sample.steps: "),
        ({"sample": {"audio_cfg": float("inf")}}, 409, "sample.audio_cfg: "),
        ({"sample": {"nonsense": 1}}, 409, "sample.nonsense: "),
        ({"sample": {"overlap": 9}}, 409, "overlap 9: expected at most 1 of a window's 3"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(
    client: FlaskClient, studio: Studio, files: Path, asked: dict[str, Any], status: int, error: str
) -> None:
    hand_over(client, files)
    answer = post(client, "make", asked)
    assert answer.status_code == status and answer.json["error"].startswith(error)
    assert "\n" not in answer.json["error"] and studio.state.status == "idle"


# --------------------------------------------------------------------------- the page


def test_controls_are_those_that_have_an_effect(run: Path, tmp_path: Path) -> None:
    found = {one["name"]: one for one in controls(GenerationPipeline.load(run, "cpu"))}
    assert list(found) == [
        "omega_face", "omega_body", "sample.audio_cfg", "sample.steps", "seed", "sample.solver",
        "sample.windows", "sample.cache",
    ]  # fmt: skip
    guidance = found["sample.audio_cfg"]
    assert [guidance[key] for key in ("kind", "min", "max", "step", "value")] == ["range", 0, 10, 0.1, 1.0]
    info = some_info(speech_dim=80, identity_dim=0)
    shape = SMALL["model"]["shape"] | {"num_layers": 1}
    still = a_run(tmp_path, info, adapters__motion=False, model__shape=shape)
    assert [one["name"] for one in controls(GenerationPipeline.load(still, "cpu"))] == [
        "sample.audio_cfg", "sample.steps", "seed", "sample.solver",
    ]  # fmt: skip


def test_all_controls_are_settings_that_can_be_made(client: FlaskClient, studio: Studio, files: Path) -> None:
    """What the page sends where nobody has touched anything."""
    hand_over(client, files)
    asked: dict[str, Any] = {"sample": {}}
    for one in get(client, "about").json["controls"]:
        section, _, name = one["name"].rpartition(".")
        (asked["sample"] if section else asked)[name] = one["value"]
    assert Settings.model_validate(asked).omega_face == 0.5
    assert post(client, "make", asked).status_code == 202
    finish(studio)
    assert studio.state.status == "done"


def test_only_who_knows_the_token_is_answered(client: FlaskClient) -> None:
    assert client.get("/wrong/about").status_code == 404
    assert client.get(f"/{TOKEN}/about", headers={"Host": "evil.example"}).status_code == 404
    assert client.post("/wrong/make", json={}).status_code == 404
    page = make_app(None, '</title><script>alert("x")</script>', TOKEN).test_client().get(f"/{TOKEN}/")  # type: ignore[arg-type]
    assert page.headers["Content-Security-Policy"] == POLICY
    assert page.text.count("<script") == 1 and "style=" not in page.text and "http" not in page.text
    script = get(client, "page.js").text
    assert not [word for word in ("innerHTML", "insertAdjacentHTML", "eval(", "http") if word in script]


# --------------------------------------------------------------------------- the command


def test_the_command_serves_and_its_end_keeps_what_was_begun(
    run: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of being served, the page is used until the model has been called six times."""
    seen: list[int] = []
    reached = threading.Event()
    real: Callable[..., Tensor] = TalkingWan.forward

    def forward(self: TalkingWan, *given: Any) -> Tensor:
        seen.append(1)
        if len(seen) == 6:
            reached.set()
        return real(self, *given)

    def serve(served: Server) -> None:
        app: Any = served._server.app
        client = app.test_client()
        path = served.url.split("/", 3)[3]
        for name, file in (("portrait", "one.png"), ("audio", "tone.wav")):
            assert client.post(f"/{path}{name}", data=(files / file).read_bytes()).status_code == 200
        assert client.post(f"/{path}make", json={"sample": {"steps": 100}}).status_code == 202
        assert reached.wait(60)
        served._server.server_close()

    monkeypatch.setattr(TalkingWan, "forward", forward)
    monkeypatch.setattr(Server, "run", serve)
    code, out, err = command("studio", run, "--device", "cpu", "--out", tmp_path / "videos")
    assert code == 0 and out.startswith("http://127.0.0.1:") and "Ctrl-C ends this" in err
    assert "videos are deleted at the end" not in err
    assert [path.name for path in (tmp_path / "videos").iterdir()] == [".video-0001.mp4.work"]
    assert len(seen) < 500


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere"], "nowhere: expected a run"),
        ([], "expected a RUN, or --base and --adapters"),
        (["{run}", "--out", "{files}/tone.wav"], "tone.wav: cannot be written to"),
        (["{run}", "--device", "quantum"], "--device quantum: is no torch device"),
        (["{run}", "--offload", "disk"], "--offload disk: expected none, model, group"),
    ],
)
def test_a_studio_that_cannot_be_opened_is_one_line(
    run: Path, files: Path, arguments: list[str], problem: str
) -> None:
    given = [text.format(run=run, files=files) for text in arguments]
    code, out, err = command("studio", "--quiet", *given)
    assert (code, out) == (2, "") and problem in err and len(err.splitlines()) == 1
