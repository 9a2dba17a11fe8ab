"""A model with its encoders, and what it makes of conditions: videos of one window, or of any length."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from talkforge.curation.weights.torch import torch_device
from talkforge.schemas.arrays import Floats
from talkforge.schemas.errors import CommandError, ModelError
from talkforge.schemas.units import latent_frames
from talkforge.training.config import SampleConfig, TrainConfig, load_train_config
from talkforge.training.data.batch import Batch, DatasetInfo
from talkforge.training.generate import savings
from talkforge.training.generate.long_video import LongVideo, Window, following, overlapping
from talkforge.training.generate.savings import Savings, StepCache
from talkforge.training.generate.sound import SpeechTrack
from talkforge.training.objective import sampling
from talkforge.training.objective.sampling import Guidance, GuidancePass, guidance_passes, sigmas
from talkforge.training.objective.step import EncodedBatch, encode_image, with_given
from talkforge.training.run import checkpoint
from talkforge.training.run.published import audio_parameters, read_published
from talkforge.training.run.tensor_files import fill
from talkforge.training.wan.encoders import Encoders, KnownTexts, Umt5, load_encoders
from talkforge.training.wan.talking_wan import TalkingWan, build, cast

log = logging.getLogger(__name__)

PUBLISHED_PRESET = "wan-14b-stage2"
"""Sizes, guidance and solver of published weights are this preset's."""

PUBLISHED_FPS = 23.0
"""Frames per second that the published weights were trained for. Source: published inference code."""

PUBLISHED_SPEECH = "facebook/wav2vec2-base-960h"
"""Speech encoder of the published weights. Source: published inference code."""


@dataclass(frozen=True)
class Source:
    """Which model.

    Attributes:
        run: a run's folder, of which the last checkpoint is used, or a checkpoint's folder. None means
            published weights.
        base: folder or hub name of a diffusers Wan model, for published weights.
        adapters: file of published weights.
        speech_model: speech encoder of published weights, as `measure.speech.embedding` names it.
        fps: frames per second of published weights.
    """

    run: Path | None = None
    base: str = ""
    adapters: Path | None = None
    speech_model: str = PUBLISHED_SPEECH
    fps: float = PUBLISHED_FPS


def source_of(
    run: Path | None, base: str, adapters: Path | None, speech_model: str | None, fps: float | None
) -> Source:
    """The model that options name.

    Args:
        run: a run's or checkpoint's folder, or None.
        base: see `Source`. Empty: not given.
        adapters: see `Source`.
        speech_model: see `Source`. None: not given.
        fps: see `Source`. None: not given.

    Raises:
        CommandError: they name two models, or none.
    """
    given = {"--base": base, "--adapters": adapters, "--speech-model": speech_model, "--fps": fps}
    named = [name for name, value in given.items() if value]
    if run is not None:
        if named:
            raise CommandError(f"{', '.join(named)}: is for published weights, a RUN knows its own")
        return Source(run=run)
    if not base or adapters is None:
        raise CommandError("expected a RUN, or --base and --adapters")
    if not adapters.is_file():
        raise CommandError(f"--adapters {adapters}: no such file")
    return Source(None, base, adapters, speech_model or PUBLISHED_SPEECH, fps or PUBLISHED_FPS)


@dataclass(frozen=True)
class Speaker:
    """What a video of any length is made from, beside the model.

    Attributes:
        rgb_HWC: reference image, uint8, at a size of the run.
        speech_LD: speech features of all of the audio.
        num_frames: frames of the video.
        identity_D: identity embedding of unit length, or None.
        omega: motion intensity of face and body, 0..1.
        prompt: prompt, may be empty.
        seed: of the noise.
    """

    rgb_HWC: Tensor
    speech_LD: Tensor
    num_frames: int
    identity_D: Floats | None
    omega: tuple[float, float]
    prompt: str
    seed: int


