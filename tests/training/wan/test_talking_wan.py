from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from talkforge.schemas.errors import CommandError, ModelError
from talkforge.training.config import AdapterConfig, ModelConfig
from talkforge.training.data.batch import Conditions
from talkforge.training.wan.alignment import windows
from talkforge.training.wan.talking_wan import TalkingWan, adapter_parameters, build, cast, set_trainable
from tests.training.models import (
    ADAPTERS,
    FEATURES,
    FRAMES,
    INFO,
    KINDS,
    LATENTS,
    SPEECH_DIM,
    adapters_with,
    awake,
    conditions,
    latents,
    run_config,
    talking,
    wan,
)


def stock(model: WanTransformer3DModel, x: Tensor, timestep: Tensor, given: Conditions) -> Tensor:
    """The output of diffusers' own model."""
    dtype = model.patch_embedding.weight.dtype
    parts = [x, given.condition_BCTHW] if model.config.in_channels == 36 else [x]
    image = given.image_BKD.to(dtype) if model.config.image_dim and given.image_BKD is not None else None
    hidden = torch.cat(parts, 1).to(dtype)
    output: Tensor = model(hidden, timestep, given.text_BSD.to(dtype), image, return_dict=False)[0]
    return output.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", ["clip", "frame"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_model_is_stock_wan(kind: str, stage: str, dtype: torch.dtype) -> None:
    model = talking(kind)
    set_trainable(model, ModelConfig())
    cast(model, dtype)
    own = copy.deepcopy(model.transformer)
    own.condition_embedder._forward_hooks.clear()
    for block in own.blocks:
        block.attn2.set_processor(block.attn2._default_processor_cls())
    x, timestep = latents()
    given = conditions(stage, text_tokens=512)
    expected = stock(own, x, timestep, given)
    assert expected.std() > 0.1
    assert torch.equal(model(x, timestep, given), expected)
    model.enable_gradient_checkpointing()
    assert torch.equal(model(x, timestep, given), expected)


@pytest.mark.parametrize("stage", ["clip", "frame"])
def test_under_autocast_an_untrained_model_is_stock_wan(stage: str) -> None:
    model, own = talking("image"), wan("image")
    x, timestep = latents()
    given = conditions(stage, text_tokens=512)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x, timestep, given), stock(own, x, timestep, given))


def test_dropped_audio_and_face_leave_stock_wan() -> None:
    model = awake(config=adapters_with(motion=False))
    x, timestep = latents()
    given = replace(conditions("frame"), audio_scale_B=torch.zeros(2), face_scale_B=torch.zeros(2))
    expected = stock(wan("condition"), x, timestep, given)
    assert torch.equal(model(x, timestep, given), expected)
    with torch.no_grad():  # where audio is not computed at all
        assert torch.equal(model(x, timestep, given), expected)


@pytest.mark.parametrize("stage", ["clip", "frame"])
@pytest.mark.parametrize(
    "config", [ADAPTERS, adapters_with(window_positions=True)], ids=["plain", "positions"]
)
def test_a_batch_is_as_good_as_one_by_one(stage: str, config: AdapterConfig) -> None:
    model = awake("image", config)
    x, timestep = latents(3)
    given = conditions(stage, 3)
    batched = model(x, timestep, given)
    for b in range(3):
        alone = {
            name: value[b : b + 1] if isinstance(value, Tensor) else value
            for name, value in vars(given).items()
        }
        single = model(x[b : b + 1], timestep[b : b + 1], Conditions(**alone))
        torch.testing.assert_close(batched[b : b + 1], single, rtol=1e-4, atol=1e-5)


def first_attended(model: TalkingWan, given: Conditions) -> Tensor:
    """What the first block's cross-attention adds, [B, T, h * w, C]; its queries do not know the audio."""
    seen: list[Tensor] = []
    handle = model.transformer.blocks[0].attn2.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        model(*latents(), given)
    handle.remove()
    return seen[0].unflatten(1, (LATENTS, -1))


def test_a_latent_frame_hears_its_window_and_no_more() -> None:
    model = awake()
    given = replace(conditions("frame"), audio_scale_B=torch.ones(2))
    before = first_attended(model, given)
    found_windows = windows(FEATURES, FRAMES)
    attended = set()
    for feature in range(FEATURES):
        speech = given.speech_BLD.clone()
        speech[1, feature] += 3
        change = (first_attended(model, replace(given, speech_BLD=speech)) - before).abs().amax((2, 3))
        expected = (found_windows.valid_TW & (found_windows.index_TW == feature)).any(dim=1)
        assert torch.equal(change[1] > 1e-4, expected), feature
        assert change[0].max() == 0
        attended.add(tuple(expected.tolist()))
    assert len(attended) > 2


