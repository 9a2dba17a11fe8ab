"""One training step: the loss of a batch. Devices, optimizers and files are handled elsewhere.

What "dropped" means, here and for guidance in `training.generate`:

    image   no first frame (all-zero condition), no CLIP features (zeros), no face attention (lambda2 = 0)
            unless `dropout.identity` drops that by itself
    audio   no audio attention (lambda1 = 0), which is the model without its audio adapter
    text    the empty prompt
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from talkforge.schemas.errors import DatasetError
from talkforge.schemas.units import CONDITION_CHANNELS, LATENT_CHANNELS, LATENT_STRIDE_PX, latent_frames
from talkforge.training.config import AdapterConfig, DropoutConfig, TrainConfig
from talkforge.training.data.batch import Batch, Conditions
from talkforge.training.objective import losses
from talkforge.training.wan.alignment import latent_masks
from talkforge.training.wan.encoders import Encoders

Model = Callable[[Tensor, Tensor, Conditions], Tensor]
"""Noisy latents, timestep 0..1000 and conditions to a velocity, as `wan.talking_wan.TalkingWan`."""


@dataclass(frozen=True)
class KeepMask:
    """Which conditions of each sample are kept, bool [B].

    The identity is kept where the image is if `identity_B` is None.
    """

    image_B: Tensor
    audio_B: Tensor
    text_B: Tensor
    identity_B: Tensor | None = None

    @classmethod
    def all(cls, batch: int) -> KeepMask:
        """Nothing is dropped."""
        return cls(*(torch.ones(batch, dtype=torch.bool) for _ in range(3)))

    @classmethod
    def draw(cls, batch: int, config: DropoutConfig, generator: Generator) -> KeepMask:
        """Drops each condition of each sample independently. Source: FantasyTalking, training details.

        Args:
            batch: samples.
            config: probability of each condition.
            generator: on the CPU.
        """
        rates = [config.image, config.audio, config.text]
        if config.identity is not None:
            rates.append(config.identity)
        return cls(*(torch.rand(batch, generator=generator) >= rate for rate in rates))


@dataclass(frozen=True)
class EncodedBatch:
    """A batch as the transformer takes it, before anything is dropped.

    Suffixes as in `training.data.batch`.
    """

    latents_BCTHW: Tensor | None
    """None where a video is to be generated, which has no target."""
    condition_BCTHW: Tensor
    text_BSD: Tensor
    empty_text_SD: Tensor
    image_BKD: Tensor | None


def encode(
    batch: Batch, encoders: Encoders, generator: Generator | None, reference_B: Tensor | None = None
) -> EncodedBatch:
    """Latents and conditions of a batch, encoded now or taken from the cache.

    Args:
        batch: on the encoders' device.
        encoders: of frames, prompts and reference images.
        generator: of the codec's noise. None takes the mode.
        reference_B: number of the frame that is each sample's reference image. None means the first. Cached
            latents know the first frame only.

    Raises:
        DatasetError: the cache lacks what the model needs.
    """
    if batch.cached is None:
        assert batch.rgb_BFHWC is not None, "a batch has frames, or cached latents of them"
        latents = encoders.codec.encode(batch.rgb_BFHWC, generator)
        reference_BHWC = batch.rgb_BFHWC[:, 0]
        if reference_B is not None:
            reference_BHWC = batch.rgb_BFHWC[torch.arange(batch.size), reference_B]
        return encode_image(reference_BHWC, batch.num_frames, batch.texts, encoders, latents)
    cached = batch.cached
    if encoders.image is not None and cached.image_BKD is None:
        raise DatasetError(f"cached latents of {batch.keys[0]}: expected CLIP features, found none")
    text_BSD, empty_SD = cached.text_BSD, cached.empty_text_SD
    if text_BSD is None or empty_SD is None:
        text_BSD, empty_SD = _texts(batch.texts, encoders)
    return EncodedBatch(cached.latents_BCTHW, cached.condition_BCTHW, text_BSD, empty_SD, cached.image_BKD)


def encode_image(
    rgb_BHWC: Tensor,
    num_frames: int,
    texts: Sequence[str],
    encoders: Encoders,
    latents_BCTHW: Tensor | None = None,
) -> EncodedBatch:
    """Conditions of reference images and prompts.

    Args:
        rgb_BHWC: reference images, uint8 [B, H, W, 3].
        num_frames: frames of the spans.
        texts: prompts.
        encoders: of frames, prompts and reference images. Where the model does not take the reference image
            beside the latents, it is zeros, which nobody reads.
        latents_BCTHW: latents of the spans, which are passed on.
    """
    text_BSD, empty_SD = _texts(texts, encoders)
    if encoders.takes_condition:
        condition = encoders.codec.condition(rgb_BHWC, num_frames)
    else:
        samples, height_px, width_px, _ = rgb_BHWC.shape
        grid = (latent_frames(num_frames), height_px // LATENT_STRIDE_PX, width_px // LATENT_STRIDE_PX)
        condition = torch.zeros(1, device=rgb_BHWC.device).expand(samples, CONDITION_CHANNELS, *grid)
    return EncodedBatch(
        latents_BCTHW=latents_BCTHW,
        condition_BCTHW=condition,
        text_BSD=text_BSD,
        empty_text_SD=empty_SD,
        image_BKD=encoders.image.encode(rgb_BHWC) if encoders.image is not None else None,
    )


def _texts(texts: Sequence[str], encoders: Encoders) -> tuple[Tensor, Tensor]:
    found = encoders.text.encode([*texts, ""])
    return found[:-1], found[-1]


def conditions(
    batch: Batch, encoded: EncodedBatch, keep: KeepMask, adapters: AdapterConfig, stage: str
) -> Conditions:
    """Conditions of the transformer for a batch. The module's docstring says what is dropped and how.

    Args:
        batch: speech, identity and motion intensity. Its frames are not used.
        encoded: reference image and prompt.
        keep: which conditions are kept.
        adapters: scales of the added attentions.
        stage: 'clip' or 'frame'.
    """
    image_B, audio_B, text_B, identity_B = (kept.to(batch.speech_BLD.device) for kept in _each(keep))
    with_face_B = batch.has_identity_B & identity_B
    image_BKD = encoded.image_BKD
    identity_known = adapters.face and batch.identity_BD.shape[1] > 0
    return Conditions(
        condition_BCTHW=encoded.condition_BCTHW * image_B.view(-1, 1, 1, 1, 1),
        text_BSD=torch.where(text_B.view(-1, 1, 1), encoded.text_BSD, encoded.empty_text_SD),
        image_BKD=None if image_BKD is None else image_BKD * image_B.view(-1, 1, 1),
        speech_BLD=batch.speech_BLD,
        num_frames=batch.num_frames,
        stage=stage,
        audio_scale_B=adapters.audio_scale * audio_B.float(),
        identity_BD=batch.identity_BD if identity_known else None,
        face_scale_B=adapters.face_scale * with_face_B.float(),
        omega_B2=batch.omega_B2 if adapters.motion else None,
    )


def _each(keep: KeepMask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        keep.image_B,
        keep.audio_B,
        keep.text_B,
        keep.image_B if keep.identity_B is None else keep.identity_B,
    )


@dataclass(frozen=True)
class Prefix:
    """Which latent frames at the start of each span are given clean.

    Attributes:
        latents_B: how many, 0 for none.
        reference_B: number of the frame in the span that is the reference image. It is the first one, except
            where more than the first latent frame is given. A video that is continued is given the portrait
            and the latest latents, and these do not follow each other either.
    """

    latents_B: Tensor
    reference_B: Tensor

    @classmethod
    def draw(cls, batch: Batch, most_frames: int, keep: KeepMask, generator: Generator) -> Prefix:
        """Half of the samples have no prefix, the others 1, 5, 9 ... `most_frames` frames alike often (ours).

        Args:
            batch: the samples.
            most_frames: `data.prefix_frames`.
            keep: a sample whose image is dropped has no prefix.
            generator: on the CPU.
        """
        some_B = (torch.rand(batch.size, generator=generator) < 0.5) & keep.image_B
        count_B = torch.randint(1, latent_frames(most_frames) + 1, (batch.size,), generator=generator)
        frame_B = torch.randint(batch.num_frames, (batch.size,), generator=generator)
        latents_B = count_B * some_B
        return cls(latents_B, frame_B * (latents_B > 1))

    def given(self, latents: int) -> Tensor:
        """Which of so many latent frames are given, bool [B, T]."""
        return torch.arange(latents) < self.latents_B[:, None]


def with_given(condition_BCTHW: Tensor, clean_BCTHW: Tensor, given_BT: Tensor) -> Tensor:
    """The condition of Wan's image-to-video model with further latent frames in it.

    Args:
        condition_BCTHW: of the reference image, see `Codec.condition`.
        clean_BCTHW: latents, [B, 16, T, H, W].
        given_BT: bool, latent frames that are given.
    """
    given = given_BT[:, None, :, None, None]
    mask, latents = condition_BCTHW.split([CONDITION_CHANNELS - LATENT_CHANNELS, LATENT_CHANNELS], dim=1)
    return torch.cat([mask.masked_fill(given, 1.0), torch.where(given, clean_BCTHW, latents)], dim=1)


def training_step(
    model: Model,
    encoders: Encoders,
    batch: Batch,
    config: TrainConfig,
    generator: Generator,
    *,
    rank: int = 0,
    world: int = 1,
) -> losses.Loss:
    """The loss of one batch.

    Args:
        model: predicts the velocity.
        encoders: of frames, prompts and reference images.
        batch: on the model's device.
        config: of the run.
        generator: on the CPU. All random numbers come from it, in one order.
        rank: number of this batch among those of the step, for stratified timesteps.
        world: how many batches the step has.
    """
    device = batch.speech_BLD.device
    prefix, keep = None, None
    if config.data.prefix_frames:
        keep = KeepMask.draw(batch.size, config.dropout, generator)
        prefix = Prefix.draw(batch, config.data.prefix_frames, keep, generator)
    encoded = encode(batch, encoders, generator, prefix.reference_B if prefix else None)
    latents = encoded.latents_BCTHW
    assert latents is not None, "training needs latents"
    keep = keep or KeepMask.draw(batch.size, config.dropout, generator)
    given_BT = None
    if prefix is not None:
        given_BT = prefix.given(latents.shape[2]).to(device)
        encoded, latents = _prefixed(encoded, latents, given_BT)
    conditioned = conditions(batch, encoded, keep, config.adapters, config.run.stage)
    sigma_B = losses.draw_sigmas(batch.size, config.flow, generator, rank=rank, world=world).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    masked_B = losses.draw_masked(batch.size, config.loss, config.run.stage, generator).to(device)

    x = losses.noised(latents, noise, sigma_B)
    if given_BT is not None:
        x = torch.where(given_BT[:, None, :, None, None], latents, x)
    predicted = model(x, losses.TIMESTEPS * sigma_B, conditioned)

    grid_HW = (latents.shape[3], latents.shape[4])
    resize = config.loss.mask_resize
    mask = latent_masks(batch.lips_BFHW, batch.lip_valid_BF, grid_HW, resize)
    face = None if batch.face_BFHW is None else latent_masks(batch.face_BFHW, None, grid_HW, resize)
    weight_B = losses.timestep_weight(sigma_B, config.flow)
    target = losses.velocity(latents, noise)
    counted_BT = None if given_BT is None else ~given_BT
    return losses.flow_loss(predicted, target, mask, masked_B, weight_B, config.loss, face, counted_BT)


def _prefixed(encoded: EncodedBatch, latents: Tensor, given_BT: Tensor) -> tuple[EncodedBatch, Tensor]:
    """The batch with its prefixes in the condition, and latents that begin with the reference image's."""
    reference = encoded.condition_BCTHW[:, -LATENT_CHANNELS:, :1]
    first = torch.where(given_BT[:, None, :1, None, None], reference, latents[:, :, :1])
    latents = torch.cat([first, latents[:, :, 1:]], dim=2)
    condition = with_given(encoded.condition_BCTHW, latents, given_BT)
    return replace(encoded, condition_BCTHW=condition), latents
