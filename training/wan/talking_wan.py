"""Wan transformer with audio, identity and motion-intensity conditioning.

Diffusers' transformer is not changed. The added networks are in processors of its cross-attentions and in one
hook (`training.wan.adapters`). Their outputs start at zero, so that an untrained `TalkingWan` is stock Wan.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from torch import Tensor, nn

from talkforge.schemas.errors import CommandError, ModelError
from talkforge.schemas.units import LATENT_CHANNELS, latent_frames
from talkforge.training.config import AdapterConfig, ModelConfig, TrainConfig
from talkforge.training.data.batch import Conditions, DatasetInfo, Windows
from talkforge.training.wan.adapters import (
    AudioProjection,
    Context,
    FaceResampler,
    MotionNetwork,
    Signals,
    TalkingProcessor,
    dtype_of,
)
from talkforge.training.wan.alignment import gather_windows, windows
from talkforge.training.wan.base import check_wan, load_transformer, random_transformer
from talkforge.training.wan.precision import cast_weights, compute_in_type_of_input

MAX_POSITIONS = 32
"""Most positions of a window with a learned embedding: enough for 9 frames/s and more."""

_LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")


class TalkingWan(nn.Module):  # type: ignore[misc]
    """Wan's transformer with audio attention, face attention and motion intensity.

    Parameters are drawn from torch's global generator, which `build` seeds.

    Attributes:
        transformer: diffusers' model. `blocks.N.attn2.processor` is our `TalkingProcessor`.
        audio_proj: speech features to audio tokens.
        window_positions: learned embedding of the position in a window, or None.
        face: identity to face tokens, or None.
        motion: motion intensities to the timestep embedding, or None.
        context: carries the signals of a forward pass to the processors.
        dtype: in which the transformer computes, see `cast`. None means that of its weights.
        recomputes: whether blocks are recomputed in the backward pass.
    """

    _no_split_modules = ("WanTransformerBlock",)  # what FSDP wraps, by default

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        config: AdapterConfig,
        speech_dim: int,
        identity_dim: int,
        text_tokens: int = 512,
    ) -> None:
        """Adds the adapters to a transformer, whose cross-attentions are changed in place.

        Args:
            transformer: diffusers' model.
            config: which adapters, and their sizes.
            speech_dim: width of the speech features.
            identity_dim: width of the identity embedding. 0 means no face attention.
            text_tokens: text tokens of a sample.

        Raises:
            CommandError: not a Wan 2.1 transformer, or `config` does not fit.
        """
        super().__init__()
        check_wan(transformer)
        inner_dim = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        face_dim = config.face_dim if config.face and identity_dim else None
        self.config = config
        self.text_tokens = text_tokens
        self.context = Context()
        self.dtype: torch.dtype | None = None
        self.recomputes = False
        self.transformer = transformer
        self.audio_proj = AudioProjection(speech_dim, config.audio_dim)
        # As large as the tokens, which are normalised, so that positions differ from the start.
        self.window_positions = (
            nn.Embedding(MAX_POSITIONS, config.audio_dim) if config.window_positions else None
        )
        self.face = None
        if face_dim:
            self.face = FaceResampler(
                identity_dim, face_dim, config.face_tokens, config.face_depth, config.face_heads
            )
        self.motion = MotionNetwork(config.motion_dim, inner_dim) if config.motion else None
        for block in transformer.blocks:
            block.attn2.set_processor(
                TalkingProcessor(self.context, inner_dim, config.audio_dim, face_dim, text_tokens)
            )
        transformer.condition_embedder.register_forward_hook(self.context.add_motion)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute every block in the backward pass, with the conditions of its forward pass."""
        self.transformer.enable_gradient_checkpointing(self.context.checkpoint)
        self.recomputes = True

    def forward(self, x_BCTHW: Tensor, timestep_B: Tensor, conditions: Conditions) -> Tensor:
        """Predicted velocity, [B, 16, T, H, W] float32.

        Args:
            x_BCTHW: noisy latents, [B, 16, T, H, W].
            timestep_B: 0 (clean) to 1000 (noise).
            conditions: of the batch.

        Raises:
            ModelError: the conditions do not fit the model or the latents.
        """
        self._check(x_BCTHW, conditions)
        self.context.signals = self._signals(conditions)
        dtype = self.dtype or dtype_of(self.transformer.patch_embedding)
        if self.transformer.config.in_channels > LATENT_CHANNELS:
            x_BCTHW = torch.cat([x_BCTHW.to(dtype), conditions.condition_BCTHW.to(dtype)], dim=1)
        image_BKD = conditions.image_BKD if self.transformer.config.image_dim else None
        (velocity_BCTHW,) = self.transformer(
            hidden_states=x_BCTHW.to(dtype),
            timestep=timestep_B,
            encoder_hidden_states=conditions.text_BSD.to(dtype),
            encoder_hidden_states_image=None if image_BKD is None else image_BKD.to(dtype),
            return_dict=False,
        )
        return velocity_BCTHW.float()

    def _check(self, x_BCTHW: Tensor, conditions: Conditions) -> None:
        latents = latent_frames(conditions.num_frames)
        if x_BCTHW.shape[2] != latents:
            raise ModelError(
                f"{conditions.num_frames} frames: expected {latents} latent frames, found {x_BCTHW.shape[2]}"
            )
        if conditions.text_BSD.shape[1] != self.text_tokens:
            raise ModelError(
                f"prompt: expected {self.text_tokens} text tokens (model.text_tokens),"
                f" found {conditions.text_BSD.shape[1]}"
            )
        if conditions.stage not in ("clip", "frame"):
            raise ModelError(f"stage: expected 'clip' or 'frame', found {conditions.stage!r}")
        needed = {
            "CLIP features of the reference image": (self.transformer.config.image_dim, conditions.image_BKD),
            "an identity embedding": (self.face, conditions.identity_BD),
            "motion intensities": (self.motion, conditions.omega_B2),
        }
        for name, (branch, given) in needed.items():
            if branch is not None and given is None:
                raise ModelError(f"conditions: the model expects {name}, found none")

    def _signals(self, conditions: Conditions) -> Signals:
        scale_B = conditions.audio_scale_B
        groups, audio_GWC, mask_G11W = 1, None, None
        # Generation has passes without audio. In training every parameter must have a gradient.
        if torch.is_grad_enabled() or bool(scale_B.any()):
            groups, audio_GWC, mask_G11W = self._audio(conditions)
        return Signals(
            groups=groups,
            audio_GWC=audio_GWC,
            audio_mask_G11W=mask_G11W,
            audio_scale_G11=scale_B.repeat_interleave(groups).view(-1, 1, 1),
            face_BKC=self.face(conditions.identity_BD) if self.face is not None else None,
            face_scale_B11=conditions.face_scale_B.view(-1, 1, 1),
            motion_BC=self.motion(conditions.omega_B2) if self.motion is not None else None,
        )

    def _audio(self, conditions: Conditions) -> tuple[int, Tensor, Tensor | None]:
        """Groups of video tokens, the audio tokens of each, and which of them exist."""
        tokens_BLC = self.audio_proj(conditions.speech_BLD)
        if conditions.stage == "clip":
            if self.window_positions is not None:
                # There are no windows, but every trained parameter must have a gradient, or DDP waits for it.
                tokens_BLC = tokens_BLC + 0 * self.window_positions.weight[0]
            return 1, tokens_BLC, None
        found = conditions.windows or windows(tokens_BLC.shape[1], conditions.num_frames)
        tokens_BTWC = gather_windows(tokens_BLC, found)
        if self.window_positions is not None:
            tokens_BTWC = tokens_BTWC + _position_tokens(self.window_positions, found)
        mask_G11W = None if self.config.reference_padding else _window_mask(found, tokens_BTWC)
        return tokens_BTWC.shape[1], tokens_BTWC.flatten(0, 1), mask_G11W


