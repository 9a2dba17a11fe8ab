"""Codecs from frames to latents and back: Wan's VAE, and a linear one of the same geometry.

`learned_codec.py` has a third, whose decoder is learned.

Both map 4n + 1 frames of H x W to n + 1 latent frames of 16 channels, H/8 x W/8. They are causal: the first
frame is encoded by itself, the others four at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, Self

import numpy as np
import torch
from scipy.fft import dct
from torch import Generator, Tensor
from torch.nn import functional

from talkforge.curation.weights import hub
from talkforge.schemas.errors import ModelError, one_line
from talkforge.schemas.units import LATENT_CHANNELS, LATENT_STRIDE_FRAMES, LATENT_STRIDE_PX, latent_frames
from talkforge.training.config import TrainConfig


class Codec(Protocol):
    """Frames to normalised latents and back.

    Attributes:
        kind: its name in the configuration.
        sha256: of everything that its output depends on.
    """

    kind: str
    sha256: str

    def encode(self, rgb_BFHWC: Tensor, generator: Generator | None = None) -> Tensor:
        """Normalised latents [B, 16, T, H/8, W/8] float32.

        Args:
            rgb_BFHWC: frames, uint8, F = 4n + 1.
            generator: draws a sample of the encoder's distribution. None takes its mode.
        """

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """Frames, uint8 [B, 4(T - 1) + 1, H, W, 3]."""

    def decode_parts(self, latents_CTHW: Tensor) -> Iterator[Tensor]:
        """The frames of one video in parts, uint8 [f, H, W, 3], in memory that does not grow with its length.

        Args:
            latents_CTHW: on any device.
        """

    def condition(self, rgb_BHWC: Tensor, num_frames: int) -> Tensor:
        """First-frame condition of Wan's image-to-video model, float32 [B, 20, T, H/8, W/8].

        Four channels that are 1 in the first latent frame, then the latents (the mode) of the first frame
        followed by grey. All zeros mean that it is dropped. Source: Wan2.1 image-to-video, as in diffusers.

        Args:
            rgb_BHWC: first frames, uint8.
            num_frames: frames of the span.
        """

    def to(self, device: torch.device) -> Self:
        """The codec on a device."""


def signal_of(rgb: Tensor) -> Tensor:
    """uint8 [..., F, H, W, 3] as float32 [..., 3, F, H, W], -1 to 1."""
    return rgb.movedim(-1, -4).float() / 127.5 - 1


def frames_of(signal: Tensor) -> Tensor:
    """float [..., 3, F, H, W], -1 to 1, as uint8 [..., F, H, W, 3]."""
    return ((signal.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-4, -1)


def _first_then_grey(rgb_BHWC: Tensor, num_frames: int) -> Tensor:
    first = signal_of(rgb_BHWC[:, None])
    return torch.cat([first, first.new_zeros(*first.shape[:2], num_frames - 1, *first.shape[3:])], dim=2)


def _with_mask(latents_BCTHW: Tensor) -> Tensor:
    mask = latents_BCTHW.new_zeros(len(latents_BCTHW), LATENT_STRIDE_FRAMES, *latents_BCTHW.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat([mask, latents_BCTHW], dim=1)


# --------------------------------------------------------------------------- linear

_LUMA_FIRST = 14
_LUMA_GROUPS = (8, 4, 2)
"""Luma coefficients of the first frame, and of four frames at temporal frequency 0, 1 and 2. Chroma has one
in each plane. Source: ours. Ranked by energy no temporal one would remain, and a mouth would move only every
fourth frame."""

PART_LATENTS = 16
"""Latent frames that are decoded at once where a video is decoded in parts."""

_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
"""RGB to luma and two chroma planes. Source: ITU-R BT.601."""


class LinearCodec:
    """A truncated orthonormal 3-D DCT. It needs no weights, and its frames are blurred.

    Latents are the coefficients minus their mean, divided by one standard deviation for all channels,
    separately for the first frame and for the rest. With a standard deviation for each channel, every faint
    high frequency would count as much as the frame's brightness.
    """

    kind = "linear"

    def __init__(self, statistics: Mapping[str, Tensor] | None = None) -> None:
        """A codec with the statistics of a data set.

        Args:
            statistics: as the property gives them. None means that coefficients are not shifted and scaled.
        """
        found = statistics or {
            "mean_first": torch.zeros(LATENT_CHANNELS),
            "mean_rest": torch.zeros(LATENT_CHANNELS),
            "deviation": torch.ones(2),
        }
        self._statistics = {name: found[name].float() for name in ("mean_first", "mean_rest", "deviation")}
        self._first = _basis([(0, pair) for pair in _zigzag(_LUMA_FIRST)], 1)
        self._rest = _basis(
            [(t, pair) for t, count in enumerate(_LUMA_GROUPS) for pair in _zigzag(count)],
            LATENT_STRIDE_FRAMES,
        )
        self._ycc = _YCC
        self._kernels = tuple(_of_rgb(basis) for basis in (self._first, self._rest))
        digest = hashlib.sha256()
        for tensor in (self._first, self._rest, *self._statistics.values()):
            digest.update(tensor.numpy().tobytes())
        self.sha256 = digest.hexdigest()

    @classmethod
    def fit(cls, batches: Iterable[Tensor]) -> LinearCodec:
        """A codec whose latents have mean 0 and standard deviation 1 over `batches`.

        Args:
            batches: frames, uint8 [B, F, H, W, 3] with F > 1.
        """
        raw = cls()
        sums = {"first": _Sums(), "rest": _Sums()}
        for rgb_BFHWC in batches:
            latents = raw.encode(rgb_BFHWC)
            sums["first"].add(latents[:, :, :1])
            sums["rest"].add(latents[:, :, 1:])
        return cls(
            {
                "mean_first": sums["first"].mean(),
                "mean_rest": sums["rest"].mean(),
                "deviation": torch.stack([sums["first"].std(), sums["rest"].std()]),
            }
        )

    @property
    def statistics(self) -> dict[str, Tensor]:
        """Tensors that `LinearCodec(statistics)` takes, on the CPU."""
        return {name: tensor.cpu().clone() for name, tensor in self._statistics.items()}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return self.statistics

    def encode(self, rgb_BFHWC: Tensor, generator: Generator | None = None) -> Tensor:  # noqa: ARG002
        """See `Codec.encode`. There is nothing to sample."""
        first = self._encode_first(rgb_BFHWC[:, :1])
        if latent_frames(rgb_BFHWC.shape[1]) == 1:
            return first
        return torch.cat([first, self._scaled_rest(_analysed(rgb_BFHWC[:, 1:], self._kernels[1]))], dim=2)

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """See `Codec.decode`."""
        return frames_of(self.signal(latents_BCTHW))

    def signal(self, latents_BCTHW: Tensor) -> Tensor:
        """The frames before they are rounded, float32 [B, 3, F, H, W], -1 to 1 and a little beyond."""
        std, found = self._statistics["deviation"], []
        first = latents_BCTHW[:, :, :1].float() * std[0] + _column(self._statistics["mean_first"])
        found.append(_from_blocks(first, self._first))
        if latents_BCTHW.shape[2] > 1:
            rest = latents_BCTHW[:, :, 1:].float() * std[1] + _column(self._statistics["mean_rest"])
            found.append(_from_blocks(rest, self._rest))
        ycc = torch.cat(found, dim=2)
        to_rgb = torch.linalg.inv(self._ycc)
        signal: Tensor = torch.einsum("rc,bcfhw->brfhw", to_rgb, ycc)
        return signal

    def decode_parts(self, latents_CTHW: Tensor) -> Iterator[Tensor]:
        """See `Codec.decode_parts`."""
        first = latents_CTHW[None, :, :1].to(self._first.device)
        yield self.decode(first)[0]
        for part in latents_CTHW[:, 1:].split(PART_LATENTS, dim=1):
            yield self.decode(torch.cat([first, part[None].to(first)], dim=2))[0, 1:]

    def condition(self, rgb_BHWC: Tensor, num_frames: int) -> Tensor:
        """See `Codec.condition`."""
        first = self._encode_first(rgb_BHWC[:, None])
        grey = self._scaled_rest(first.new_zeros(1, LATENT_CHANNELS, 1, 1, 1))
        rest = grey.expand(len(first), -1, latent_frames(num_frames) - 1, *first.shape[3:])
        return _with_mask(torch.cat([first, rest], dim=2))

    def to(self, device: torch.device) -> Self:
        """See `Codec.to`."""
        self._statistics = {name: tensor.to(device) for name, tensor in self._statistics.items()}
        self._first, self._rest = self._first.to(device), self._rest.to(device)
        self._ycc = self._ycc.to(device)
        self._kernels = tuple(kernel.to(device) for kernel in self._kernels)
        return self

    def _encode_first(self, rgb_B1HWC: Tensor) -> Tensor:
        found = _analysed(rgb_B1HWC, self._kernels[0])
        return (found - _column(self._statistics["mean_first"])) / self._statistics["deviation"][0]

    def _scaled_rest(self, coefficients_BCTHW: Tensor) -> Tensor:
        shifted = coefficients_BCTHW - _column(self._statistics["mean_rest"])
        return shifted / self._statistics["deviation"][1]


class _Sums:
    """Mean of each channel, and one standard deviation around the means."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = torch.zeros(LATENT_CHANNELS, dtype=torch.float64)
        self._squares = torch.zeros(LATENT_CHANNELS, dtype=torch.float64)

    def add(self, latents_BCTHW: Tensor) -> None:
        values = latents_BCTHW.double().movedim(1, -1).reshape(-1, LATENT_CHANNELS).cpu()
        self._count += len(values)
        self._sum += values.sum(0)
        self._squares += values.square().sum(0)

    def mean(self) -> Tensor:
        if not self._count:
            raise ValueError("no latents to fit the codec's statistics to")
        return (self._sum / self._count).float()

    def std(self) -> Tensor:
        variance = self._squares / self._count - (self._sum / self._count).square()
        return variance.mean().clamp(min=1e-12).sqrt().float()


