"""Generation of one window of video with audio."""

from __future__ import annotations

import logging
import wave
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from examples.portraits import frame
from talkforge.curation.audio.logmel import LogMelEncoder
from talkforge.schemas.errors import CommandError, MediaError, ModelError
from talkforge.training import generate
from talkforge.training.config import SampleConfig, TrainConfig
from talkforge.training.data import loader
from talkforge.training.data.batch import DatasetInfo
from talkforge.training.data.frames import Crop
from talkforge.training.generate import GenerationPipeline, cropped, preview, stereo, write
from talkforge.training.run import checkpoint
from talkforge.training.wan.codec import LinearCodec
from talkforge.training.wan.encoders import load_encoders
from talkforge.training.wan.talking_wan import TalkingWan, build
from tests.training.batches import some_info
from tests.training.runs import four_clips, small
from tests.training.shard_files import Shown, write_set

FRAMES, EDGE_PX, HZ = 9, 32, 48_000


def moved(model: TalkingWan) -> TalkingWan:
    """With no weight left at zero, so that every condition changes the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def a_codec() -> LinearCodec:
    images = torch.randint(
        0, 256, (4, FRAMES, EDGE_PX, EDGE_PX, 3), generator=torch.Generator().manual_seed(2)
    )
    return LinearCodec.fit([images.to(torch.uint8)])


def a_run(out: Path, info: DatasetInfo, **changes: Any) -> Path:
    """A run's folder with one checkpoint of a model that was never trained."""
    config = small("unused", out, **changes)
    model = moved(build(config, info))
    checkpoint.save(
        out,
        checkpoint.TrainProgress(1, 1, 0, 1, False, info),
        config,
        trained={name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        optimizer={},
        ema=None,
        codec=a_codec(),
        keep=1,
    )
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on log-mel features, without identities."""
    return a_run(tmp_path_factory.mktemp("run"), some_info(speech_dim=80, identity_dim=0))


def tone(path: Path, duration_s: float, hz: float = 440.0) -> Path:
    """A WAV file, mono, 16 kHz."""
    samples = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(duration_s * 16_000)) / 16_000)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def portrait(path: Path, size_px: int = 200) -> Path:
    cv2.imwrite(str(path), frame("hopper", size_px, size_px).picture[..., ::-1])
    return path


def shown(path: Path) -> tuple[np.ndarray, float]:
    """Pictures [F, H, W, 3] of a video, and its frame rate."""
    reader = cv2.VideoCapture(str(path))
    images = []
    while (found := reader.read())[0]:
        images.append(found[1][..., ::-1])
    return np.stack(images), float(reader.get(cv2.CAP_PROP_FPS))


# --------------------------------------------------------------------------- GenerationPipeline


def test_a_seed_is_one_video_and_every_condition_changes_it(run: Path) -> None:
    pipeline = GenerationPipeline.load(run, "cpu")
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, EDGE_PX, EDGE_PX, 3), generator=generator).to(torch.uint8)
    speech = torch.randn(1, 18, 80, generator=generator)

    def video(
        rgb: torch.Tensor = image, features: torch.Tensor = speech, omega: float = 0.5, seed: int = 0
    ) -> Any:
        batch = pipeline.batch(features, (omega, 0.5), (EDGE_PX, EDGE_PX))
        return pipeline.sample(rgb, batch, SampleConfig(steps=2, text_cfg=1, audio_cfg=1), seed)

    first = video()
    assert first.shape == (1, FRAMES, EDGE_PX, EDGE_PX, 3) and first.dtype == torch.uint8
    assert torch.equal(video(), first)
    others = (video(rgb=255 - image), video(features=-speech), video(omega=1.0), video(seed=1))
    assert all(not torch.equal(other, first) for other in others)


def test_the_average_of_the_weights_is_what_speaks(tmp_path: Path, run: Path) -> None:
    info = some_info(speech_dim=80, identity_dim=0)
    a_run(tmp_path, info)
    found = checkpoint.read(checkpoint.find(tmp_path))
    average = {name: tensor + 0.1 for name, tensor in found.trained().items()}
    checkpoint.save(
        tmp_path, found.progress, found.config, trained=found.trained(), optimizer={}, ema=average,
        codec=found.codec(), keep=1,
    )  # fmt: skip
    weights = dict(GenerationPipeline.load(tmp_path, "cpu").model.named_parameters())
    assert all(torch.equal(weights[name], tensor) for name, tensor in average.items())
    weights = dict(GenerationPipeline.load(run, "cpu").model.named_parameters())
    plain = checkpoint.read(checkpoint.find(run)).trained()
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain.items())


def test_an_identity_is_given_to_all_or_to_none(tmp_path: Path) -> None:
    pipeline = GenerationPipeline.load(a_run(tmp_path, some_info(speech_dim=80, identity_dim=8)), "cpu")
    known = np.eye(8, dtype=np.float32)[3]
    batch = pipeline.batch(
        torch.zeros(2, 18, 80), (0.2, 0.7), (EDGE_PX, EDGE_PX), identity_D=known, prompt="hello"
    )
    assert batch.identity_BD.tolist() == [known.tolist()] * 2 and batch.has_identity_B.tolist() == [
        True,
        True,
    ]
    assert batch.texts == ("hello", "hello") and batch.num_frames == FRAMES
    assert torch.equal(batch.omega_B2, torch.tensor([[0.2, 0.7]] * 2))
    unknown = pipeline.batch(torch.zeros(1, 18, 80), (0.5, 0.5), (EDGE_PX, EDGE_PX))
    assert unknown.has_identity_B.tolist() == [False] and not unknown.identity_BD.any()


def test_a_device_that_is_none_is_refused(run: Path) -> None:
    with pytest.raises(ModelError, match="--device quantum: is no torch device"):
        GenerationPipeline.load(run, "quantum")


# --------------------------------------------------------------------------- generate


def test_a_portrait_and_its_sound_become_a_video(run: Path, tmp_path: Path) -> None:
    image, audio = portrait(tmp_path / "hopper.png"), tone(tmp_path / "tone.wav", 2.0)
    generate.generate(run, image, audio, tmp_path / "out.mp4", omega_face=0.9, seed=3, device="cpu")
    images, fps = shown(tmp_path / "out.mp4")
    assert images.shape == (FRAMES, EDGE_PX, EDGE_PX, 3) and fps == 25
    written_N2 = generate.read_audio_file(tmp_path / "out.mp4", HZ, 2)
    assert abs(len(written_N2) / HZ - FRAMES / 25) < 0.03
    peak = np.argmax(np.abs(np.fft.rfft(written_N2[:12_000, 0]))) * HZ / 12_000
    assert abs(peak - 440) <= 4
    generate.generate(run, image, audio, tmp_path / "again.mp4", omega_face=0.9, seed=3, device="cpu")
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "out.mp4").read_bytes()


def test_what_is_heard_is_what_the_pipeline_would_have_stored(tmp_path: Path) -> None:
    """Of the window, by the data set's encoder. Audio that is too short is followed by silence."""
    info = some_info(speech_dim=80, identity_dim=0)
    audio_N2 = generate.read_audio_file(tone(tmp_path / "tone.wav", 0.2), HZ, 2)
    features = generate._speech(audio_N2, info, FRAMES)
    assert features.shape == (1, 18, 80) and features.dtype == torch.float32
    mono = generate.read_audio_file(tmp_path / "tone.wav")
    (stored,) = LogMelEncoder().encode([np.pad(mono, (0, 16_000))], [18])
    loudest = stored[:9].astype(np.float32) > 0.25  # a resampler's leakage is 60 dB below
    assert loudest.any(axis=1).all()
    assert np.abs(features[0, :9].numpy() - stored[:9])[loudest].max() < 0.0125
    assert (features[0, 11:] == np.float32(np.float16((np.log(1e-10) + 9) / 4))).all()


def test_the_face_is_kept_in_view(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide portrait is cropped around the face in it."""
    given: list[torch.Tensor] = []
    real = GenerationPipeline.sample

    def sample(self: GenerationPipeline, rgb_BHWC: torch.Tensor, *arguments: Any) -> torch.Tensor:
        given.append(rgb_BHWC)
        return real(self, rgb_BHWC, *arguments)

    monkeypatch.setattr(GenerationPipeline, "sample", sample)
    head = frame("hopper", 240, 240).picture
    wide = np.concatenate([np.full((240, 240, 3), 90, np.uint8), head], axis=1)
    cv2.imwrite(str(tmp_path / "wide.png"), wide[..., ::-1])
    generate.generate(
        run, tmp_path / "wide.png", tone(tmp_path / "a.wav", 0.5), tmp_path / "o.mp4", device="cpu"
    )
    expected = cv2.resize(head, (EDGE_PX, EDGE_PX), interpolation=cv2.INTER_AREA).astype(float)
    assert given[0].shape == (1, EDGE_PX, EDGE_PX, 3)
    assert np.abs(given[0][0].numpy() - expected).mean() < 12


def test_a_picture_without_a_face_is_said_to_be_one(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((64, 96, 3), 128, np.uint8))
    with caplog.at_level(logging.WARNING, "talkforge.training.generate"):
        generate.generate(
            run, tmp_path / "grey.png", tone(tmp_path / "a.wav", 0.5), tmp_path / "o.mp4", device="cpu"
        )
    assert "grey.png: no face was found in it" in caplog.text and (tmp_path / "o.mp4").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"omega_face": 1.5}, CommandError, r"^--omega-face 1.5: expected 0 to 1$"),
        ({"omega_body": -0.1}, CommandError, r"^--omega-body -0.1: expected 0 to 1$"),
        ({"out": "video.avi"}, CommandError, r"video\.avi: expected a \.mp4 file in a folder that is there$"),
        (
            {"out": "none/o.mp4"},
            CommandError,
            r"none/o\.mp4: expected a \.mp4 file in a folder that is there$",
        ),
        ({"image": "none.png"}, CommandError, r"none\.png: cannot be read \(No such file"),
        ({"image": "a.wav"}, CommandError, r"a\.wav: expected an image, found something else$"),
        ({"image": "empty.png"}, CommandError, r"empty\.png: expected an image, found something else$"),
        ({"audio": "hopper.png"}, MediaError, r"hopper\.png"),
        ({"run": "nowhere"}, CommandError, r"nowhere: expected a run or a checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused(
    run: Path, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    portrait(tmp_path / "hopper.png")
    tone(tmp_path / "a.wav", 0.5)
    (tmp_path / "empty.png").write_bytes(b"")
    paths = {
        "run": run,
        "image": tmp_path / "hopper.png",
        "audio": tmp_path / "a.wav",
        "out": tmp_path / "o.mp4",
    }
    paths |= {name: tmp_path / value for name, value in changes.items() if isinstance(value, str)}
    omegas = {name: value for name, value in changes.items() if not isinstance(value, str)}
    with pytest.raises(kind, match=message):
        generate.generate(**paths, **omegas, device="cpu")
    assert not (tmp_path / "o.mp4").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speech_model": ""}, "does not say which speech encoder"),
        ({"speech_dim": 12}, "^speech encoder logmel-80: expected width 12, found 80$"),
    ],
)
def test_other_speech_features_are_refused(changes: dict[str, Any], message: str) -> None:
    info = DatasetInfo(**{**vars(some_info(speech_dim=80)), **changes})
    with pytest.raises(ModelError, match=message):
        generate._speech(np.zeros((100, 2), np.float32), info, FRAMES)


# --------------------------------------------------------------------------- preview


def previewed(shards: str, out: Path, **changes: Any) -> tuple[list[Path], TalkingWan, TrainConfig]:
    config = small(shards, out, **changes)
    info = loader.probe(shards)
    model = build(config, info).train()
    encoders = load_encoders(config, model.transformer.config.text_dim, torch.device("cpu"))
    return preview(model, encoders, config, info, out / "samples"), model, config


def test_a_preview_shows_what_was_generated_beside_the_truth(tmp_path: Path) -> None:
    shards = four_clips(tmp_path / "set")
    before = torch.get_rng_state()
    written, model, _ = previewed(shards, tmp_path, run__validation_samples=3)
    assert [path.name for path in written] == ["clip01.mp4", "clip02.mp4", "clip03.mp4"]
    assert model.training and torch.equal(torch.get_rng_state(), before)
    images, fps = shown(written[1])
    assert images.shape == (FRAMES, EDGE_PX, 2 * EDGE_PX, 3) and fps == 25
    # Clip 2 of the made set: in frame k red is 24 + 7 k, and blue 48.
    truth = images[:, 8:24, EDGE_PX + 8 : 2 * EDGE_PX - 8].mean(axis=(1, 2))
    assert np.abs(truth[:, 0] - (24 + 7 * np.arange(FRAMES))).max() < 6
    assert np.abs(truth[:, 2] - 48).max() < 6
    assert len(generate.read_audio_file(written[1], HZ, 2)) > 0


def test_held_out_samples_come_first_and_unfit_ones_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = four_clips(tmp_path / "set")
    held_out = write_set(tmp_path / "other", [[Shown(5, num_frames=5), Shown(6)]])
    with caplog.at_level(logging.WARNING, "talkforge.training.generate"):
        written, _, _ = previewed(
            shards, tmp_path, run__validation_samples=4, data__validation_shards=held_out
        )
    assert [path.name for path in written] == ["clip06.mp4"]
    assert "no validation sample: clip05: expected 9 frames, found 5" in caplog.text


# --------------------------------------------------------------------------- frames and audio


def test_a_picture_is_scaled_and_cut() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 200
    left = cropped(image, Crop.around((40, 80), (16, 16), (20.0, 0.0)))
    right = cropped(image, Crop.around((40, 80), (16, 16), (20.0, 79.0)))
    assert left.shape == right.shape == (16, 16, 3)
    assert not left.any() and (right == 200).all()
    assert cropped(image[:8, :8], Crop.around((8, 8), (16, 16), (4.0, 4.0))).shape == (16, 16, 3)


def test_sound_is_as_long_as_the_pictures(tmp_path: Path) -> None:
    images = np.full((10, 32, 32, 3), 120, np.uint8)
    ringing = np.full((HZ * 2, 2), 0.5, np.float32) * np.sin(np.arange(HZ * 2) / 10)[:, None].astype(
        np.float32
    )
    for name, audio_N2 in (("long", ringing), ("short", ringing[: HZ // 10])):
        write(tmp_path / f"{name}.mp4", images, 25.0, audio_N2)
    long, short = (generate.read_audio_file(tmp_path / f"{name}.mp4", HZ, 2) for name in ("long", "short"))
    assert abs(len(long) - HZ * 0.4) < 1100 and abs(len(short) - HZ * 0.4) < 1100
    assert np.abs(short[HZ // 10 + 2400 :]).max() < 0.01 < 0.3 < np.abs(long[HZ // 10 + 2400 : HZ // 3]).max()


def test_speech_of_a_shard_is_raised_to_the_rate_of_a_clip() -> None:
    slow = np.sin(2 * np.pi * 300 * np.arange(1600) / 16_000).astype(np.float32)
    audio_N2 = stereo(slow)
    assert audio_N2.shape == (4800, 2) and np.array_equal(audio_N2[:, 0], audio_N2[:, 1])
    expected = np.sin(2 * np.pi * 300 * np.arange(4800) / 48_000)
    assert np.abs(audio_N2[200:-200, 0] - expected[200:-200]).max() < 0.01
