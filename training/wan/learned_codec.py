"""A codec whose decoder is learned from the data set's clips: the linear codec's latents, without its blocks.

The encoder is `LinearCodec`'s, so that latents cost nothing and have its scale. A small convolutional
network, fitted before the first training step, adds to each decoded frame what the truncated transform left
out. It is causal: four frames are decoded from their own latent frame and the one before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from talkforge.schemas.errors import ModelError, one_line
from talkforge.schemas.units import LATENT_CHANNELS, LATENT_STRIDE_FRAMES
from talkforge.training.data.batch import Batch
from talkforge.training.wan.codec import PART_LATENTS, LinearCodec, frames_of, signal_of

WIDTH = 96
"""Channels at the size of the latents; half of them at twice that size (ours)."""

LEARNING_RATE, WARMUP_STEPS = 2e-3, 20
"""Of AdamW, and of the ramp to it. A cosine leads back to zero (ours)."""

LATENT_NOISE = 0.05
"""Standard deviation of the noise on the latents while fitting: generated latents are not exact."""

LIPS_WEIGHT, ABSOLUTE_WEIGHT, CHANGE_WEIGHT = 4.0, 0.1, 0.5
"""Added weight of the lips' pixels, and weights of the absolute error and of the squared error of the change
from frame to frame, beside the squared error (ours)."""

_LIPS_PX = 5
"""The lips' mask is dilated by a square of this edge."""


class LearnedCodec(LinearCodec):
    """The linear codec with a learned decoder."""

    kind = "learned"

    def __init__(self, statistics: Mapping[str, Tensor], network: Decoder) -> None:
        """A codec of a fitted network.

        Args:
            statistics: see `LinearCodec`.
            network: in float32, on the CPU.
        """
        super().__init__(statistics)
        self._network = network.requires_grad_(False).eval()
        digest = hashlib.sha256(self.sha256.encode())
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        self.sha256 = digest.hexdigest()

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], name: str) -> LearnedCodec:
        """The codec that gave a `state`.

        Args:
            state: tensors by name.
            name: of the file, for messages.

        Raises:
            ModelError: a tensor is missing, of another shape, or not what was written.
        """
        parts: dict[str, dict[str, Tensor]] = {"statistics": {}, "network": {}, "sha256": {}}
        for key, tensor in state.items():
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        expected = {"mean_first", "mean_rest", "deviation"}
        if parts["statistics"].keys() != expected or not parts["sha256"]:
            raise ModelError(f"{name}: expected the codec of codec.kind=learned, found {sorted(state)[:6]}")
        network = Decoder()
        try:
            network.load_state_dict(parts["network"])
        except RuntimeError as error:
            raise ModelError(f"{name}: {one_line(error, 200)}") from None
        codec = cls(parts["statistics"], network)
        if bytes(parts["sha256"][""].tolist()).hex() != codec.sha256:
            raise ModelError(f"{name}: its tensors are not those that were written (sha256 {codec.sha256})")
        return codec

    def state(self) -> dict[str, Tensor]:
        """Tensors that `of_state` takes, among them the sha256 of the others."""
        tensors = {f"statistics.{name}": tensor for name, tensor in self.statistics.items()}
        tensors |= {f"network.{name}": tensor.cpu() for name, tensor in self._network.state_dict().items()}
        return {**tensors, "sha256": torch.tensor(list(bytes.fromhex(self.sha256)), dtype=torch.uint8)}

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """See `Codec.decode`."""
        with torch.no_grad():
            return frames_of(decoded(self, self._network, latents_BCTHW.float()))

    def decode_parts(self, latents_CTHW: Tensor) -> Iterator[Tensor]:
        """See `Codec.decode_parts`."""
        latents = latents_CTHW[None].to(self._first.device)
        yield self.decode(latents[:, :, :1])[0]
        for first in range(1, latents.shape[2], PART_LATENTS):
            # With the two latent frames before: the decoder takes the first of a video for its beginning.
            begin = max(0, first - 2)
            part = self.decode(latents[:, :, begin : first + PART_LATENTS])[0]
            yield part[1 + LATENT_STRIDE_FRAMES * (first - begin - 1) :]

    def to(self, device: torch.device) -> Self:
        """See `Codec.to`."""
        self._network = self._network.to(device)
        return super().to(device)


