"""Savings of memory and time: what they change, and what they leave as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from talkforge.schemas.errors import CommandError, ModelError
from talkforge.training.generate import savings
from talkforge.training.generate.savings import Savings, StepCache, merge_lora
from talkforge.training.wan.codec import LinearCodec
from tests.training.models import awake, conditions, latents, wan

CPU = torch.device("cpu")
LAYER = "blocks.1.attn1.to_q"


def velocity(model: Any) -> Tensor:
    return velocity_of(model, *latents())


def velocity_of(model: Any, x: Tensor, timestep: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(
            x, torch.tensor([500.0, 500.0]) if timestep is None else timestep, conditions("frame")
        )
    return found


# --------------------------------------------------------------------------- low-rank updates


def updates(name: str, rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{name}.lora_down.weight": torch.randn(rank, 24, generator=generator),
        f"{name}.lora_up.weight": torch.randn(24, rank, generator=generator),
    }


def test_updates_are_added_to_the_weights(tmp_path: Path) -> None:
    """In the layouts of LightX2V (original names, down and up) and of diffusers (A and B)."""
    state = updates("diffusion_model.blocks.1.self_attn.q")
    down, up = state.values()
    bias = torch.arange(24.0)
    save_file(
        state | {"diffusion_model.blocks.1.self_attn.q.diff_b": bias}, tmp_path / "original.safetensors"
    )
    theirs = {
        f"transformer.{LAYER}.lora_A.weight": down,
        f"transformer.{LAYER}.lora_B.weight": up.contiguous(),
        f"transformer.{LAYER}.lora_B.bias": bias,
    }
    save_file(theirs, tmp_path / "diffusers.safetensors")
    for name in ("original", "diffusers"):
        model, stock = wan("condition"), wan("condition")
        merge_lora(model, tmp_path / f"{name}.safetensors")
        before, after = dict(stock.named_parameters()), dict(model.named_parameters())
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed == {f"{LAYER}.weight", f"{LAYER}.bias"}
        torch.testing.assert_close(after[f"{LAYER}.weight"], before[f"{LAYER}.weight"] + up @ down)
        torch.testing.assert_close(after[f"{LAYER}.bias"], before[f"{LAYER}.bias"] + bias)


def test_a_scale_in_the_file_counts(tmp_path: Path) -> None:
    state = updates("diffusion_model.blocks.1.self_attn.q")
    save_file(
        state | {"diffusion_model.blocks.1.self_attn.q.alpha": torch.tensor(1.0)}, tmp_path / "a.safetensors"
    )
    model, stock = wan("condition"), wan("condition")
    merge_lora(model, tmp_path / "a.safetensors")
    down, up = state.values()
    added = model.get_parameter(f"{LAYER}.weight") - stock.get_parameter(f"{LAYER}.weight")
    torch.testing.assert_close(added, 0.5 * up @ down, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("state", "message"),
    (
        (
            {f"transformer.{LAYER}.lora_A.weight": (2, 99), f"transformer.{LAYER}.lora_B.weight": (24, 2)},
            r"does not fit the model: blocks.1.attn1.to_q: expected \(24, 24\), found \(24, 99\)$",
        ),
        (
            {
                "transformer.blocks.9.attn1.to_q.lora_A.weight": (2, 24),
                "transformer.blocks.9.attn1.to_q.lora_B.weight": (24, 2),
            },
            "does not fit the model, which has no layer blocks.9.attn1.to_q$",
        ),
        (
            {"transformer.something.weight": (2, 2)},
            "expected low-rank updates of Wan, found something.weight$",
        ),
        ({f"transformer.{LAYER}.lora_A.weight": (2, 24)}, "expected lora_A and lora_B, found lora_A alone$"),
    ),
)
def test_updates_of_another_model_are_refused(
    tmp_path: Path, state: dict[str, tuple[int, int]], message: str
) -> None:
    save_file({name: torch.ones(shape) for name, shape in state.items()}, tmp_path / "a.safetensors")
    model, stock = wan("condition"), wan("condition")
    with pytest.raises(ModelError, match=message) as caught:
        merge_lora(model, tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), stock.parameters(), strict=True))


def test_a_pickled_file_of_updates_is_not_read(tmp_path: Path) -> None:
    torch.save(updates("x"), tmp_path / "a.pt")
    with pytest.raises(ModelError, match="expected safetensors, found"):
        merge_lora(wan("condition"), tmp_path / "a.pt")


# --------------------------------------------------------------------------- memory


def test_blocks_that_wait_in_main_memory_compute_the_same() -> None:
    expected = velocity(awake())
    model = awake()
    savings.apply(model, LinearCodec(), Savings(offload="group"), CPU)
    torch.testing.assert_close(velocity(model), expected)


def test_weights_of_8_bits_take_a_quarter_and_nearly_compute_the_same() -> None:
    model = awake()
    expected = velocity(model)
    block = model.transformer.blocks[0]
    linear = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
    before = sum(m.weight.nbytes for m in linear)
    savings.apply(model, LinearCodec(), Savings(fp8=True), CPU)
    assert {m.weight.dtype for m in linear} == {torch.float8_e4m3fn}
    assert sum(m.weight.nbytes for m in linear) * 4 == before
    found = velocity(model)
    difference = float((found - expected).norm() / expected.norm())
    assert 0 < difference < 0.2


def test_what_is_no_saving_is_refused() -> None:
    with pytest.raises(CommandError, match=r"^--offload disk: expected none, model, group$"):
        savings.apply(awake(), LinearCodec(), Savings(offload="disk"), CPU)
    with pytest.raises(
        CommandError, match=r"^--vae-tiling: the codec of this model is linear, which needs none$"
    ):
        savings.apply(awake(), LinearCodec(), Savings(vae_tiling=True), CPU)
    with pytest.raises(CommandError, match=r"^--dtype float16: expected auto, float32 or bfloat16$"):
        savings.dtype_of("float16", CPU)
    assert savings.dtype_of("auto", CPU) is torch.float32
    assert savings.dtype_of("auto", torch.device("cuda")) is torch.bfloat16


# --------------------------------------------------------------------------- step caching


def cached(cache: StepCache, model: Any, x: Tensor, name: str) -> Tensor:
    with torch.no_grad(), cache.call(name):
        found: Tensor = model(x, torch.tensor([500.0, 500.0]), conditions("frame"))
    return found


def counted(model: Any) -> list[int]:
    """A list that grows with each call that goes through all blocks."""
    calls: list[int] = []
    model.transformer.blocks[1].attn1.to_q.register_forward_hook(lambda *_: calls.append(1))
    return calls


def kept_bytes(cache: StepCache) -> int:
    """Bytes of everything that is kept between two calls."""
    assert cache._states is not None
    parts = [value for state in cache._states.values() for value in vars(state).values()]
    flat = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
    return sum(one.nbytes for one in flat if isinstance(one, Tensor))


def test_a_step_that_changes_little_reuses_the_blocks() -> None:
    model = awake()
    x, _ = latents()
    calls = counted(model)
    cache = StepCache(model, 0.2, CPU)
    first = cached(cache, model, x, "a/0+1")
    again = cached(cache, model, x + 1e-3, "a/0+1")
    assert len(calls) == 1 and not torch.equal(first, again)
    cached(cache, model, x, "b/0+1")  # another window has its own
    cached(cache, model, -3 * x, "a/0+1")  # and a large change is computed
    assert len(calls) == 3
    cache = StepCache(model, 0.2, CPU)  # another video begins with nothing
    torch.testing.assert_close(cached(cache, model, x, "a/0+1"), first)
    assert len(calls) == 4
    cached(StepCache(model, 0, CPU), model, x, "a/0+1")
    assert not model.transformer.is_cache_enabled
    assert torch.equal(velocity(model), velocity(awake()))


def test_windows_without_a_place_are_computed_in_full(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is kept does not grow with the number of windows, and the others are what they would be."""
    model = awake()
    x, _ = latents()
    plain = velocity_of(awake(), x)
    calls = counted(model)
    cache = StepCache(model, 0.2, CPU)
    cached(cache, model, x, "window 0/0+1")
    one = kept_bytes(cache)
    tokens, width = (
        2 * x.shape[2] * x.shape[3] * x.shape[4] // 4,
        model.transformer.config.attention_head_dim * 2,
    )
    assert one == 2 * 4 * tokens * width  # two float32 tensors of all video tokens
    monkeypatch.setattr(savings, "MOST_CACHED_BYTES", 3 * one)
    for number in range(1, 9):
        cached(cache, model, x, f"window {number}/0+1")
    assert kept_bytes(cache) == 3 * one and len(calls) == 9
    (text,) = caplog.messages
    assert text.startswith(
        "step caching keeps 0.0 GB at the most: window 3 and those after it are computed in full"
    )
    for number in range(9):
        torch.testing.assert_close(cached(cache, model, x, f"window {number}/0+1"), plain)
    assert len(calls) == 9 + 6 and kept_bytes(cache) == 3 * one


