"""Generation of one window of video from a portrait, audio and motion intensities.

`generate` reads a portrait, audio and a run. `preview` makes validation samples while a run is training.
Suffixes as in `training.data.batch`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Generator, Tensor

from talkforge.curation.audio import speech_encoders
from talkforge.curation.face import detect, identity
from talkforge.curation.face.landmarks import FaceLandmarker
from talkforge.curation.media.audio import read_audio_file
from talkforge.curation.media.encode import CLIP_AUDIO_HZ, decode_flac, encode_mp4
from talkforge.curation.weights import registry
from talkforge.curation.weights.torch import torch_device
from talkforge.schemas.arrays import Bytes, Floats
from talkforge.schemas.config import IdentityConfig, ScanConfig, SpeechConfig
from talkforge.schemas.errors import CommandError, ModelError, one_line
from talkforge.schemas.units import AUDIO_HZ, features_from_frames, samples_from_frames
from talkforge.training.config import SampleConfig, TrainConfig
from talkforge.training.data.batch import Batch, DatasetInfo
from talkforge.training.data.frames import Crop, SkippedSampleError, nearest
from talkforge.training.data.loader import collate
from talkforge.training.data.shards import motion_quantiles, shard_list
from talkforge.training.data.spans import MEMBERS, decode_sample
from talkforge.training.data.tar import beside, read_samples
from talkforge.training.objective import sampling
from talkforge.training.objective.step import encode_image
from talkforge.training.run import checkpoint
from talkforge.training.wan.encoders import Encoders, load_encoders
from talkforge.training.wan.talking_wan import TalkingWan, build

log = logging.getLogger(__name__)

FACE_MARGIN = 0.6
"""Margin around a detected face for the landmarker, on each side, in face sizes."""

CRF, PRESET = 18, "veryfast"


class GenerationPipeline:
    """A trained model with its encoders.

    Attributes:
        model: the transformer with its adapters.
        encoders: of frames, prompts and reference images.
        config: of its run.
        info: of the data set it was trained on.
    """

    def __init__(self, model: TalkingWan, encoders: Encoders, config: TrainConfig, info: DatasetInfo) -> None:
        self.model, self.encoders = model, encoders
        self.config, self.info = config, info

    @classmethod
    def load(cls, run: Path, device: str = "auto") -> GenerationPipeline:
        """The pipeline of a run, with the EMA weights where the checkpoint has them.

        Args:
            run: a run's folder, of which the last checkpoint is used, or a checkpoint's folder.
            device: 'auto', 'cpu' or a torch device.

        Raises:
            CommandError: there is no checkpoint.
            ModelError: weights are missing or damaged, or there is no such device.
        """
        found = checkpoint.read(checkpoint.find(run))
        config, info = found.config, found.progress.info
        where = torch_device(device, "--device")
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        model = build(config, info, dtype=dtype)
        checkpoint.load_trained(model, found.best(), str(found.folder))
        encoders = load_encoders(config, model.transformer.config.text_dim, where)
        codec = found.codec()
        if codec is not None:
            encoders = Encoders(codec.to(where), encoders.text, encoders.image)
        return cls(model.to(where).eval(), encoders, config, info)

    def sample(self, rgb_BHWC: Tensor, batch: Batch, settings: SampleConfig, seed: int) -> Tensor:
        """Videos, uint8 [B, F, H, W, 3].

        Args:
            rgb_BHWC: reference images, uint8 [B, H, W, 3], at a size of the run.
            batch: speech, identity and motion intensities. Its frames are not used.
            settings: Euler steps and guidance weights.
            seed: of the noise.
        """
        config, device = self.config, next(self.model.parameters()).device
        batch = batch.to(device)
        encoded = encode_image(rgb_BHWC.to(device), batch.num_frames, batch.texts, self.encoders)
        latents = sampling.sample(
            self.model,
            batch,
            encoded,
            config.adapters,
            config.run.stage,
            settings,
            config.flow.shift,
            Generator().manual_seed(seed),
        )
        return self.encoders.codec.decode(latents).cpu()

    def batch(
        self,
        speech_BLD: Tensor,
        omega: tuple[float, float],
        size_HW: tuple[int, int],
        *,
        identity_D: Floats | None = None,
        prompt: str = "",
        num_frames: int | None = None,
    ) -> Batch:
        """Conditions for generation, as a batch without frames.

        Args:
            speech_BLD: speech features of the span.
            omega: motion intensity of face and body, 0..1.
            size_HW: height and width of the video, px.
            identity_D: identity embedding of unit length. None means no face attention.
            prompt: prompt of every sample.
            num_frames: frames of the span. None means those of the run.
        """
        count, frames = len(speech_BLD), num_frames or self.config.data.num_frames
        identity_BD = torch.zeros(count, self.info.identity_dim)
        if identity_D is not None and self.info.identity_dim:
            identity_BD[:] = torch.from_numpy(identity_D)
        return Batch(
            keys=tuple(f"generated+{k}" for k in range(count)),
            fps=self.info.fps,
            rgb_BFHWC=None,
            lips_BFHW=torch.zeros(count, frames, *size_HW, dtype=torch.uint8),
            lip_valid_BF=torch.zeros(count, frames, dtype=torch.bool),
            speech_BLD=speech_BLD,
            identity_BD=identity_BD,
            has_identity_B=torch.full((count,), identity_D is not None and self.info.identity_dim > 0),
            omega_B2=torch.tensor([omega] * count, dtype=torch.float32),
            texts=(prompt,) * count,
        )


def generate(
    run: Path,
    image: Path,
    audio: Path,
    out: Path,
    *,
    prompt: str = "",
    omega_face: float = 0.5,
    omega_body: float = 0.5,
    seed: int = 0,
    changes: Mapping[str, float] | None = None,
    device: str = "auto",
) -> None:
    """Write an MP4 of a portrait that speaks, one window long, with its audio.

    A window has the run's `data.num_frames`. Longer audio is cut, shorter audio is continued in silence.

    Args:
        run: a run's folder, or a checkpoint's.
        image: file of the portrait.
        audio: any audio or video file with speech.
        out: MP4 file to write.
        prompt: prompt, where the model has a text encoder.
        omega_face: motion intensity of the face, 0..1. 0.5 is the data set's median.
        omega_body: motion intensity of the body, likewise.
        seed: of the noise.
        changes: other values of the run's Euler steps and guidance (`sample` of its configuration), by name.
        device: 'auto', 'cpu' or a torch device.

    Raises:
        CommandError: an option does not fit, or the image cannot be read.
        MediaError: the audio cannot be read.
        ModelError: weights are missing or damaged.
    """
    for name, omega in (("omega-face", omega_face), ("omega-body", omega_body)):
        if not 0 <= omega <= 1:
            raise CommandError(f"--{name} {omega:g}: expected 0 to 1")
    if out.suffix.lower() != ".mp4" or not out.parent.is_dir():
        raise CommandError(f"--out {out}: expected a .mp4 file in a folder that is there")
    portrait = _read_image(image)
    audio_N2 = read_audio_file(audio, CLIP_AUDIO_HZ, 2)
    pipeline = GenerationPipeline.load(run, device)
    config, info = pipeline.config, pipeline.info
    points = _face_points(portrait)
    if points is None:
        log.warning("%s: no face was found in it, so its middle is taken", image)
    size = nearest(config.data.sizes, portrait.shape[:2])
    middle = (portrait.shape[0] / 2, portrait.shape[1] / 2)
    if points is not None:
        x, y = np.median(points[:, :2], axis=0)
        middle = (float(y), float(x))
    batch = pipeline.batch(
        _speech(audio_N2, info, config.data.num_frames),
        (omega_face, omega_body),
        size,
        identity_D=_identity(portrait, points, info) if points is not None else None,
        prompt=prompt,
    )
    reference = torch.from_numpy(cropped(portrait, Crop.around(portrait.shape[:2], size, middle)))
    video = pipeline.sample(
        reference[None], batch, config.sample.model_copy(update=dict(changes or {})), seed
    )[0]
    write(out, video.numpy(), info.fps, audio_N2)


def preview(
    model: TalkingWan, encoders: Encoders, config: TrainConfig, info: DatasetInfo, folder: Path
) -> list[Path]:
    """Write a video with audio for each of the first validation samples, and the true one to its right.

    The validation shards are read, or the training shards where there are none. Samples that cannot be used
    are skipped. Model and random state are left as they were.

    Args:
        model: the model that is being trained.
        encoders: of frames, prompts and reference images.
        config: of the run.
        info: of the data set.
        folder: where the videos are written.

    Returns:
        The files.
    """
    shards = config.data.validation_shards or config.data.shards
    training = model.training
    pipeline = GenerationPipeline(model.eval(), encoders, config, info)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        listed = shard_list(shards, config.data.snapshot)
        quantiles = motion_quantiles(listed, config.data.snapshot) if config.data.omega == "span" else {}
        for url, key, members in _samples(url for url, _ in listed):
            if len(written) == config.run.validation_samples:
                break
            try:
                clip = decode_sample(
                    key, members, config.data.sizes, config.data.lengths, info,
                    quantiles=quantiles.get(beside(url, "")),
                )  # fmt: skip
                batch = collate([clip.span(0)], info)
            except SkippedSampleError as error:
                log.warning("no validation sample: %s", error)
                continue
            assert batch.rgb_BFHWC is not None
            video = pipeline.sample(batch.rgb_BFHWC[:, 0], batch, config.sample, config.run.seed)[0]
            both = np.concatenate([video.numpy(), batch.rgb_BFHWC[0].numpy()], axis=2)
            write(folder / f"{key}.mp4", both, info.fps, stereo(decode_flac(members["flac"])))
            written.append(folder / f"{key}.mp4")
    finally:
        model.train(training)
    return written


def _samples(urls: Iterable[str]) -> Iterable[tuple[str, str, dict[str, bytes]]]:
    """Shard, key and members of every sample."""
    for url in urls:
        for key, members in read_samples(url, MEMBERS | {"flac"}):
            yield url, key, members


def write(out: Path, rgb_FHWC: Bytes, fps: float, audio_N2: Floats) -> None:
    """Write an MP4. Its audio is cut to the length of the video, or continued in silence.

    Args:
        out: file to write.
        rgb_FHWC: frames, uint8 [F, H, W, 3].
        fps: frames per second.
        audio_N2: 48 kHz stereo, -1..1.
    """
    count = round(len(rgb_FHWC) / fps * CLIP_AUDIO_HZ)
    padded_N2 = np.zeros((count, 2), np.float32)
    padded_N2[: len(audio_N2)] = audio_N2[:count]
    encode_mp4(out, iter(rgb_FHWC), fps, padded_N2, CRF, PRESET)


def stereo(samples: Floats) -> Floats:
    """16 kHz mono [N] as 48 kHz stereo [3 N, 2]."""
    mono = resample_poly(samples, CLIP_AUDIO_HZ // AUDIO_HZ, 1).astype(np.float32)
    return np.repeat(mono[:, None], 2, axis=1)


def cropped(image: Bytes, crop: Crop) -> Bytes:
    """An image scaled and cropped, uint8 [H, W, 3]."""
    height_px, width_px = crop.scaled
    shrinking = height_px < image.shape[0]
    flags = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    scaled = cv2.resize(image, (width_px, height_px), interpolation=flags)
    return np.ascontiguousarray(crop.of(scaled))


def _read_image(path: Path) -> Bytes:
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise CommandError(f"--image {path}: cannot be read ({one_line(error)})") from None
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if bgr is None:
        raise CommandError(f"--image {path}: expected an image, found something else")
    return np.asarray(bgr[..., ::-1], np.uint8)


def _face_points(image: Bytes) -> Floats | None:
    """Landmarks [478, 3] of the largest face in pixels of the image, or None where there is no face."""
    boxes, _ = detect.load_detector(ScanConfig()).detect(image)
    if not len(boxes):
        return None
    x0, y0, x1, y1 = max(boxes.tolist(), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    margin = FACE_MARGIN * max(x1 - x0, y1 - y0)
    left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
    part = image[top : int(y1 + margin) + 1, left : int(x1 + margin) + 1]
    found = FaceLandmarker(registry.weights("face_landmarker")).detect(part)
    return None if found is None else found.points + np.array([left, top, 0], np.float32)


def _speech(audio_N2: Floats, info: DatasetInfo, num_frames: int) -> Tensor:
    """Speech features [1, L, D] of the window, by the encoder of the data set."""
    if not info.speech_model:
        raise ModelError("the checkpoint does not say which speech encoder its data set used")
    mono = resample_poly(audio_N2.mean(axis=1), 1, CLIP_AUDIO_HZ // AUDIO_HZ).astype(np.float32)
    samples = np.zeros(samples_from_frames(num_frames, info.fps), np.float32)
    samples[: len(mono)] = mono[: len(samples)]
    encoder = speech_encoders.load_speech_encoder(SpeechConfig(embedding=info.speech_model))
    (features,) = encoder.encode([samples], [features_from_frames(num_frames, info.fps)])
    if features.shape[1] != info.speech_dim:
        raise ModelError(
            f"speech encoder {info.speech_model}: expected width {info.speech_dim}, found {features.shape[1]}"
        )
    return torch.from_numpy(features.astype(np.float32))[None]


def _identity(image: Bytes, points: Floats, info: DatasetInfo) -> Floats | None:
    """Identity embedding by the model of the data set, or None where that has none."""
    if not info.identity_dim:
        return None
    embedder = identity.load_embedder(IdentityConfig(model=info.identity_model))
    if embedder is None or embedder.dim != info.identity_dim:
        raise ModelError(f"identity model {info.identity_model}: expected width {info.identity_dim}")
    found: Floats = embedder.embed(identity.align(image, points)[None])[0]
    return found
