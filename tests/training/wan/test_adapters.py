from __future__ import annotations

import copy
import math

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from talkforge.schemas.errors import CommandError
from talkforge.training.wan.adapters import (
    AudioProjection,
    Context,
    FaceResampler,
    MotionNetwork,
    Signals,
    TalkingProcessor,
)

HEADS, HEAD_DIM, TEXT_TOKENS, IMAGE_TOKENS = 2, 4, 3, 2
DIM = HEADS * HEAD_DIM
AUDIO_DIM, FACE_DIM = 6, 5


def attention(context: Context, image: bool) -> nn.Module:
    """A cross-attention of Wan with our processor, and nothing zero."""
    torch.manual_seed(0)
    attn = WanAttention(
        DIM, HEADS, HEAD_DIM, added_kv_proj_dim=DIM if image else None, cross_attention_dim_head=HEAD_DIM
    )
    attn.set_processor(TalkingProcessor(context, DIM, AUDIO_DIM, FACE_DIM, TEXT_TOKENS))
    for parameter in attn.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attn


def signals(samples: int, groups: int, positions: int, mask: Tensor | None) -> Signals:
    generator = torch.Generator().manual_seed(1)
    return Signals(
        groups=groups,
        audio_GWC=torch.randn(samples * groups, positions, AUDIO_DIM, generator=generator),
        audio_mask_G11W=mask,
        audio_scale_G11=torch.tensor([0.5, 2.0]).repeat_interleave(groups).view(-1, 1, 1),
        face_BKC=torch.randn(samples, 4, FACE_DIM, generator=generator),
        face_scale_B11=torch.tensor([0.5, 0.0]).view(-1, 1, 1),
        motion_BC=None,
    )