class Decoder(nn.Module):  # type: ignore[misc]
    """What is to be added to the linearly decoded signal. Zero at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _branch(LATENT_CHANNELS, 1)
        self.rest = _branch(2 * LATENT_CHANNELS + 1, LATENT_STRIDE_FRAMES)

    def forward(self, latents_BCTHW: Tensor) -> Tensor:
        """Correction of every frame, [B, 3, 4(T - 1) + 1, 8 H, 8 W]."""
        batch, _, latents, height, width = latents_BCTHW.shape
        found = [self.first(latents_BCTHW[:, :, 0]).unflatten(1, (3, 1))]
        if latents > 1:
            # Latents of the first frame have another meaning than those of four: a channel says which it is.
            begins = latents_BCTHW.new_zeros(batch, 1, latents - 1, height, width)
            begins[:, :, 0] = 1
            given = torch.cat([latents_BCTHW[:, :, 1:], latents_BCTHW[:, :, :-1], begins], dim=1)
            groups = self.rest(given.movedim(2, 1).flatten(0, 1)).unflatten(1, (3, LATENT_STRIDE_FRAMES))
            found.append(groups.unflatten(0, (batch, -1)).movedim(1, 2).flatten(2, 3))
        return torch.cat(found, dim=2)


class _Residual(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        _set_zero(self.layers[3])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _branch(channels: int, frames: int) -> nn.Sequential:
    """Latents [N, channels, H, W] to frames [N, 3 * frames, 8 H, 8 W]."""
    out = nn.Conv2d(WIDTH // 2, 3 * frames * 16, 3, padding=1)
    _set_zero(out)
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3, padding=1),
        _Residual(WIDTH),
        _Residual(WIDTH),
        nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1),
        nn.PixelShuffle(2),
        _Residual(WIDTH // 2),
        _Residual(WIDTH // 2),
        nn.SiLU(),
        out,
        nn.PixelShuffle(4),
    )


def _set_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def decoded(codec: LinearCodec, network: Decoder, latents_BCTHW: Tensor) -> Tensor:
    """The signal that latents mean, float32 [B, 3, F, H, W], -1 to 1 and a little beyond.

    Args:
        codec: has the transform.
        network: adds to it.
        latents_BCTHW: float32.
    """
    correction: Tensor = network(latents_BCTHW)
    return codec.signal(latents_BCTHW) + correction


def fit_decoder(
    linear: LinearCodec,
    batches: Iterator[Batch],
    steps: int,
    seed: int,
    device: torch.device,
    show: Callable[[int], None] = lambda _: None,
) -> LearnedCodec:
    """A codec whose decoder is fitted to the frames of some batches.

    The loss is the squared and the absolute error of the frames and the squared error of their change. Lips
    count more in it, see `LIPS_WEIGHT`.

    Args:
        linear: with the statistics of the data set.
        batches: one for each step, with frames.
        steps: of AdamW.
        seed: of weights and noise.
        device: where it is computed.
        show: called with the number of each step that is done.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = Decoder()
    linear, network = linear.to(device), network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP_STEPS, total_iters=WARMUP_STEPS),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - WARMUP_STEPS)),
        ],
        [WARMUP_STEPS],
    )
    generator = torch.Generator().manual_seed(seed)
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        assert batch.rgb_BFHWC is not None, "a codec is fitted to frames"
        rgb_BFHWC = batch.rgb_BFHWC.to(device)
        latents = linear.encode(rgb_BFHWC)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        found = decoded(linear, network, latents + LATENT_NOISE * noise)
        loss = _loss(found, signal_of(rgb_BFHWC), _weights(batch.lips_BFHW.to(device)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        show(step)
    there = torch.device("cpu")
    return LearnedCodec(linear.statistics, network.to(there))


def _weights(lips_BFHW: Tensor) -> Tensor:
    """Weight of each pixel, [B, 1, F, H, W]."""
    wide = functional.max_pool2d(lips_BFHW.float(), _LIPS_PX, stride=1, padding=_LIPS_PX // 2)
    return 1 + LIPS_WEIGHT * wide.unsqueeze(1)


def _loss(found: Tensor, true: Tensor, weights: Tensor) -> Tensor:
    error = found - true
    loss = ((error.square() + ABSOLUTE_WEIGHT * error.abs()) * weights).mean()
    if error.shape[2] > 1:
        loss = loss + CHANGE_WEIGHT * (error.diff(dim=2).square() * weights[:, :, 1:]).mean()
    return loss
