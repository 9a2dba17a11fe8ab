"""What a run of the trainer is: every value with its unit, and where it comes from.

`Source: paper` is FantasyTalking (arXiv 2504.04842); `ours` marks a value of this project, where nothing is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from talkforge.schemas.config import Section, flatten
from talkforge.schemas.errors import CommandError
from talkforge.schemas.presets import find_config
from talkforge.schemas.settings import read
from talkforge.schemas.units import latent_frames

UMT5_TOKENS = 512
"""Text tokens of every prompt embedding. Source: Wan, and diffusers' attention processor assumes it."""


class WanShape(Section):
    """Shape of a randomly initialised Wan, for runs without weights. The defaults are the tiny preset's."""

    num_attention_heads: int = Field(4, ge=1, description="Attention heads.")
    attention_head_dim: int = Field(
        32, ge=12, description="Width of a head; the model's width is heads times this."
    )
    num_layers: int = Field(4, ge=1, description="Blocks.")
    ffn_dim: int = Field(512, ge=8, description="Width of the feed-forward layers.")
    text_dim: int = Field(32, ge=1, description="Width of the text embedding.")
    freq_dim: int = Field(64, ge=2, description="Width of the timestep's sinusoidal embedding.")
    image_dim: int | None = Field(None, description="Width of the CLIP features; null: no image branch.")


def _renamed(data: Any, names: Mapping[str, str]) -> Any:
    """A section with the old names of its settings, as earlier versions wrote them, replaced by the new."""
    if not isinstance(data, dict):
        return data
    return {new if (new := names.get(key, key)) not in data else key: value for key, value in data.items()}


class ModelConfig(Section):
    """The base model and which of its weights are trained."""

    base: str = Field(
        "random",
        description="'random', or the folder or hub name of a diffusers Wan model (with its `transformer`).",
    )
    shape: WanShape = Field(WanShape(), description="Used where `base` is random.")
    text_tokens: int = Field(
        512, ge=1, description="Text tokens of a sample. Wan: 512; a model without text encoder: 1."
    )
    trainable: Literal["adapters", "lora", "full"] = Field(
        "adapters",
        description="'adapters': the audio, face and motion networks; 'lora': those and low-rank updates of every attention; 'full': everything.",
    )
    lora_rank: int = Field(64, ge=1, description="Rank of the low-rank updates.")
    gradient_checkpointing: bool = Field(False, description="Recompute blocks in the backward pass.")
    keep: Literal["nothing", "attention", "auto"] | int = Field(
        "nothing",
        description="What is kept instead of recomputed: 'attention': outputs of self-attention; a number: these, and everything of so many blocks; 'auto': as much as the GPU's memory allows by the computed plan.",
    )
    attention: Literal["native", "cudnn", "flash", "flash3"] = Field(
        "native",
        description="Attention to video, prompt and image: torch's own choice, cuDNN, or the packages flash-attn 2 and 3; audio and face use torch's. (SageAttention has no backward pass.)",
    )
    compile: bool = Field(False, description="Compile each block by torch.compile, as one graph.")
    fp8: bool = Field(
        False, description="Store frozen weights of the blocks in 8 bits (e4m3); they compute in bf16."
    )
    swap_blocks: int = Field(
        0, ge=0, description="Blocks whose frozen weights lie in main memory, and come for each use."
    )
    offload_activations: bool = Field(
        False, description="Keep the inputs of recomputed blocks in main memory."
    )


