"""Whole jobs: portrait and audio in, video out, also after interruptions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from talkforge.cli import main
from talkforge.curation.face import identity
from talkforge.curation.media.audio import read_audio_file
from talkforge.schemas.errors import CommandError
from talkforge.schemas.progress import Progress
from talkforge.training.config import SampleConfig
from talkforge.training.data.batch import Conditions
from talkforge.training.generate import job as jobs
from talkforge.training.generate.job import Job, generate, write
from talkforge.training.generate.pipeline import GenerationPipeline, Source
from talkforge.training.generate.savings import Savings
from talkforge.training.wan.talking_wan import TalkingWan
from tests.conftest import ROOT
from tests.training.batches import some_info
from tests.training.speakers import EDGE_PX, HZ, a_run, portrait, shown, tone


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on log-mel features, without identities. Its windows have 9 frames, of which 5 may be given."""
    return a_run(
        tmp_path_factory.mktemp("run"),
        some_info(speech_dim=80, identity_dim=0),
        data__prefix_frames=5,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portrait, and a tone of 0.9 s: 23 frames, 7 latent frames, 5 windows of 3."""
    folder = tmp_path_factory.mktemp("files")
    whole = portrait(folder / "hopper.png").read_bytes()
    sound = tone(folder / "tone.wav", 0.9).read_bytes()
    broken = {"cut.png": whole[: len(whole) // 2], "header.wav": sound[:44]}
    for name, data in ({"empty.png": b"", "empty.wav": b""} | broken).items():
        (folder / name).write_bytes(data)
    return folder


def a_job(files: Path, out: Path, **values: Any) -> Job:
    return Job(files / "hopper.png", files / "tone.wav", out, **values)


@pytest.mark.parametrize("windows", ("overlap", "continue"))
def test_a_video_is_as_long_as_its_audio(run: Path, files: Path, tmp_path: Path, windows: str) -> None:
    told: list[Progress] = []
    job = a_job(files, tmp_path / "out.mp4", omega_face=0.9, seed=3)
    generate(Source(run), job, {"windows": windows}, device="cpu", show=told.append)
    images, fps = shown(job.out)
    assert images.shape == (23, EDGE_PX, EDGE_PX, 3) and fps == 25
    written_N2 = read_audio_file(job.out, HZ, 2)
    assert abs(len(written_N2) / HZ - 23 / 25) < 0.03
    peak = np.argmax(np.abs(np.fft.rfft(written_N2[:12_000, 0]))) * HZ / 12_000
    assert abs(peak - 440) <= 4
    assert list(tmp_path.iterdir()) == [job.out]
    steps = [one for one in told if one.phase == "generating"]
    assert [(one.done, one.total) for one in steps] == [(k, 5) for k in range(1, 6)]
    assert steps[0].detail.startswith("step 1 of 1, window 1 of 5, left 0:00:0")
    assert [one.detail for one in told if one.phase == "decoding"][-1] == "23 of 23 frames"
    again = a_job(files, tmp_path / "again.mp4", omega_face=0.9, seed=3)
    generate(Source(run), again, {"windows": windows}, device="cpu")
    assert again.out.read_bytes() == job.out.read_bytes()


def calls_of(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[Conditions]:
    """The conditions of every call of the model, which is interrupted in the given one."""
    seen: list[Conditions] = []
    real: Callable[..., Tensor] = TalkingWan.forward

    def forward(self: TalkingWan, x: Tensor, timestep: Tensor, conditions: Conditions) -> Tensor:
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        seen.append(conditions)
        return real(self, x, timestep, conditions)

    monkeypatch.setattr(TalkingWan, "forward", forward)
    return seen


@pytest.mark.parametrize(
    ("windows", "stop_at", "left", "solver"),
    (("overlap", 8, 20 - 5, "dpm++2m"), ("continue", 6, 20 - 6, "euler")),
)
def test_an_interrupted_job_goes_on(
    run: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: str, stop_at: int,
    left: int, solver: str,
) -> None:  # fmt: skip
    changes = {"windows": windows, "steps": 4, "solver": solver}
    whole = a_job(files, tmp_path / "whole.mp4")
    generate(Source(run), whole, changes, device="cpu")
    job = a_job(files, tmp_path / "out.mp4")
    with monkeypatch.context() as patch:
        calls_of(patch, stop_at)
        with pytest.raises(KeyboardInterrupt):
            generate(Source(run), job, changes, device="cpu")
    assert not job.out.exists() and (tmp_path / ".out.mp4.work").is_dir()
    kept = shutil.copytree(tmp_path / ".out.mp4.work", tmp_path / "kept")
    with monkeypatch.context() as patch:
        seen = calls_of(patch)
        generate(Source(run), job, changes, device="cpu")
        assert len(seen) == left
    assert job.out.read_bytes() == whole.out.read_bytes()
    assert sorted(path.name for path in tmp_path.glob(".*")) == []
    # Another job under the same name begins anew, and so does one whose state is damaged.
    for damage in ({}, {"seed": 1}):
        shutil.copytree(kept, tmp_path / ".out.mp4.work")
        if not damage:
            (tmp_path / ".out.mp4.work" / "latents.safetensors").write_bytes(b"\0" * 9)
        with monkeypatch.context() as patch:
            seen = calls_of(patch)
            generate(Source(run), a_job(files, job.out, **damage), changes, device="cpu")
            assert len(seen) == 20


def test_a_job_that_is_killed_has_kept_its_state(
    run: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of every step is written while the job runs, where the interval is zero."""
    monkeypatch.setattr(jobs, "SAVE_EVERY_S", 0.0)
    steps: list[int] = []

    def save(self: jobs.WorkFolder) -> None:
        real(self)
        if (self.folder / "job.json").exists():
            steps.append(json.loads((self.folder / "job.json").read_text())["step"])

    real: Callable[[jobs.WorkFolder], None] = jobs.WorkFolder.save
    monkeypatch.setattr(jobs.WorkFolder, "save", save)
    generate(Source(run), a_job(files, tmp_path / "out.mp4"), {"steps": 3}, device="cpu")
    assert steps[:3] == [1, 2, 3]


def test_a_job_whose_state_cannot_be_kept_goes_on(
    run: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(jobs, "write_tensors", full)
    generate(Source(run), a_job(files, tmp_path / "out.mp4"), {"steps": 2}, device="cpu")
    assert "the job's state cannot be kept (No space left on device)" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_other_weights_are_another_video(run: Path, files: Path, tmp_path: Path) -> None:
    """A job does not go on with them. What leaves the video as it is does not count."""
    job, lora = a_job(files, tmp_path / "out.mp4"), tmp_path / "a.safetensors"
    lora.write_bytes(b"1")

    def of(**saving: Any) -> dict[str, Any]:
        return jobs.fingerprint(Source(run), job, SampleConfig(), Savings(**saving))

    plain = of()
    assert plain == jobs.fingerprint(Source(run), job, SampleConfig())
    assert set(plain["job"]) == {
        "prompt",
        "omega_face",
        "omega_body",
        "seed",
        "face",
    }  # as before there were savings
    assert of(offload="group") == plain
    others = [of(lora=(lora,)), of(dtype="bfloat16"), of(fp8=True), of(vae_tiling=True)]
    lora.write_bytes(b"22")
    others.append(of(lora=(lora,)))
    assert all(one not in (plain, *others[:k]) for k, one in enumerate(others))


class Unit:
    """An embedder of faces by one corner of the crop, whose vectors are told to the test."""

    name, dim, sha256 = "mobilefacenet", 8, ""

    def embed(self, crops: np.ndarray) -> np.ndarray:
        self.crops = crops
        return np.eye(8, dtype=np.float32)[[int(crops[0, 56, 56].sum()) % 8]]


def test_the_identity_of_the_portrait_reaches_the_model(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = a_run(tmp_path / "run", some_info(speech_dim=80, identity_dim=8))
    unit = Unit()
    monkeypatch.setattr(identity, "load_embedder", lambda _: unit)
    seen = calls_of(monkeypatch)
    job = a_job(files, tmp_path / "out.mp4")
    generate(Source(known), job, device="cpu")
    assert unit.crops.shape == (1, 112, 112, 3)
    expected = Unit().embed(unit.crops)
    assert all(np.array_equal(one.identity_BD, expected) for one in seen if one.identity_BD is not None)
    assert [one.face_scale_B.tolist() for one in seen] == [[0.5]] * len(seen)
    # Another identity gives another video.
    monkeypatch.setattr(Unit, "embed", lambda *_: np.roll(expected, 1, axis=1))
    other = a_job(files, tmp_path / "other.mp4")
    generate(Source(known), other, device="cpu")
    assert np.abs(shown(other.out)[0].astype(int) - shown(job.out)[0]).mean() > 0.5


def test_a_face_that_is_not_there_is_refused(run: Path, files: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"^--face 2: .*hopper\.png has 1 face: 1 middle \(x "):
        generate(Source(run), a_job(files, tmp_path / "out.mp4", face=2), device="cpu")


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        ({"omega_face": 1.5}, {}, r"^--omega-face 1.5: expected 0 to 1$"),
        ({"omega_body": -0.1}, {}, r"^--omega-body -0.1: expected 0 to 1$"),
        ({"omega_face": float("nan")}, {}, r"^--omega-face nan: expected 0 to 1$"),
        ({"out": Path("video.avi")}, {}, r"video\.avi: expected a \.mp4 file in a folder that is there$"),
        ({"out": Path("none/o.mp4")}, {}, r"none/o\.mp4: expected a \.mp4 file in a folder that is there$"),
        ({"prompt": "a man"}, {}, r"^--prompt: has no effect, the model has no text encoder$"),
        ({"seed": 2**63}, {}, r"^--seed 9223372036854775808: expected 0 to 9223372036854775807$"),
        ({}, {"steps": 0}, r"^sample\.steps: Input should be greater than or equal to 1$"),
        ({}, {"steps": 10**12}, r"^sample\.steps: Input should be less than or equal to 10000$"),
        ({}, {"audio_cfg": float("inf")}, r"^sample\.audio_cfg: Input should be a finite number$"),
        ({}, {"solver": "rk4"}, r"^sample\.solver: Input should be 'euler' or 'dpm\+\+2m'$"),
        ({}, {"text_cfg": 3.0}, r"^--text-cfg: has no effect, the model has no text encoder$"),
        ({}, {"negative_prompt": "x"}, r"^--negative-prompt: has no effect, the model has no text encoder$"),
        (
            {},
            {"windows": "continue", "overlap": 1},
            r"^--overlap: has no effect with windows that continue$",
        ),
        ({}, {"overlap": 9}, r"^overlap 9: expected at most 1 of a window's 3$"),
    ],
)
def test_what_does_not_fit_is_refused(
    run: Path, files: Path, tmp_path: Path, values: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    values = {name: tmp_path / v if isinstance(v, Path) else v for name, v in values.items()}
    job = Job(
        **{"image": files / "hopper.png", "audio": files / "tone.wav", "out": tmp_path / "o.mp4"} | values
    )
    with pytest.raises(CommandError, match=message) as caught:
        generate(Source(run), job, changes, device="cpu")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_motion_branch_is_not_told_of_motion(files: Path, tmp_path: Path) -> None:
    info = some_info(speech_dim=80, identity_dim=0)
    still = a_run(tmp_path / "run", info, adapters__motion=False)
    job = a_job(files, tmp_path / "o.mp4", omega_body=0.7)
    with pytest.raises(
        CommandError, match=r"^--omega-body 0.7: has no effect, the model has no motion branch"
    ):
        generate(Source(still), job, device="cpu")


def test_a_model_that_was_not_trained_to_continue_does_not(files: Path, tmp_path: Path) -> None:
    plain = a_run(tmp_path / "run", some_info(speech_dim=80, identity_dim=0))
    with pytest.raises(
        CommandError, match=r"^windows=continue: the model was trained without data.prefix_frames"
    ):
        generate(Source(plain), a_job(files, tmp_path / "o.mp4"), {"windows": "continue"}, device="cpu")


def test_windows_take_no_more_memory_in_a_longer_video(run: Path) -> None:
    """What the model is given does not grow with the video."""
    pipeline = GenerationPipeline.load(run, "cpu")
    shapes = []
    for num_frames in (101, 1001):
        speaker = jobs.Speaker(
            rgb_HWC=torch.zeros(EDGE_PX, EDGE_PX, 3, dtype=torch.uint8),
            speech_LD=torch.zeros(2 * num_frames, 80),
            num_frames=num_frames,
            identity_D=None,
            omega=(0.5, 0.5),
            prompt="",
            seed=0,
        )
        video = pipeline.long_video(speaker, SampleConfig(audio_cfg=1))
        (found,) = video.passes(video.windows[20], None)
        shapes.append(
            [tuple(value.shape) for value in vars(found.conditions).values() if hasattr(value, "shape")]
        )
    assert shapes[0] == shapes[1]


# --------------------------------------------------------------------------- the command


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["generate", *map(str, arguments), "--device", "cpu", "--quiet"])
    return int(ended.value.code or 0)


def test_the_command_makes_a_video(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    asked = (run, "--image", files / "hopper.png", "--audio", files / "tone.wav", "-o", out)
    assert command(*asked, "--steps", 2, "--solver", "dpm++2m", "--windows", "overlap", "--overlap", 0) == 0
    assert capsys.readouterr() == (f"{out}\n", "")
    assert len(shown(out)[0]) == 23


def test_an_interrupted_command_is_130_and_goes_on(
    run: Path,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.mp4"
    asked = (run, "--image", files / "hopper.png", "--audio", files / "tone.wav", "-o", out, "--steps", 3)
    with monkeypatch.context() as patch:
        calls_of(patch, 7)
        assert command(*asked) == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err
    seen = calls_of(monkeypatch)
    assert command(*asked) == 0
    assert len(seen) == 15 - 5 and len(shown(out)[0]) == 23


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (
            ["{run}", "--image", "{files}/tone.wav", "--audio", "{files}/tone.wav"],
            "tone.wav: expected an image",
        ),
        (
            ["{run}", "--image", "{files}/hopper.png", "--audio", "{files}/hopper.png"],
            "hopper.png: expected audio",
        ),
        (
            ["nowhere", "--image", "{files}/hopper.png", "--audio", "{files}/tone.wav"],
            "nowhere: expected a run",
        ),
        (["--image", "{files}/hopper.png", "--audio", "{files}/tone.wav"], "expected a RUN, or --base and"),
        (
            ["{run}", "--fps", "30", "--image", "{files}/hopper.png", "--audio", "{files}/tone.wav"],
            "--fps: is for published weights, a RUN knows its own",
        ),
        (
            ["{run}", "--device", "quantum", "--image", "{files}/hopper.png", "--audio", "{files}/tone.wav"],
            "--device quantum: is no torch device",
        ),
        (["{run}", "--image", "{files}/empty.png", "--audio", "{files}/tone.wav"], "found an empty file"),
        (
            ["{run}", "--image", "{files}/cut.png", "--audio", "{files}/tone.wav"],
            "found image file is trunc",
        ),
        (["{run}", "--image", "{files}/hopper.png", "--audio", "{files}/empty.wav"], "found an empty file"),
        (
            ["{run}", "--image", "{files}/hopper.png", "--audio", "{files}/header.wav"],
            "expected audio, found no",
        ),
        (
            ["{run}", "--workers", "3", "--image", "{files}/hopper.png", "--audio", "{files}/tone.wav"],
            "--executor, --address, --workers: go with --batch",
        ),
        (
            ["{run}", "--overlap", "9", "--image", "{files}/hopper.png", "--audio", "{files}/tone.wav"],
            "overlap 9: expected at most 1 of a window's 3",
        ),
        (
            ["{run}", "--omega-face", "2", "--image", "{files}/hopper.png", "--audio", "{files}/tone.wav"],
            "--omega-face 2: expected 0 to 1",
        ),
        (
            [
                *("--base", "nowhere", "--adapters", "{files}/no.ckpt"),
                *("--image", "{files}/hopper.png", "--audio", "{files}/tone.wav"),
            ],
            "no.ckpt: no such file",
        ),
    ),
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Path,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    given = [text.format(run=run, files=files) for text in arguments]
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--device", "cpu", "-q", "-o", str(tmp_path / "o.mp4"), *given])
    found = capsys.readouterr()
    assert (ended.value.code, found.out, found.err.count("\n")) == (2, "", 1)
    assert message in found.err and not (tmp_path / "o.mp4").exists()


def test_a_bad_command_says_one_line_and_libraries_none(files: Path, tmp_path: Path) -> None:
    """In a process of its own, where libraries are imported anew and may warn."""
    asked = [
        "generate",
        "-q",
        "nowhere",
        "--image",
        str(files / "hopper.png"),
        "--audio",
        str(files / "tone.wav"),
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "talkforge", *asked, "-o", str(tmp_path / "o.mp4")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "talkforge: nowhere: expected a run or a checkpoint, found no checkpoints/step-*\n"


# --------------------------------------------------------------------------- audio of the video


def test_audio_is_as_long_as_the_frames(tmp_path: Path) -> None:
    images = np.full((10, 32, 32, 3), 120, np.uint8)
    ringing = np.full((HZ * 2, 2), 0.5, np.float32) * np.sin(np.arange(HZ * 2) / 10)[:, None].astype(
        np.float32
    )
    for name, audio_N2 in (("long", ringing), ("short", ringing[: HZ // 10])):
        write(tmp_path / f"{name}.mp4", iter(images), 25.0, audio_N2, 10)
    long, short = (read_audio_file(tmp_path / f"{name}.mp4", HZ, 2) for name in ("long", "short"))
    assert abs(len(long) - HZ * 0.4) < 1100 and abs(len(short) - HZ * 0.4) < 1100
    assert np.abs(short[HZ // 10 + 2400 :]).max() < 0.01 < 0.3 < np.abs(long[HZ // 10 + 2400 : HZ // 3]).max()