def test_a_clip_hears_all_of_its_speech() -> None:
    model = awake()
    given = replace(conditions("clip"), audio_scale_B=torch.ones(2))
    speech = given.speech_BLD.clone()
    speech[1, 0] += 3
    change = first_attended(model, replace(given, speech_BLD=speech)) - first_attended(model, given)
    assert (change[1].abs().amax((1, 2)) > 1e-4).all()
    assert change[0].abs().max() == 0


def test_slots_tell_where_in_its_window_a_token_is() -> None:
    swapped = list(range(FEATURES))
    swapped[8], swapped[9] = 9, 8  # both in the windows of latent frames 1 and 2
    given = replace(conditions("frame"), audio_scale_B=torch.ones(2))
    moved = replace(given, speech_BLD=given.speech_BLD[:, swapped])
    for config, knows in ((ADAPTERS, False), (adapters_with(window_positions=True), True)):
        model = awake(config=config)
        change = (first_attended(model, moved) - first_attended(model, given)).abs().amax()
        assert (float(change) > 1e-3) == knows


def test_padding_dilutes_the_ends_only_where_the_reference_is_asked_for() -> None:
    model, reference = awake(), awake(config=adapters_with(reference_padding=True))
    given = replace(conditions("frame"), audio_scale_B=torch.ones(2), face_scale_B=torch.zeros(2))
    ours, diluted = first_attended(model, given), first_attended(reference, given)
    change = (ours - diluted).abs().amax((0, 2, 3))
    assert torch.equal(change > 1e-4, ~windows(FEATURES, FRAMES).valid_TW.all(dim=1))
    # Half of the keys being zeros, they take part with a weight of exp(0) and a value of 0.
    block = model.transformer.blocks[0].attn2
    found_windows = windows(FEATURES, FRAMES)
    query: list[Tensor] = []
    handle = block.norm_q.register_forward_hook(lambda *args: query.append(args[2]))
    first_attended(model, given)
    handle.remove()
    token = query[0][0, 0].view(2, 12)
    with torch.no_grad():
        attended = model.audio_proj(given.speech_BLD)[0, found_windows.index_TW[0][found_windows.valid_TW[0]]]
        keys, values = block.processor.k_proj(attended).view(-1, 2, 12), block.processor.v_proj(attended)
        weight = torch.exp((keys * token).sum(2) / 12**0.5)
        zeros = int((~found_windows.valid_TW[0]).sum())
        missing = values.view(-1, 2, 12) * weight[..., None]
        masked, padded = (missing.sum(0) / (weight.sum(0) + n)[:, None] for n in (0, zeros))
        expected = (masked - padded).flatten() @ block.to_out[0].weight.T
    assert zeros > 0
    torch.testing.assert_close((ours - diluted)[0, 0, 0], expected, rtol=1e-3, atol=1e-4)


def test_padding_stays_zero_beside_learned_slots() -> None:
    model = awake(config=adapters_with(window_positions=True, reference_padding=True))
    model(*latents(), conditions("frame"))
    signals, valid_TW = model.context.signals, windows(FEATURES, FRAMES).valid_TW
    assert signals.audio_mask_G11W is None
    nothing = (signals.audio_GWC == 0).all(dim=2)
    assert torch.equal(nothing, ~valid_TW.repeat(2, 1))


def test_a_single_feature_is_heard_by_every_latent_frame() -> None:
    model = awake()
    given = replace(conditions("frame"), audio_scale_B=torch.ones(2))
    given = replace(given, speech_BLD=given.speech_BLD[:, :1])
    silent = replace(given, audio_scale_B=torch.zeros(2))
    attended = first_attended(model, given) - first_attended(model, silent)
    assert torch.isfinite(attended).all()
    assert (attended.abs().amax((2, 3)) > 1e-4).all()


def test_motion_is_added_with_the_timestep_embedding() -> None:
    model = awake(config=adapters_with(face=False))
    x, timestep = latents()
    given = replace(conditions("frame"), audio_scale_B=torch.zeros(2))
    added = model.motion(given.omega_B2)
    assert added.abs().max() > 0.1
    own = wan("condition")
    own.condition_embedder.time_embedder.register_forward_hook(lambda *args: args[2] + added)
    torch.testing.assert_close(model(x, timestep, given), stock(own, x, timestep, given))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("stage", ["clip", "frame"])