def _zigzag(count: int) -> list[tuple[int, int]]:
    """The lowest (vertical, horizontal) frequencies of a block. Vertical ones first: mouths open so."""
    frequencies = [(y, x) for y in range(LATENT_STRIDE_PX) for x in range(LATENT_STRIDE_PX)]
    return sorted(frequencies, key=lambda pair: (sum(pair), -pair[0]))[:count]


def _basis(luma: list[tuple[int, tuple[int, int]]], frames: int) -> Tensor:
    """Basis functions, float32 [16, 3, frames, 8, 8], orthonormal: `luma`, then the mean of both chromas."""
    in_time, in_space = _dct(frames), _dct(LATENT_STRIDE_PX)
    basis = torch.zeros(LATENT_CHANNELS, 3, frames, LATENT_STRIDE_PX, LATENT_STRIDE_PX)
    for channel, (t, (y, x)) in enumerate(luma):
        basis[channel, 0] = torch.einsum("t,y,x->tyx", in_time[t], in_space[y], in_space[x])
    for plane in (1, 2):
        basis[LATENT_CHANNELS - 3 + plane, plane] = torch.einsum(
            "t,y,x->tyx", in_time[0], in_space[0], in_space[0]
        )
    return basis


def _dct(length: int) -> Tensor:
    """Orthonormal DCT-II, one row for each frequency."""
    return torch.from_numpy(dct(np.eye(length), axis=0, norm="ortho")).float()


