"""All codecs: geometry, causality, normalisation; the linear one against its own definition."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from talkforge.schemas.errors import ModelError
from talkforge.training.config import TrainConfig
from talkforge.training.wan.codec import Codec, LinearCodec, WanCodec, load_codec
from talkforge.training.wan.learned_codec import LearnedCodec
from tests.training.tiny_base import write_base
from tests.training.wan.test_learned_codec import a_decoder


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


@pytest.fixture(params=("linear", "learned", "wan"))
def codec(request: pytest.FixtureRequest, vae: AutoencoderKLWan) -> Codec:
    if request.param == "learned":
        return LearnedCodec(LinearCodec().statistics, a_decoder())
    return LinearCodec() if request.param == "linear" else WanCodec(vae)


def noise(frames: int, height: int = 16, width: int = 24, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (batch, frames, height, width, 3), generator=generator).to(torch.uint8)


def test_wan_vae_in_bf16_is_near_and_keeps_its_name(tmp_path: Path) -> None:
    """The latents are off by less than 5 % of their norm; the checksum is that of the stored weights."""
    write_base(tmp_path)
    precise, coarse = WanCodec.load(str(tmp_path)), WanCodec.load(str(tmp_path), torch.bfloat16)
    assert precise.sha256 == coarse.sha256
    generator = torch.Generator().manual_seed(0)
    rgb_BFHWC = torch.randint(0, 256, (1, 9, 32, 32, 3), generator=generator).to(torch.uint8)
    expected, found = precise.encode(rgb_BFHWC), coarse.encode(rgb_BFHWC)
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.05


def test_geometry(codec: Codec) -> None:
    latents = codec.encode(noise(9, batch=2))
    assert latents.shape == (2, 16, 3, 2, 3)
    assert latents.dtype == torch.float32
    rgb = codec.decode(latents)
    assert rgb.shape == (2, 9, 16, 24, 3) and rgb.dtype == torch.uint8
    assert codec.encode(noise(1)).shape == (1, 16, 1, 2, 3)
    assert codec.decode(codec.encode(noise(1))).shape == (1, 1, 16, 24, 3)


def differ(one: Tensor, other: Tensor) -> int:
    """Largest difference of two videos, grey levels."""
    assert one.shape == other.shape
    return int((one.int() - other.int()).abs().max())


@pytest.mark.parametrize("latents", (1, 2, 37))
def test_a_video_is_decoded_in_parts(codec: Codec, latents: int) -> None:
    found = codec.encode(noise(9))[:, :, [0, *([1, 2] * 18)]][:, :, :latents]
    parts = list(codec.decode_parts(found[0]))
    assert max(len(part) for part in parts) <= 64
    assert differ(torch.cat(parts), codec.decode(found)[0]) <= 1


@pytest.mark.parametrize("edges_px", ((64, 48), (32, 72), (24, 24)))
def test_tiles_are_decoded_in_parts(edges_px: tuple[int, int]) -> None:
    """Frames of several tiles, of one row of them, and of a single one."""
    torch.manual_seed(0)
    tiled = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    plain = WanCodec(tiled).decode(latents := torch.randn(1, 16, 3, edges_px[0] // 8, edges_px[1] // 8))
    found = WanCodec(tiled)
    found.enable_tiling()
    tiled.tile_sample_min_height = tiled.tile_sample_min_width = 32
    tiled.tile_sample_stride_height = tiled.tile_sample_stride_width = 24
    whole = found.decode(latents)
    assert differ(torch.cat(list(found.decode_parts(latents[0]))), whole[0]) <= 1
    assert (differ(whole, plain) <= 1) == (edges_px == (24, 24))


def test_lengths_that_are_not_causal_are_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match=r"4n \+ 1 frames, not 8"):
        codec.encode(noise(8))
    with pytest.raises(ValueError, match=r"4n \+ 1 frames, not 8"):
        codec.condition(noise(1)[:, 0], 8)


def test_latents_look_only_back(codec: Codec) -> None:
    rgb = noise(9)
    other = rgb.clone()
    other[:, 5:] = 0
    assert torch.equal(codec.encode(rgb)[:, :, :2], codec.encode(other)[:, :, :2])
    assert not torch.equal(codec.encode(rgb)[:, :, 2], codec.encode(other)[:, :, 2])


def test_a_batch_is_its_samples_one_by_one(codec: Codec) -> None:
    rgb = noise(5, batch=3)
    torch.testing.assert_close(codec.encode(rgb), torch.cat([codec.encode(one) for one in rgb.split(1)]))


def test_the_condition_is_a_mask_and_the_first_frame(codec: Codec) -> None:
    rgb = noise(9)
    condition = codec.condition(rgb[:, 0], 9)
    assert condition.shape == (1, 20, 3, 2, 3)
    assert condition[:, :4, 0].unique().tolist() == [1.0]
    assert condition[:, :4, 1:].unique().tolist() == [0.0]
    torch.testing.assert_close(condition[:, 4:, 0], codec.encode(rgb)[:, :, 0])
    assert torch.equal(condition[:, 4:], codec.condition(noise(5)[:, 0], 9)[:, 4:])  # same first frame


def test_the_linear_codec_is_orthonormal() -> None:
    codec = LinearCodec()
    basis_first, basis_rest = codec._first, codec._rest
    for basis in (basis_first, basis_rest):
        flat = basis.flatten(1).double()  # in float32 the order of the sums decides on the last bits
        torch.testing.assert_close(flat @ flat.T, torch.eye(16, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_linear_latent_is_the_cosine_sum_it_says() -> None:
    rgb = noise(5, 8, 8)
    latents = LinearCodec().encode(rgb)
    luma = (rgb.double() / 127.5 - 1) @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    # Channel 9 of the rest: temporal frequency 1, spatial frequency (1, 0), see _LUMA_GROUPS.
    expected = sum(
        float(luma[0, 1 + t, y, x])
        * math.sqrt(2 / 4)
        * math.cos(math.pi * (2 * t + 1) / 8)
        * math.sqrt(2 / 8)
        * math.cos(math.pi * (2 * y + 1) / 16)
        * math.sqrt(1 / 8)
        for t, y, x in itertools.product(range(4), range(8), range(8))
    )
    assert float(latents[0, 9, 1, 0, 0]) == pytest.approx(expected, abs=1e-5)


def test_pictures_that_the_basis_holds_come_back() -> None:
    codec = LinearCodec()
    latents = 0.5 * torch.randn(1, 16, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    back = codec.encode(codec.decode(latents))
    assert float((back - latents).abs().max()) < 0.06  # a step of 1/127.5 over sqrt(256) pixels


def test_fitted_latents_have_mean_0_and_deviation_1() -> None:
    batches = [noise(9), noise(13, 32, 16) // 2]
    codec = LinearCodec.fit(batches)
    latents = [codec.encode(rgb) for rgb in batches]
    for part in ("first", "rest"):
        chosen = [z[:, :, :1] if part == "first" else z[:, :, 1:] for z in latents]
        values = torch.cat([z.movedim(1, -1).reshape(-1, 16) for z in chosen])
        assert values.mean(0).abs().max() < 1e-4
        assert float(values.square().mean()) == pytest.approx(1, abs=1e-4)
    again = LinearCodec(codec.state())
    assert again.sha256 == codec.sha256 != LinearCodec().sha256
    assert torch.equal(again.encode(batches[0]), latents[0])


def test_linear_codec_keeps_a_speaking_face(clips_dir: Path) -> None:
    """Energy compaction on real footage: 1 number in 48 keeps most of the variance."""
    rgb = _faces(clips_dir / "st_katie.mp4")
    codec = LinearCodec.fit([rgb])
    back = codec.decode(codec.encode(rgb))
    error = (rgb.float() - back.float()).square().mean()
    assert float(10 * torch.log10(255**2 / error)) > 21  # dB; 21.8 seen
    variance = (rgb.float() - rgb.float().mean(dim=(0, 1, 2, 3))).square().mean()
    assert float(1 - error / variance) > 0.85  # 0.877 seen
    moved = (rgb[:, 1:].float() - rgb[:, :-1].float()).square().mean()
    lost = (
        (rgb[:, 1:].float() - rgb[:, :-1].float() - back[:, 1:].float() + back[:, :-1].float())
        .square()
        .mean()
    )
    frozen = LinearCodec.fit([rgb])
    latents = frozen.encode(rgb)
    latents[:, 8:14, 1:] = 0
    still = frozen.decode(latents).float()
    stopped = (rgb[:, 1:].float() - rgb[:, :-1].float() - still[:, 1:] + still[:, :-1]).square().mean()
    assert lost < stopped < 2 * moved  # the temporal channels do carry motion


def _faces(path: Path) -> Tensor:
    frames = []
    with av.open(str(path)) as container:
        for frame in itertools.islice(container.decode(video=0), 61):
            frames.append(
                cv2.resize(frame.to_ndarray(format="rgb24"), (64, 64), interpolation=cv2.INTER_AREA)
            )
    return torch.from_numpy(np.stack(frames))[None]


def test_wan_latents_are_normalised_by_the_models_own_figures(vae: AutoencoderKLWan) -> None:
    rgb = noise(5)
    signal = rgb.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        raw = vae.encode(signal).latent_dist.mode()
    mean = torch.tensor(vae.config.latents_mean).view(1, 16, 1, 1, 1)
    deviation = torch.tensor(vae.config.latents_std).view(1, 16, 1, 1, 1)
    torch.testing.assert_close(WanCodec(vae).encode(rgb), (raw - mean) / deviation)


def test_wan_samples_with_a_generator_and_repeats_itself(vae: AutoencoderKLWan) -> None:
    codec, rgb = WanCodec(vae), noise(5)
    drawn = [codec.encode(rgb, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], codec.encode(rgb))


def test_wan_is_loaded_from_a_diffusers_folder(vae: AutoencoderKLWan, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "vae", safe_serialization=True)
    config = TrainConfig.model_validate({"model": {"base": str(tmp_path)}})
    loaded = load_codec(config)
    assert loaded.sha256 == WanCodec(vae).sha256
    assert torch.equal(loaded.encode(noise(5)), WanCodec(vae).encode(noise(5)))


def test_a_base_without_vae_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no usable Wan VAE in its folder vae") as caught:
        WanCodec.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_vae_of_another_width_is_refused() -> None:
    with pytest.raises(ModelError, match="expected 16 latent channels, found 4"):
        WanCodec(AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1))


def test_real_wan_latents_have_the_statistics_that_the_vae_states(weights_dir: Path) -> None:
    """taehv's sample latent is normalised: near unit deviation, as our encode gives."""
    latents = torch.load(
        weights_dir / "taehv_test_latents_wan.pth", weights_only=True, map_location="cpu"
    ).float()
    assert latents.shape == (1, 16, 16, 40, 64)
    assert 0.5 < float(latents.std()) < 1.5