@pytest.mark.parametrize("trainable", ["adapters", "full"])
def test_everything_trained_has_a_gradient_in_both_stages(stage: str, trainable: str) -> None:
    model = awake("image", adapters_with(window_positions=True))
    set_trainable(model, ModelConfig(trainable=trainable))
    dropped = replace(conditions(stage), audio_scale_B=torch.zeros(2), face_scale_B=torch.zeros(2))
    model(*latents(), dropped).square().mean().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(gradients(model)) == trained


def test_recomputed_blocks_give_the_same_gradients() -> None:
    model = awake("image")
    set_trainable(model, ModelConfig())
    first, second = conditions("frame"), conditions("clip")
    x, timestep = latents()
    expected = []
    for given in (first, second):
        model(x, timestep, given).square().mean().backward()
        expected.append(gradients(model))
    model.enable_gradient_checkpointing()
    model(x, timestep, first).square().mean().backward()
    found = gradients(model)
    assert found.keys() == expected[0].keys()
    assert all(torch.equal(found[name], expected[0][name]) for name in found)
    # Two forward passes before a backward pass: each is recomputed under its own conditions.
    losses = [model(x, timestep, given).square().mean() for given in (first, second)]
    losses[0].backward()
    found = gradients(model)
    assert all(torch.equal(found[name], expected[0][name]) for name in found)
    losses[1].backward()
    found = gradients(model)
    assert all(torch.equal(found[name], expected[1][name]) for name in found)


def test_blocks_recomputed_by_others_find_the_signals_of_the_last_pass() -> None:
    model = awake()
    set_trainable(model, ModelConfig())
    x, timestep = latents()
    model(x, timestep, conditions("frame")).square().mean().backward()
    expected = gradients(model)
    model.transformer.enable_gradient_checkpointing()
    model(x, timestep, conditions("frame")).square().mean().backward()
    found = gradients(model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_sharded_by_fsdp_it_computes_the_same(tmp_path: Path) -> None:
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    model = awake("image")
    set_trainable(model, ModelConfig())
    x, timestep = latents()
    expected = model(x, timestep, conditions("frame"))
    expected.square().mean().backward()
    wanted = gradients(model)
    model.enable_gradient_checkpointing()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        for module in (*model.transformer.blocks, model.transformer.condition_embedder, model):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        output = model(x, timestep, conditions("frame"))
        output.square().mean().backward()
        found = {name: grad.full_tensor() for name, grad in gradients(model).items()}
    finally:
        distributed.destroy_process_group()
    assert torch.equal(output, expected)
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, wanted[name], msg=name)


def test_the_14b_model_has_the_published_adapters() -> None:
    with torch.device("meta"):
        transformer = WanTransformer3DModel(
            in_channels=36, text_dim=4096, image_dim=1280, added_kv_proj_dim=5120
        )
        model = TalkingWan(transformer, AdapterConfig(), speech_dim=768, identity_dim=0)
    published = {
        name: parameter
        for name, parameter in adapter_parameters(model)
        if name.startswith(("audio_proj.", "transformer."))
    }
    assert sum(p.numel() for p in published.values()) == 840_437_760
    blocks = {f"transformer.blocks.{n}.attn2.processor.{k}_proj.weight" for n in range(40) for k in "kv"}
    assert published.keys() == blocks | {
        "audio_proj.proj.weight",
        "audio_proj.norm.weight",
        "audio_proj.norm.bias",
    }
    assert all(published[name].shape == (5120, 2048) for name in blocks)
    assert published["audio_proj.proj.weight"].shape == (2048, 768)