def _of_rgb(basis: Tensor) -> Tensor:
    """The basis functions for RGB instead of luma and chroma, [16, 3, frames, 8, 8]."""
    return torch.einsum("kcfyx,cr->krfyx", basis, _YCC).contiguous()


def _analysed(rgb_BFHWC: Tensor, kernel: Tensor) -> Tensor:
    """Coefficients [B, 16, T, H/8, W/8] of uint8 frames, block by block."""
    # The frames stay 0..255: scale and offset of `signal_of` cost less on the coefficients.
    rgb_BCFHW = rgb_BFHWC.movedim(-1, 1).to(torch.float32, memory_format=torch.contiguous_format)
    found = functional.conv3d(rgb_BCFHW, kernel, stride=kernel.shape[2:])
    return found / 127.5 - _column(kernel.sum(dim=(1, 2, 3, 4)))


def _from_blocks(coefficients_BCTHW: Tensor, basis: Tensor) -> Tensor:
    blocks = torch.einsum("bkthw,kcfyx->bctfhywx", coefficients_BCTHW, basis)
    return blocks.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _column(channels: Tensor) -> Tensor:
    return channels.view(1, -1, 1, 1, 1)


# --------------------------------------------------------------------------- Wan


class WanCodec:
    """Wan's causal 3-D VAE by diffusers, frozen, one sample at a time.

    Latents are normalised as (z - mean) / std with the VAE's own figures per channel.
    """

    kind = "wan"

    def __init__(self, vae: Any, sha256: str = "") -> None:
        """A codec of a loaded VAE.

        Args:
            vae: diffusers' `AutoencoderKLWan` with 16 channels.
            sha256: of its weights. Empty: it is computed.

        Raises:
            ModelError: it has another number of channels.
        """
        if vae.config.z_dim != LATENT_CHANNELS:
            raise ModelError(f"VAE: expected {LATENT_CHANNELS} latent channels, found {vae.config.z_dim}")
        self._vae = vae.requires_grad_(False).eval()
        self._mean = _column(torch.tensor(vae.config.latents_mean, dtype=torch.float32))
        self._deviation = _column(torch.tensor(vae.config.latents_std, dtype=torch.float32))
        self.sha256 = sha256 or _weights_sha256(vae)

    @classmethod
    def load(cls, base: str, dtype: torch.dtype = torch.float32) -> WanCodec:
        """The VAE in the folder `vae` of a diffusers model.

        Args:
            base: folder of the model, or its name on the hub.
            dtype: in which it computes. `sha256` is that of its weights in float32.

        Raises:
            ModelError: it is missing or damaged.
        """
        from diffusers import AutoencoderKLWan

        local = hub.is_local(base, "vae/config.json", "model.base")
        try:
            vae = AutoencoderKLWan.from_pretrained(
                base, subfolder="vae", use_safetensors=True, local_files_only=local
            )
        except Exception as error:  # libraries below raise many kinds
            reason = one_line(error, 300)
            raise ModelError(f"model.base {base}: no usable Wan VAE in its folder vae: {reason}") from None
        sha256 = _weights_sha256(vae)
        for parameter in vae.parameters():
            parameter.data = parameter.data.to(dtype)
        return cls(vae, sha256)

    def enable_tiling(self) -> None:
        """Encode and decode frames in tiles that overlap, larger than 256 px."""
        self._vae.enable_tiling()

    def encode(self, rgb_BFHWC: Tensor, generator: Generator | None = None) -> Tensor:
        """See `Codec.encode`."""
        latent_frames(rgb_BFHWC.shape[1])
        return self._encode(signal_of(rgb_BFHWC), generator)

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """See `Codec.decode`."""
        raw = (latents_BCTHW.float() * self._deviation + self._mean).to(self._vae.dtype)
        with torch.no_grad():
            return torch.cat([frames_of(self._vae.decode(one).sample) for one in raw.split(1)])

    def decode_parts(self, latents_CTHW: Tensor) -> Iterator[Tensor]:
        """See `Codec.decode_parts`. A part is a latent frame, decoded with what the VAE kept of those before.

        This is `AutoencoderKLWan._decode` and `tiled_decode` of diffusers 0.42, one latent frame at a time.
        """
        parts = _Parts(self._vae)
        for number, latent_CHW in enumerate(latents_CTHW.unbind(1)):
            one = latent_CHW[None, :, None].to(self._mean.device).float() * self._deviation + self._mean
            with torch.no_grad():
                yield frames_of(parts.decoded(one.to(self._vae.dtype), first=number == 0))[0]

    def condition(self, rgb_BHWC: Tensor, num_frames: int) -> Tensor:
        """See `Codec.condition`."""
        latent_frames(num_frames)
        return _with_mask(self._encode(_first_then_grey(rgb_BHWC, num_frames), None))

    def to(self, device: torch.device) -> Self:
        """See `Codec.to`."""
        self._vae = self._vae.to(device)
        self._mean, self._deviation = self._mean.to(device), self._deviation.to(device)
        return self

    def _encode(self, signal_BCFHW: Tensor, generator: Generator | None) -> Tensor:
        found = []
        with torch.no_grad():
            for one in signal_BCFHW.to(self._vae.dtype).split(1):
                distribution = self._vae.encode(one).latent_dist
                found.append(distribution.mode() if generator is None else distribution.sample(generator))
        return (torch.cat(found).float() - self._mean) / self._deviation