class AdapterConfig(Section):
    """The networks that are added to Wan."""

    audio_dim: int = Field(
        2048, ge=8, description="Width of the projected audio tokens. Source: the published weights."
    )
    audio_scale: float = Field(1.0, description="lambda1 of Eq. 4. Source: paper §3.3.")
    window_positions: bool = Field(
        False,
        description="Add a learned embedding of the position in the window to audio keys and values (ours; the published weights have none).",
    )
    reference_padding: bool = Field(
        False,
        description="Let the zeros that pad a window take part in its attention, as the published fallback does: only to reproduce it.",
    )
    face: bool = Field(True, description="Face attention; needs clips with an identity embedding.")
    face_scale: float = Field(0.5, description="lambda2 of Eq. 4. Source: paper §3.3.")
    face_tokens: int = Field(16, ge=1, description="Tokens of the Q-Former (ours).")
    face_depth: int = Field(6, ge=1, description="Layers of the Q-Former (ours).")
    face_dim: int = Field(768, ge=8, description="Width of the Q-Former (ours).")
    face_heads: int = Field(12, ge=1, description="Heads of the Q-Former (ours).")
    motion: bool = Field(True, description="Motion-intensity network.")
    motion_dim: int = Field(256, ge=8, description="Width of the motion-intensity network (ours).")

    @model_validator(mode="before")
    @classmethod
    def _from_old(cls, data: Any) -> Any:
        return _renamed(data, {"audio_slots": "window_positions"})


class CodecConfig(Section):
    """Encoders of frames, prompts and the reference image."""

    kind: Literal["linear", "learned", "wan"] = Field(
        "wan",
        description="'wan': Wan's VAE from `model.base`; 'linear': a truncated 3-D DCT with Wan's geometry, needs no weights; 'learned': its latents, and a small decoder that is fitted to the data set before the first step.",
    )
    fit_steps: int = Field(
        600, ge=1, description="Steps in which the decoder of the learned codec is fitted (ours)."
    )
    fit_batch: int = Field(4, ge=1, description="Spans of each of these steps (ours).")
    text: Literal["none", "umt5"] = Field("umt5", description="Text encoder; 'none': the prompt is not used.")
    image: Literal["none", "clip"] = Field("clip", description="Image encoder of the reference image.")