def test_frozen_weights_take_the_type_and_trained_ones_stay_precise() -> None:
    model = build(run_config(gradient_checkpointing=True), INFO, dtype=torch.bfloat16)
    types = {name: p.dtype for name, p in model.named_parameters()}
    assert types["transformer.blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert types["transformer.blocks.0.scale_shift_table"] == torch.float32
    assert {p.dtype for _, p in adapter_parameters(model)} == {torch.float32}
    assert {p.requires_grad for _, p in adapter_parameters(model)} == {True}
    assert model.transformer.is_gradient_checkpointing
    model(*latents(), conditions("frame")).square().mean().backward()
    assert float(model.transformer.blocks[0].attn2.processor.v_proj.weight.grad.abs().max()) > 0


def test_branches_follow_the_data_set_and_the_configuration() -> None:
    faceless = build(run_config(), replace(INFO, identity_dim=0))
    assert faceless.face is None
    assert not any("face" in name for name, _ in faceless.named_parameters() if "motion" not in name)
    x, timestep = latents()
    faceless(x, timestep, replace(conditions("frame"), identity_BD=None))
    still = run_config().model_copy(update={"adapters": adapters_with(motion=False, window_positions=True)})
    model = build(still, INFO)
    assert model.motion is None
    assert model.window_positions.weight.shape == (32, 12)
    model(x, timestep, replace(conditions("frame"), omega_B2=None))


def trained_names(model: TalkingWan) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_what_is_trained() -> None:
    adapters = build(run_config(), INFO)
    assert trained_names(adapters) == {name for name, _ in adapter_parameters(adapters)}
    full = build(run_config(trainable="full"), INFO, dtype=torch.bfloat16)
    assert trained_names(full) == {name for name, _ in full.named_parameters()}
    assert {p.dtype for p in full.parameters()} == {torch.float32}


def test_lora_updates_every_attention_and_starts_at_zero() -> None:
    plain, lora = build(run_config(), INFO), build(run_config(trainable="lora", lora_rank=2), INFO)
    added = trained_names(lora) - trained_names(plain)
    blocks = range(2)
    assert added == {
        f"transformer.blocks.{n}.{attention}.{projection}.lora_{m}.default.weight"
        for n in blocks
        for attention in ("attn1", "attn2")
        for projection in ("to_q", "to_k", "to_v", "to_out.0")
        for m in "AB"
    }
    assert trained_names(plain) < trained_names(lora)
    x, timestep = latents()
    assert torch.equal(lora(x, timestep, conditions("frame")), plain(x, timestep, conditions("frame")))
    before = {name: p.clone() for name, p in lora.named_parameters()}
    set_trainable(lora, run_config(trainable="lora", lora_rank=2).model)
    assert all(torch.equal(p, before[name]) for name, p in lora.named_parameters())
    again = build(run_config(trainable="lora", lora_rank=2), INFO)
    assert all(torch.equal(p, before[name]) for name, p in again.named_parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 13}, r"13 frames: expected 4 latent frames, found 3"),
        ({"text_BSD": torch.zeros(2, 4, 8)}, r"expected 3 text tokens \(model\.text_tokens\), found 4"),
        ({"stage": "both"}, r"stage: expected 'clip' or 'frame', found 'both'"),
        ({"image_BKD": None}, r"expects CLIP features of the reference image, found none"),
        ({"identity_BD": None}, r"expects an identity embedding, found none"),
        ({"omega_B2": None}, r"expects motion intensities, found none"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        awake("image")(*latents(), replace(conditions("frame"), **change))


def test_windows_wider_than_the_learned_slots_are_refused() -> None:
    model = awake(config=adapters_with(window_positions=True))
    given = replace(conditions("frame"), speech_BLD=torch.zeros(2, 120, SPEECH_DIM))
    with pytest.raises(
        ModelError, match=r"window_positions: expected windows of at most 32 features, found 61"
    ):
        model(*latents(), given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("stage", ["clip", "frame"])
def test_on_a_gpu_it_is_stock_wan_and_recomputes_the_same(stage: str) -> None:
    model = talking("image")
    set_trainable(model, ModelConfig())
    cast(model, torch.bfloat16)
    model.cuda()
    own = wan("image").cuda()
    for ours, theirs in zip(
        (p for n, p in model.transformer.named_parameters() if ".processor." not in n),
        own.parameters(),
        strict=True,
    ):
        theirs.data = ours.data
    given = conditions(stage, text_tokens=512)
    moved = Conditions(**{n: v.cuda() if isinstance(v, Tensor) else v for n, v in vars(given).items()})
    x, timestep = (t.cuda() for t in latents())
    assert torch.equal(model(x, timestep, moved), stock(own, x, timestep, moved))
    for _, parameter in adapter_parameters(model):
        nn.init.normal_(parameter, std=0.1)
    model(x, timestep, moved).square().mean().backward()
    expected = gradients(model)
    model.enable_gradient_checkpointing()
    model(x, timestep, moved).square().mean().backward()
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-2, atol=1e-4, msg=name)


def test_a_base_that_takes_no_image_cannot_be_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config()
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"base": "wan"}),
            "data": config.data.model_copy(update={"prefix_frames": 5}),
        }
    )
    monkeypatch.setattr("talkforge.training.wan.talking_wan.load_transformer", lambda *_: wan("text"))
    with pytest.raises(CommandError, match=r"^data.prefix_frames=5: needs a base that takes a reference"):
        build(config, INFO)