def test_of_windows_one_after_the_other_the_last_is_kept() -> None:
    model = awake()
    x, _ = latents()
    cache = StepCache(model, 0.2, CPU, one_window=True)
    sizes = []
    for number in range(3):
        for first in (0, 1):
            cached(cache, model, x, f"window {number}/{first}+1")
        sizes.append(kept_bytes(cache))
    assert sizes == [sizes[0]] * 3 and sizes[0] > 0


def test_a_call_that_fails_leaves_nothing() -> None:
    model = awake()
    x, _ = latents()
    cache = StepCache(model, 0.2, CPU)
    cached(cache, model, x, "a/0+1")
    handle = model.transformer.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cached(cache, model, -3 * x, "a/0+1")
    handle.remove()
    assert kept_bytes(cache) == 0
    plain = velocity_of(awake(), -3 * x)
    torch.testing.assert_close(cached(cache, model, -3 * x, "a/0+1"), plain)


def test_what_waits_in_main_memory_is_cached_as_well() -> None:
    x, _ = latents()
    found = []
    for offload in ("none", "group"):
        model = awake()
        savings.apply(model, LinearCodec(), Savings(offload=offload), CPU)
        cache = StepCache(model, 0.2, CPU)
        found.append([cached(cache, model, one, "a/0+1") for one in (x, x + 1e-3)])
    for plain, offloaded in zip(*found, strict=True):
        torch.testing.assert_close(offloaded, plain)