class _Parts:
    """Decodes latent frames one after the other. Each tile keeps the features of its causal convolutions."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._kept: dict[tuple[int, int], list[Tensor | None]] = {}

    def decoded(self, latent_BC1HW: Tensor, *, first: bool) -> Tensor:
        """One frame or four, [B, 3, f, H, W]."""
        vae, (height, width) = self._vae, latent_BC1HW.shape[3:]
        least = vae.tile_sample_min_height // LATENT_STRIDE_PX, vae.tile_sample_min_width // LATENT_STRIDE_PX
        if not vae.use_tiling or (height <= least[0] and width <= least[1]):
            return self._tile(latent_BC1HW, (0, 0), first)
        step_px = vae.tile_sample_stride_height, vae.tile_sample_stride_width
        blend_px = vae.tile_sample_min_height - step_px[0], vae.tile_sample_min_width - step_px[1]
        above: list[Tensor] = []
        rows = []
        for top in range(0, height, step_px[0] // LATENT_STRIDE_PX):
            row: list[Tensor] = []
            for left in range(0, width, step_px[1] // LATENT_STRIDE_PX):
                tile = latent_BC1HW[..., top : top + least[0], left : left + least[1]]
                row.append(self._tile(tile, (top, left), first))
            for k, tile in enumerate(row):
                blended = vae.blend_v(above[k], tile, blend_px[0]) if above else tile
                row[k] = vae.blend_h(row[k - 1], blended, blend_px[1]) if k else blended
            rows.append(torch.cat([tile[..., : step_px[0], : step_px[1]] for tile in row], dim=-1))
            above = row
        whole = torch.cat(rows, dim=-2)
        return whole[..., : height * LATENT_STRIDE_PX, : width * LATENT_STRIDE_PX]

    def _tile(self, latent: Tensor, place: tuple[int, int], first: bool) -> Tensor:
        vae = self._vae
        if first:
            vae.clear_cache()
            self._kept[place] = vae._feat_map
        frames: Tensor = vae.decoder(
            vae.post_quant_conv(latent), feat_cache=self._kept[place], feat_idx=[0], first_chunk=first
        )
        return frames


def _weights_sha256(module: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def training_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """In which frozen encoders compute for training: bf16 on a GPU where the run has that precision."""
    halved = device.type == "cuda" and config.run.precision == "bf16"
    return torch.bfloat16 if halved else torch.float32


def load_codec(config: TrainConfig, dtype: torch.dtype = torch.float32) -> Codec:
    """The codec that `config.codec.kind` names. `training.run.codecs` fits all but Wan's.

    Args:
        config: of the run.
        dtype: in which Wan's VAE computes.

    Raises:
        ModelError: the VAE's weights are missing or damaged.
    """
    return WanCodec.load(config.model.base, dtype) if config.codec.kind == "wan" else LinearCodec()