class GenerationPipeline:
    """A trained model with its encoders.

    Attributes:
        model: the transformer with its adapters.
        encoders: of frames, prompts and reference images.
        config: of its run.
        info: of the data set it was trained on.
        device: where the model computes.
        offload: see `Savings`.
    """

    def __init__(
        self,
        model: TalkingWan,
        encoders: Encoders,
        config: TrainConfig,
        info: DatasetInfo,
        device: torch.device | None = None,
    ) -> None:
        self.model, self.encoders = model, encoders
        self.config, self.info = config, info
        self.device = device or next(model.parameters()).device
        self.offload = "none"

    @classmethod
    def load(
        cls,
        source: Path | Source,
        device: str = "auto",
        saving: Savings = Savings(),  # noqa: B008 (it is frozen)
        prompts: Sequence[str] | None = None,
    ) -> GenerationPipeline:
        """The pipeline of a run, with the EMA weights where the checkpoint has them, or of published weights.

        Args:
            source: the model. A path is a run.
            device: 'auto', 'cpu' or a torch device.
            saving: of memory and time.
            prompts: all that will be asked for, beside the run's negative prompt. The text encoder embeds
                them and is freed before the transformer goes to the device. None keeps the text encoder, in
                main memory where models are offloaded.

        Raises:
            CommandError: there is no checkpoint, or options do not fit.
            ModelError: weights are missing or damaged, or there is no such device.
        """
        source = Source(run=source) if isinstance(source, Path) else source
        where = torch_device(device, "--device")
        dtype = savings.dtype_of(saving.dtype, where)
        if source.run is not None:
            found = checkpoint.read(checkpoint.find(source.run))
            config, info = found.config, found.progress.info
            model = build(config, info, dtype=dtype)
            checkpoint.load_trained(model, found.best(), str(found.folder))
            codec = found.codec()
        else:
            config, info, model = _published(source, dtype)
            codec = None
        encoders = load_encoders(config, model.transformer.config.text_dim, where)
        if codec is not None:
            encoders = replace(encoders, codec=codec.to(where))
        if prompts is not None:
            known = KnownTexts(encoders.text, [config.sample.negative_prompt, *prompts])
            encoders = replace(encoders, text=known)
        elif saving.offload != "none" and isinstance(encoders.text, Umt5):
            encoders.text.to(torch.device("cpu"))
        model.requires_grad_(False)
        cast(model, dtype)
        savings.apply(model, encoders.codec, saving, where)
        pipeline = cls(model.eval(), encoders, config, info, where)
        pipeline.offload = saving.offload
        return pipeline

    def use(self, part: str) -> None:
        """Bring the 'transformer' or the 'codec' to the device, and take the other one off it.

        Only where models are offloaded. A transformer whose blocks come and go by themselves stays.
        """
        if self.offload == "none":
            return
        there, away = self.device, torch.device("cpu")
        self.encoders.codec.to(there if part == "codec" else away)
        if self.encoders.image is not None:
            self.encoders.image.to(there if part == "codec" else away)
        if self.offload == "model":
            self.model.to(there if part == "transformer" else away)

    def sample(self, rgb_BHWC: Tensor | None, batch: Batch, settings: SampleConfig, seed: int) -> Tensor:
        """Videos of one window, uint8 [B, F, H, W, 3].

        Args:
            rgb_BHWC: reference images, uint8 [B, H, W, 3], at a size of the run. None: the image is dropped,
                as in training, but for the identity, which is in `batch`.
            batch: speech, identity and motion intensities. Its frames are not used.
            settings: steps, solver and guidance weights.
            seed: of the noise.
        """
        batch = batch.to(self.device)
        dropped = rgb_BHWC is None
        if rgb_BHWC is None:
            rgb_BHWC = torch.zeros(batch.size, *batch.lips_BFHW.shape[2:], 3, dtype=torch.uint8)
        encoded = self.encode(rgb_BHWC, batch.num_frames, batch.texts, settings)
        if dropped:
            image_BKD = encoded.image_BKD
            encoded = replace(
                encoded,
                condition_BCTHW=torch.zeros_like(encoded.condition_BCTHW),
                image_BKD=None if image_BKD is None else torch.zeros_like(image_BKD),
            )
        latents = sampling.sample(
            self.model,
            batch,
            encoded,
            self.config.adapters,
            self.config.run.stage,
            settings,
            self.config.flow.shift,
            Generator().manual_seed(seed),
        )
        return self.encoders.codec.decode(latents).cpu()

    def encode(
        self, rgb_BHWC: Tensor, num_frames: int, texts: Sequence[str], settings: SampleConfig
    ) -> EncodedBatch:
        """Reference images and prompts as the transformer takes them. The empty prompt is the negative one.

        Args:
            rgb_BHWC: reference images, uint8 [B, H, W, 3].
            num_frames: frames of a window.
            texts: prompts.
            settings: has the negative prompt.
        """
        encoded = encode_image(rgb_BHWC.to(self.device), num_frames, texts, self.encoders)
        empty_SD = encoded.empty_text_SD
        if settings.negative_prompt:
            (empty_SD,) = self.encoders.text.encode([settings.negative_prompt])
        text_BSD = encoded.text_BSD.to(self.device)  # a text encoder in main memory leaves its results there
        return replace(encoded, text_BSD=text_BSD, empty_text_SD=empty_SD.to(self.device))

    def long_video(
        self,
        speaker: Speaker,
        settings: SampleConfig,
        after_window: Callable[[int, int], None] = lambda _step, _window: None,
    ) -> LongVideo:
        """A video of any length, ready to be computed.

        Args:
            speaker: what it is made from.
            settings: how it is made.
            after_window: called with the numbers of step and window after each call of the model.

        Raises:
            CommandError: windows or their overlap do not fit the run.
        """
        height_px, width_px = speaker.rgb_HWC.shape[:2]
        windows = self.windows(-(-(speaker.num_frames - 1) // 4) + 1, settings)
        encoded = self.encode(
            speaker.rgb_HWC[None], 4 * (len(windows[0]) - 1) + 1, (speaker.prompt,), settings
        )
        track = SpeechTrack(speaker.speech_LD, self.info.fps, self.config.data.num_frames)

        def passes(window: Window, given: Tensor | None) -> Sequence[GuidancePass]:
            speech_BLD, audio = track.heard_by(window, self.config.run.stage)
            batch = self.batch(
                speech_BLD,
                speaker.omega,
                (height_px, width_px),
                identity_D=speaker.identity_D,
                num_frames=4 * (len(window) - 1) + 1,
            ).to(self.device)
            condition = encoded.condition_BCTHW[:, :, : len(window)]
            if given is not None:
                clean = torch.zeros_like(condition[:, -given.shape[1] :])
                clean[:, :, : given.shape[2]] = given
                condition = with_given(
                    condition, clean, (torch.arange(len(window)) < given.shape[2])[None].to(self.device)
                )
            own = replace(encoded, condition_BCTHW=condition)
            found = guidance_passes(batch, own, self.config.adapters, self.config.run.stage, settings)
            return [replace(one, conditions=replace(one.conditions, windows=audio)) for one in found]

        one_window = settings.windows == "continue"
        cache = StepCache(self.model, settings.cache, self.device, one_window=one_window)
        return LongVideo(
            windows,
            passes,
            Guidance(self.model, together=settings.passes_together, in_context=cache.call),
            sigmas(settings.steps, self.config.flow.shift).tolist(),
            settings.solver,
            (height_px // 8, width_px // 8),
            speaker.seed,
            self.device,
            after_window,
        )

    def windows(self, latents: int, settings: SampleConfig) -> list[Window]:
        """The windows of a video.

        Args:
            latents: latent frames of the video.
            settings: how long videos are made.

        Raises:
            CommandError: windows or their overlap do not fit the run.
        """
        window = latent_frames(self.config.data.num_frames)
        if settings.windows == "continue":
            if not self.config.data.prefix_frames:
                raise CommandError(
                    "windows=continue: the model was trained without data.prefix_frames and cannot continue a"
                    " video: use overlap"
                )
            context = max(1, latent_frames(self.config.data.prefix_frames) - 1)
            return following(latents, window, min(context, window - 2))
        most = max(0, window - 2)
        overlap = min(most, round((window - 1) / 3)) if settings.overlap is None else settings.overlap
        if overlap > most:
            raise CommandError(f"overlap {overlap}: expected at most {most} of a window's {window}")
        if latents > window == 1:
            raise CommandError("data.num_frames=1: a model of still images makes no long video")
        return overlapping(latents, window, overlap)

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
            lips_BFHW=torch.zeros(1, dtype=torch.uint8).expand(count, frames, *size_HW),
            lip_valid_BF=torch.zeros(count, frames, dtype=torch.bool),
            speech_BLD=speech_BLD,
            identity_BD=identity_BD,
            has_identity_B=torch.full((count,), identity_D is not None and self.info.identity_dim > 0),
            omega_B2=torch.tensor([omega] * count, dtype=torch.float32),
            texts=(prompt,) * count,
        )


def _published(source: Source, dtype: torch.dtype) -> tuple[TrainConfig, DatasetInfo, TalkingWan]:
    """Configuration, data and model of published audio weights on a diffusers Wan model."""
    if source.adapters is None or not source.base:
        raise CommandError("expected a RUN, or --base and --adapters")
    weights = read_published(source.adapters)
    projection = weights.get("audio_proj.proj.weight")
    if projection is None or projection.ndim != 2:
        raise ModelError(f"{source.adapters}: expected published audio weights, found no proj.weight")
    audio_dim, speech_dim = projection.shape
    settings = [
        f"model.base={source.base}",
        f"adapters.audio_dim={audio_dim}",
        "adapters.face=false",
        "adapters.motion=false",
        "adapters.window_positions=false",
    ]
    config = load_train_config(PUBLISHED_PRESET, settings)
    info = DatasetInfo(source.fps, speech_dim, source.speech_model, 0, "", 0, 0, "")
    model = build(config, info, dtype=dtype)
    if model.transformer.config.image_dim is None:
        config = config.model_copy(update={"codec": config.codec.model_copy(update={"image": "none"})})
    fill(audio_parameters(model), weights, str(source.adapters))
    log.warning(
        "%s: has audio weights alone: the face branch (identity) and the motion branch (omega) are off",
        source.adapters,
    )
    return config, info, model