def one_query(query_C: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Attention of one token, head by head."""
    out = torch.zeros(DIM)
    for head in range(HEADS):
        part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        weights = [math.exp(float(query_C[part] @ key[part]) / math.sqrt(HEAD_DIM)) for key in keys]
        for weight, value in zip(weights, values, strict=True):
            out[part] += weight / sum(weights) * value[part]
    return out


def slow(attn: nn.Module, hidden_BNC: Tensor, encoder_BSC: Tensor, given: Signals) -> Tensor:
    """Eq. 4 token by token; text and image as the published model."""
    own = attn.processor
    outputs = []
    for b, hidden_NC in enumerate(hidden_BNC):
        text_SC = encoder_BSC[b, -TEXT_TOKENS:]
        image_KC = encoder_BSC[b, :-TEXT_TOKENS]
        per_group = len(hidden_NC) // given.groups
        for n, hidden_C in enumerate(hidden_NC):
            query_C = attn.norm_q(attn.to_q(hidden_C))
            total = one_query(query_C, list(attn.norm_k(attn.to_k(text_SC))), list(attn.to_v(text_SC)))
            if attn.add_k_proj is not None:
                keys = attn.norm_added_k(attn.add_k_proj(image_KC))
                total = total + one_query(query_C, list(keys), list(attn.add_v_proj(image_KC)))
            group = b * given.groups + n // per_group
            audio_tokens = [
                token
                for w, token in enumerate(given.audio_GWC[group])
                if given.audio_mask_G11W is None or bool(given.audio_mask_G11W[group, 0, 0, w])
            ]
            audio = one_query(
                query_C, [own.k_proj(t) for t in audio_tokens], [own.v_proj(t) for t in audio_tokens]
            )
            face = [own.face_k_proj(t) for t in given.face_BKC[b]]
            looks = one_query(query_C, face, [own.face_v_proj(t) for t in given.face_BKC[b]])
            total = total + float(given.audio_scale_G11[group]) * audio
            total = total + float(given.face_scale_B11[b]) * looks
            outputs.append(attn.to_out[0](total))
    return torch.stack(outputs).view_as(hidden_BNC)


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_text_image_audio_and_face_are_attended_to_as_equation_4_says(image: bool, groups: int) -> None:
    context = Context()
    attn = attention(context, image)
    mask = torch.ones(2 * groups, 1, 1, 5, dtype=torch.bool)
    mask[0, ..., 2:] = False
    mask[-1, ..., 4:] = False
    context.signals = signals(2, groups, 5, mask if groups > 1 else None)
    hidden = torch.randn(2, 6, DIM)
    encoder = torch.randn(2, TEXT_TOKENS + (IMAGE_TOKENS if image else 0), DIM)
    with torch.no_grad():
        fast = attn(hidden, encoder)
        expected = slow(attn, hidden, encoder, context.signals)
    torch.testing.assert_close(fast, expected, rtol=1e-5, atol=1e-5)


def test_without_signals_a_processor_is_the_stock_one() -> None:
    attn = attention(Context(), image=False)
    hidden, encoder = torch.randn(2, 6, DIM), torch.randn(2, TEXT_TOKENS, DIM)
    ours = attn(hidden, encoder)
    attn.set_processor(WanAttention._default_processor_cls())
    assert torch.equal(ours, attn(hidden, encoder))


def test_a_copy_of_a_model_has_a_context_of_its_own() -> None:
    context = Context()
    pair = nn.ModuleList([attention(context, False), attention(context, False)])
    pair[0].processor.v_proj.weight.requires_grad_()
    context.signals = signals(2, 1, 5, None)
    copied = copy.deepcopy(pair)
    assert copied[0].processor.context is copied[1].processor.context
    assert copied[0].processor.context is not context
    assert copied[0].processor.context.signals is None
    assert context.signals is not None


def test_the_context_is_no_part_of_the_state() -> None:
    context = Context()
    context.signals = signals(2, 1, 5, None)
    names = set(TalkingProcessor(context, DIM, AUDIO_DIM, None, TEXT_TOKENS).state_dict())
    assert names == {"k_proj.weight", "v_proj.weight"}


def test_audio_is_projected_then_normalised() -> None:
    torch.manual_seed(0)
    projection = AudioProjection(3, 4)
    assert {n: list(p.shape) for n, p in projection.named_parameters()} == {
        "proj.weight": [4, 3],
        "norm.weight": [4],
        "norm.bias": [4],
    }
    speech = torch.tensor([[[1.0, -2.0, 0.5]]], dtype=torch.float64)
    projected = projection.proj.weight.detach().double() @ speech[0, 0]
    expected = (projected - projected.mean()) / projected.var(unbiased=False).add(1e-5).sqrt()
    torch.testing.assert_close(projection(speech)[0, 0].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_face_resampler_is_a_q_former_of_the_given_size() -> None:
    torch.manual_seed(0)
    dim, tokens, depth, identity_dim = 8, 3, 2, 5
    face = FaceResampler(identity_dim, dim, tokens, depth, heads=2)
    attention_size = 4 * (dim * dim + dim)
    mlp_size = 2 * 4 * dim * dim + 4 * dim + dim
    layer_size = 2 * attention_size + mlp_size + 3 * 2 * dim
    expected = tokens * dim * (identity_dim + 1) + tokens * dim + depth * layer_size + 2 * dim
    assert sum(p.numel() for p in face.parameters()) == expected
    identity = torch.nn.functional.normalize(torch.randn(2, identity_dim), dim=1)
    both = face(identity)
    assert both.shape == (2, tokens, dim)
    torch.testing.assert_close(both[1:], face(identity[1:]))
    assert (both[0] - both[1]).abs().max() > 1e-3
    assert (both[0, 0] - both[0, 1]).abs().max() > 1e-3


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(CommandError, match=r"^adapters\.face_dim: .* multiple of face_heads = 3, found 8$"):
        FaceResampler(5, 8, 3, 1, heads=3)


def test_motion_is_zero_at_the_start_and_then_follows_its_equations() -> None:
    torch.manual_seed(0)
    motion = MotionNetwork(4, 6)
    omega = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.2, 0.9]])
    assert torch.equal(motion(omega), torch.zeros(3, 6))
    nn.init.normal_(motion.out.weight)
    first, second = motion.residual[1], motion.residual[3]

    def convolved(conv: nn.Conv1d, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        before, here, after = conv.weight.unbind(2)  # a kernel of three on a sequence of two
        return here @ left + after @ right + conv.bias, before @ left + here @ right + conv.bias

    for (face, body), found in zip(omega, motion(omega), strict=True):
        pair = [net(2 * value[None] - 1) for net, value in ((motion.face, face), (motion.body, body))]
        hidden = convolved(first, *map(nn.functional.silu, pair))
        added = convolved(second, *map(nn.functional.silu, hidden))
        mean = sum(p + a for p, a in zip(pair, added, strict=True)) / 2
        torch.testing.assert_close(found, motion.out.weight @ mean, rtol=1e-5, atol=1e-5)