def _position_tokens(positions: nn.Embedding, found: Windows) -> Tensor:
    """Embedding of the positions in every window, [T, W, C], zeros where there is no token."""
    width = found.position_TW.shape[1]
    if width > MAX_POSITIONS:
        raise ModelError(
            f"adapters.window_positions: expected windows of at most {MAX_POSITIONS} features, found {width}"
        )
    valid_TW1 = found.valid_TW.to(positions.weight).unsqueeze(2)
    return positions(found.position_TW.to(positions.weight.device)) * valid_TW1


def _window_mask(found: Windows, tokens_BTWC: Tensor) -> Tensor:
    """Positions with a token in every sample's windows, bool [B * T, 1, 1, W]. Each window has one."""
    return found.valid_TW.to(tokens_BTWC.device).repeat(len(tokens_BTWC), 1)[:, None, None, :]


def adapter_parameters(model: TalkingWan) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of the networks that are added to Wan, without LoRA."""
    return ((name, parameter) for name, parameter in model.named_parameters() if is_adapter(name))


def is_adapter(name: str) -> bool:
    """Whether a parameter, by its name in `TalkingWan`, belongs to the networks that are added to Wan."""
    return not name.startswith("transformer.") or ".attn2.processor." in name


def set_trainable(model: TalkingWan, config: ModelConfig, *, seed: int = 0) -> None:
    """Set which parameters are trained, and add low-rank updates where they are configured.

    'adapters' trains the added networks. 'lora' trains these and low-rank updates by peft (scale 1, zero at
    the start) of all projections of every attention. 'full' trains everything. A second call changes nothing.

    Args:
        model: the model.
        config: what is trained, and the rank of the updates.
        seed: of the low-rank updates.
    """
    if config.trainable == "lora" and not any(".lora_A." in name for name, _ in model.named_parameters()):
        lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank, target_modules=list(_LORA_TARGETS))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model.transformer.add_adapter(lora)
    for name, parameter in model.named_parameters():
        lora_trained = config.trainable == "lora" and ".lora_" in name
        parameter.requires_grad_(config.trainable == "full" or is_adapter(name) or lora_trained)


def build(config: TrainConfig, info: DatasetInfo, *, dtype: torch.dtype = torch.float32) -> TalkingWan:
    """The model of a run on the CPU, with its trained parameters and activation checkpointing set.

    Args:
        config: of the run.
        info: of the data set, whose speech features and identity embedding have these widths.
        dtype: in which the transformer computes, and of the frozen weights, except for those that Wan keeps
            in float32. Trained weights are float32, as the optimizer needs.

    Raises:
        ModelError: `model.base` cannot be loaded, or lacks or has other weights than Wan's.
        CommandError: `adapters` or `data.prefix_frames` does not fit.
    """
    frozen = config.model.trainable != "full"
    base = config.model.base
    if base == "random":
        transformer = random_transformer(config.model.shape)
    else:
        transformer = load_transformer(base, dtype if frozen else torch.float32)
    if config.data.prefix_frames and transformer.config.in_channels == LATENT_CHANNELS:
        raise CommandError(
            f"data.prefix_frames={config.data.prefix_frames}: needs a base that takes a reference image, and"
            f" {base} takes none"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.run.seed)
        model = TalkingWan(
            transformer, config.adapters, info.speech_dim, info.identity_dim, config.model.text_tokens
        )
    set_trainable(model, config.model, seed=config.run.seed)
    cast(model, dtype)
    if config.model.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def cast(model: TalkingWan, dtype: torch.dtype) -> None:
    """Set the type in which the transformer computes, and that of the weights.

    Trained weights are float32, frozen ones `dtype`. The networks outside the transformer, which see a few
    hundred tokens, compute in the type of their weights.

    Args:
        model: the model.
        dtype: of the transformer's activations and of the frozen weights, but for those that Wan keeps in
            float32.
    """
    compute_in_type_of_input(model.transformer)
    cast_weights(model, dtype)
    model.dtype = dtype