class DataConfig(Section):
    """Which shards, and what a batch is."""

    shards: str = Field(
        "", description="Shards to train on, with braces: DATASET/shards/train-{000000..000123}.tar."
    )
    validation_shards: str = Field(
        "",
        description="Held-out shards, which validation samples are taken from; empty: the training shards.",
    )
    snapshot: str = Field(
        "",
        description="Number or tag of the data set's snapshot; empty: the current one when the run begins, which it then keeps. Several data sets: a JSON object from each one's path to its number.",
    )
    num_frames: int = Field(81, ge=1, description="Frames of a training span, 4n + 1.")
    shorter_spans: tuple[int, ...] = Field(
        (),
        description="Lengths for clips shorter than `num_frames`, frames, 4n + 1: such a clip is trained at the longest that it holds; empty: it is left out.",
    )
    sizes: tuple[tuple[int, int], ...] = Field(
        ((512, 512),),
        description="Height and width of each bucket, px, multiples of 16; a clip goes where its aspect is nearest.",
    )
    batch_size: int = Field(1, ge=1, description="Samples of one step on one device.")
    workers: int = Field(2, ge=0, description="Loader processes; 0: in the trainer itself.")
    shuffle: int = Field(64, ge=1, description="Undecoded samples from which the next is drawn.")
    sampling: Literal["epochs", "resampled"] = Field(
        "epochs",
        description="'epochs': each shard once before any repeats, over all ranks and workers; 'resampled': drawn with replacement.",
    )
    decoder: Literal["pyav", "decord"] = Field(
        "pyav",
        description="What decodes the clips: PyAV, or decord (extra decord): the same frames, 1.2 levels of 255 darker where they are scaled, for about the same CPU time.",
    )
    omega: Literal["span", "clip"] = Field(
        "span",
        description="Motion intensity of a sample: that of its span, or that of the whole clip. Paper: not said.",
    )
    latents: Literal["auto", "require", "ignore"] = Field(
        "auto", description="Use what `talkforge encode` has cached: where it is, always, or never."
    )
    prefix_frames: int = Field(
        0,
        ge=0,
        description="Most frames at the start of a span that are given clean, 4n + 1, so that a video can be continued; 0: none. Half of the samples get none, the others 1, 5, 9 ... of them (ours).",
    )
    cache_mb: int = Field(
        0,
        ge=0,
        description="Decoded spans kept in each loader process, megabytes; 0: every span is decoded anew.",
    )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Frames of a span in each bucket, the longest first."""
        return (self.num_frames, *sorted(self.shorter_spans, reverse=True))

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        for frames in self.lengths:
            latent_frames(frames)
        if len({*self.lengths}) < len(self.lengths) or max(self.lengths) > self.num_frames:
            raise ValueError(
                f"shorter_spans are shorter than num_frames = {self.num_frames}, and differ,"
                f" found {list(self.shorter_spans)}"
            )
        if self.prefix_frames:
            latent_frames(self.prefix_frames)
        if self.prefix_frames >= min(self.lengths):
            raise ValueError(
                f"prefix_frames are fewer than those of the shortest span, {min(self.lengths)},"
                f" found {self.prefix_frames}"
            )
        for height_px, width_px in self.sizes:
            if height_px % 16 or width_px % 16 or height_px < 16 or width_px < 16:
                raise ValueError(f"sizes are multiples of 16 px, found {height_px} x {width_px}")
        if not self.sizes:
            raise ValueError("at least one size is needed")
        return self


class DropoutConfig(Section):
    """Each independently, for each sample. Source: paper, training details."""

    image: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Reference image: first frame, CLIP features and, unless `identity` is set, identity.",
    )
    audio: float = Field(0.1, ge=0, le=1, description="Audio.")
    text: float = Field(0.1, ge=0, le=1, description="Prompt.")
    identity: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Identity, by itself (ours); null: it is dropped where the image is, as one condition with it. A model that shall show somebody by the identity alone needs samples without the image that have it.",
    )


class FlowConfig(Section):
    """Flow matching."""

    timesteps: Literal["uniform", "logit_normal", "stratified"] = Field(
        "uniform",
        description="How sigma is drawn before the shift: uniform, logit-normal (mean 0, standard deviation 1), or uniform and stratified over the samples of all ranks.",
    )
    shift: float = Field(5.0, gt=0, description="s' = k s / (1 + (k - 1) s). Wan: 5, or 3.")
    weighting: Literal["none", "bell"] = Field(
        "none", description="Weight of a timestep in the loss: 1, or a bell with mean 1 around the middle."
    )


class LossConfig(Section):
    """Eq. 2-3: stage 2 weighs the loss with the lip mask, but for a fraction eta of the samples."""

    eta: float = Field(
        0.2, ge=0, le=1, description="Fraction of the samples trained without the mask. Source: paper §3.2."
    )
    normalise: Literal["mask_sum", "pixels"] = Field(
        "mask_sum",
        description="The masked loss is divided by the sum of the mask, or by the number of cells (undivided it hardly learns).",
    )
    mask_resize: Literal["trilinear", "area"] = Field(
        "trilinear",
        description="Lip mask to the latent grid. Paper: trilinear; area loses no lips at small sizes.",
    )
    unmasked_weight: float = Field(
        0.0, ge=0, description="Weight of the unmasked loss that is added to the masked one (ours; paper: 0)."
    )
    face_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the loss under the mask of the face, from hairline to chin, that is added to that of every sample in both stages (ours; paper: 0).",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_old(cls, data: Any) -> Any:
        return _renamed(data, {"plain_weight": "unmasked_weight"})


class OptimConfig(Section):
    """AdamW and its schedule."""

    lr: float = Field(1e-4, gt=0, description="Learning rate. Source: paper.")
    adapter_lr_scale: float = Field(
        1.0, gt=0, description="The adapters' learning rate over `lr`; 5 makes up for their start at zero."
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's moments.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    schedule: Literal["constant", "cosine"] = Field("constant", description="After the warm-up.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    accumulate: int = Field(1, ge=1, description="Batches of one optimizer step.")
    eight_bit: bool = Field(False, description="AdamW's moments in 8 bits, by torchao (extra train-8bit).")
    ema: float | None = Field(
        None, gt=0, lt=1, description="Decay of a moving average of the trained weights; null: none."
    )


class SampleConfig(Section):
    """How a video is generated: validation samples and `talkforge generate`."""

    steps: int = Field(30, ge=1, le=10_000, description="Steps of the solver. Source: paper.")
    solver: Literal["euler", "dpm++2m"] = Field(
        "euler",
        description="'euler' (source: published inference code), or the second-order DPM-Solver++(2M), which needs fewer steps.",
    )
    text_cfg: float = Field(
        5.0, description="Guidance by the prompt; 1: none. Source: published inference code."
    )
    audio_cfg: float = Field(4.5, description="Guidance by the audio; 1: none. Source: paper.")
    negative_prompt: str = Field(
        "", description="What guidance by the prompt leads away from; empty: from no prompt."
    )
    passes_together: bool = Field(
        True,
        description="Compute the passes of guidance as one batch, and one by one where memory does not suffice.",
    )
    windows: Literal["overlap", "continue"] = Field(
        "overlap",
        description="How a video longer than data.num_frames is made: 'overlap': windows that are averaged where they overlap, at every step; 'continue': each window goes on from the last one's latents, which needs data.prefix_frames.",
    )
    overlap: int | None = Field(
        None, ge=0, description="Latent frames that neighbouring windows share; null: a third of a window."
    )
    cache: float = Field(
        0.0,
        ge=0,
        description="Step caching: a step reuses the last one's result of all blocks but the first where that block's output has changed by less than this fraction; 0: off.",
    )


class RunConfig(Section):
    """Length, folder and precision of a run."""

    stage: Literal["clip", "frame"] = Field(
        "clip",
        description="Stage 1: every token attends to all audio; stage 2: to its own window, masked loss.",
    )
    out: str = Field("", description="Folder of the run.")
    init_from: str = Field(
        "", description="Run folder or checkpoint whose weights this run starts from (stage 1 for stage 2)."
    )
    steps: int = Field(1000, ge=1, description="Optimizer steps.")
    seed: int = Field(0, ge=0, description="Of everything drawn.")
    precision: Literal["no", "bf16"] = Field(
        "no",
        description="'bf16': the transformer computes in bf16, and its frozen weights are bf16; trained weights, their gradients and the optimizer stay float32. 'no': all is float32.",
    )
    log_every: int = Field(10, ge=1, description="Steps between two lines in the trackers.")
    save_every: int = Field(1000, ge=1, description="Steps between two checkpoints.")
    keep: int = Field(2, ge=1, description="Checkpoints kept.")
    validate_every: int = Field(0, ge=0, description="Steps between two sets of validation samples; 0: none.")
    validation_samples: int = Field(2, ge=1, description="Videos generated each time.")
    validation_measures: bool = Field(
        True,
        description="Measure them as `talkforge evaluate` does without a download (sync, lips, identity, motion): into the trackers and `validation.csv` of the run.",
    )
    trackers: tuple[str, ...] = Field(
        ("tensorboard",), description="Accelerate's trackers by name; may be empty."
    )
    threads: int = Field(0, ge=0, description="Threads of torch on a CPU; 0: torch decides.")


class TrainConfig(Section):
    """The whole configuration of `talkforge train`."""

    model: ModelConfig = ModelConfig()
    adapters: AdapterConfig = AdapterConfig()
    codec: CodecConfig = CodecConfig()
    data: DataConfig = DataConfig()
    dropout: DropoutConfig = DropoutConfig()
    flow: FlowConfig = FlowConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    sample: SampleConfig = SampleConfig()
    run: RunConfig = RunConfig()


def check(config: TrainConfig) -> None:
    """Raise CommandError, in one line, where settings contradict each other or have no effect.

    A setting that differs from its default and changes nothing is refused, because the user expects an
    effect.
    """
    problems = [*_contradictions(config)]
    given, default = flatten(config), flatten(TrainConfig())
    for names, because in _unused(config):
        problems += [
            f"{key}={given[key]} has no effect with {because}"
            for key in given
            if key.startswith(names) and given[key] != default.get(key)
        ]
    if problems:
        raise CommandError(f"config: {'; '.join(problems)}")


def check_base(config: TrainConfig) -> None:
    """Raise CommandError, in one line, where codec and encoders need weights that `model.base` does not have."""
    if problems := [*_base_contradictions(config)]:
        raise CommandError(f"config: {'; '.join(problems)}")


def _contradictions(config: TrainConfig) -> Iterator[str]:
    if not config.run.out:
        yield "run.out: expected the folder of the run, found nothing"
    yield from _base_contradictions(config)


def _base_contradictions(config: TrainConfig) -> Iterator[str]:
    if config.model.base == "random":
        for key, needs, none in (
            ("kind", "wan", "linear"),
            ("text", "umt5", "none"),
            ("image", "clip", "none"),
        ):
            if (found := getattr(config.codec, key)) == needs:
                yield f"codec.{key}={found} needs a model.base with weights: give one, or codec.{key}={none}"
    yield from memory_contradictions(config)
    if config.codec.text == "umt5" and config.model.text_tokens != UMT5_TOKENS:
        yield f"codec.text=umt5: expected model.text_tokens={UMT5_TOKENS}, found {config.model.text_tokens}"


def memory_contradictions(config: TrainConfig) -> Iterator[str]:
    """What settings of the section `model` that save memory or time contradict."""
    model = config.model
    if isinstance(model.keep, int) and model.keep < 0:
        yield f"model.keep: expected 0 or more blocks, found {model.keep}"
    frozen_only = [name for name in ("fp8", "swap_blocks") if getattr(model, name)]
    for name in frozen_only:
        if model.trainable == "full":
            yield f"model.{name}: is for frozen weights, and model.trainable=full has none"
        if not model.gradient_checkpointing:
            yield f"model.{name}: needs model.gradient_checkpointing, or every block keeps a copy of its weights"
    if model.attention != "native" and config.run.precision != "bf16":
        yield f"model.attention={model.attention}: needs run.precision=bf16"
    if model.compile:
        for name in ("swap_blocks", "offload_activations"):
            if getattr(model, name):
                yield f"model.{name}: not with model.compile"


def _unused(config: TrainConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Beginnings of names of settings that change nothing in this run, and what makes them so."""
    if config.model.base != "random":
        yield ("model.shape.",), f"model.base={config.model.base}"
    if config.model.trainable != "lora":
        yield ("model.lora_rank",), f"model.trainable={config.model.trainable}"
    if not config.model.gradient_checkpointing:
        yield ("model.keep", "model.offload_activations"), "model.gradient_checkpointing=false"
    if not config.adapters.face:
        yield ("adapters.face_",), "adapters.face=false"
    if not config.adapters.motion:
        yield ("adapters.motion_dim",), "adapters.motion=false"
    if config.codec.kind != "learned":
        yield ("codec.fit_",), f"codec.kind={config.codec.kind}"
    if config.run.stage == "clip":
        yield (
            ("adapters.reference_padding", "loss.eta", "loss.normalise", "loss.unmasked_weight"),
            "run.stage=clip",
        )
    if not config.run.validate_every:
        yield ("run.validation_samples", "run.validation_measures"), "run.validate_every=0"


def load_train_config(name: str | Path | None, settings: tuple[str, ...] | list[str] = ()) -> TrainConfig:
    """Configuration from a YAML file and `section.key=value` settings.

    Args:
        name: name of a preset, or path of a file. None means the defaults.
        settings: each overrides one value.

    Raises:
        CommandError: the file cannot be read, or a key or value does not fit. The message is one line.
    """
    return read(TrainConfig, None if name is None else find_config(name, "train"), settings)
