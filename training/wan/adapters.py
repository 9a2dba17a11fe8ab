"""Audio, face and motion networks that are added to Wan, and how they reach its blocks.

`TalkingProcessor` replaces the processor of every cross-attention. Diffusers gives it the text and image
tokens only. The tokens of the added attentions come through a `Context` that all processors use. Suffixes are
those of `training.data.batch`, and N video tokens, G groups of them that attend to the same audio (B, or
B * T), W audio tokens of a group.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn
from torch.nn import functional

from talkforge.schemas.errors import CommandError
from talkforge.training.wan.blocks import is_kept, recomputed

FACE_MLP_RATIO = 4
"""Width of the Q-Former's feed-forward layers over its own (ours)."""


@dataclass(frozen=True)
class Signals:
    """Tensors that the adapters add in one forward pass, None where a model has no such branch.

    Attributes:
        groups: groups of consecutive video tokens in a sample, 1 or T.
        audio_GWC: projected audio tokens.
        audio_mask_G11W: bool, False where a window has no token. None means that all take part.
        audio_scale_G11: lambda1 of Eq. 4.
        face_BKC: tokens of the face.
        face_scale_B11: lambda2 of Eq. 4.
        motion_BC: added to the timestep embedding.
    """

    groups: int
    audio_GWC: Tensor | None
    audio_mask_G11W: Tensor | None
    audio_scale_G11: Tensor
    face_BKC: Tensor | None
    face_scale_B11: Tensor
    motion_BC: Tensor | None


class Context:
    """The signals of the current forward pass, or of the one that is recomputed for the backward pass.

    It is no module, so that its tensors are not in any state dict. It keeps the signals after a forward
    pass. Code that recomputes blocks by other means than `checkpoint` finds them there, and may run one
    forward pass before each backward pass. With `checkpoint` there may be any number.

    Attributes:
        signals: of this forward pass.
        keep_attention: what `checkpoint` keeps, see `blocks.recomputed`.
        offload: likewise where it keeps the blocks' inputs.
    """

    def __init__(self) -> None:
        self.signals: Signals | None = None
        self.keep_attention, self.offload = False, False

    def __deepcopy__(self, memo: dict[int, Any]) -> Context:
        """An empty context, because the signals belong to a graph, which cannot be copied."""
        return Context()

    def checkpoint(self, block: nn.Module, *args: Any) -> Any:
        """Run a block whose activations are recomputed with the signals of this forward pass.

        Args:
            block: the transformer block.
            args: its arguments.
        """
        if is_kept(block):
            return block(*args)
        again = functools.partial(self._showing, self.signals)
        return recomputed(block, *args, keep_attention=self.keep_attention, offload=self.offload, again=again)

    @contextlib.contextmanager
    def _showing(self, signals: Signals | None) -> Iterator[None]:
        previous, self.signals = self.signals, signals
        try:
            yield
        finally:
            self.signals = previous

    def add_motion(self, embedder: nn.Module, _args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Forward hook of Wan's condition embedder: adds the motion to the timestep embedding.

        The projection to the blocks' modulation is computed again, so that the motion reaches it as it
        reaches the output head.

        Args:
            embedder: the condition embedder.
            output: timestep embedding, its projection, and embeddings of text and image.
        """
        if self.signals is None or self.signals.motion_BC is None:
            return output
        time_BC, _, *rest = output
        time_BC = time_BC + self.signals.motion_BC.to(time_BC.dtype)
        return (time_BC, embedder.time_proj(embedder.act_fn(time_BC)), *rest)


class TalkingProcessor(nn.Module):  # type: ignore[misc]
    """Cross-attention of one block: text and image as stock Wan, then audio and face.

    Z + lambda1 Attn(Q, K_audio, V_audio) + lambda2 Attn(Q, K_face, V_face), before the output projection. All
    use the same query, and the added keys have neither norm nor position. All added projections start at
    zero, so that the block starts as stock Wan's. The values get the first gradients.

    Source: FantasyTalking §3.3, Eq. 4. Layout and names are those of the published weights.
    """

    _attention_backend = None  # of text and image, set by diffusers' `set_attention_backend`

    def __init__(
        self, context: Context, inner_dim: int, audio_dim: int, face_dim: int | None, text_tokens: int
    ) -> None:
        super().__init__()
        self.context = context
        self.text_tokens = text_tokens
        self.k_proj = _zero_linear(audio_dim, inner_dim)
        self.v_proj = _zero_linear(audio_dim, inner_dim)
        if face_dim is not None:
            self.face_k_proj = _zero_linear(face_dim, inner_dim)
            self.face_v_proj = _zero_linear(face_dim, inner_dim)

    def forward(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        *_unused: None,
    ) -> Tensor:
        """Output of the cross-attention, [B, N, C]. Diffusers' `WanAttention` calls it.

        Args:
            attn: diffusers' attention module.
            hidden_states: video tokens, [B, N, C].
            encoder_hidden_states: image tokens, if any, then `text_tokens` of text, [B, K + S, C].
        """
        query_BNHD = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        text_BSC = encoder_hidden_states[:, -self.text_tokens :]
        sum_BNC = self._stock(query_BNHD, attn.norm_k(attn.to_k(text_BSC)), attn.to_v(text_BSC))
        if attn.add_k_proj is not None:
            image_BKC = encoder_hidden_states[:, : -self.text_tokens]
            key_BKC = attn.norm_added_k(attn.add_k_proj(image_BKC))
            sum_BNC = sum_BNC + self._stock(query_BNHD, key_BKC, attn.add_v_proj(image_BKC))
        signals = self.context.signals
        if signals is not None and signals.audio_GWC is not None:
            sum_BNC = sum_BNC + self._audio(query_BNHD, signals.audio_GWC, signals)
        if signals is not None and signals.face_BKC is not None:
            sum_BNC = sum_BNC + self._face(query_BNHD, signals.face_BKC, signals)
        return attn.to_out[1](attn.to_out[0](sum_BNC))

    def _stock(self, query_BNHD: Tensor, key_BSC: Tensor, value_BSC: Tensor) -> Tensor:
        heads = query_BNHD.shape[2]
        attended = dispatch_attention_fn(
            query_BNHD,
            key_BSC.unflatten(2, (heads, -1)),
            value_BSC.unflatten(2, (heads, -1)),
            backend=self._attention_backend,
        )
        return attended.flatten(2, 3).type_as(query_BNHD)

    def _audio(self, query_BNHD: Tensor, tokens_GWC: Tensor, signals: Signals) -> Tensor:
        tokens_GWC = tokens_GWC.type_as(query_BNHD)
        # Attention is linear in its values, which are fewer than its outputs.
        value_GWC = self.v_proj(tokens_GWC) * signals.audio_scale_G11.to(tokens_GWC.dtype)
        query_GnHD = query_BNHD.unflatten(1, (signals.groups, -1)).flatten(0, 1)
        attended = _attend(query_GnHD, self.k_proj(tokens_GWC), value_GWC, signals.audio_mask_G11W)
        return attended.reshape(*query_BNHD.shape[:2], -1)

    def _face(self, query_BNHD: Tensor, tokens_BKC: Tensor, signals: Signals) -> Tensor:
        tokens_BKC = tokens_BKC.type_as(query_BNHD)
        value_BKC = self.face_v_proj(tokens_BKC) * signals.face_scale_B11.to(tokens_BKC.dtype)
        return _attend(query_BNHD, self.face_k_proj(tokens_BKC), value_BKC, None)


class AudioProjection(nn.Module):  # type: ignore[misc]
    """Speech features to audio tokens: [B, L, D] -> [B, L, C].

    Source: the published weights, `proj_model`.
    """

    def __init__(self, speech_dim: int, audio_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(speech_dim, audio_dim, bias=False)
        self.norm = nn.LayerNorm(audio_dim)

    def forward(self, speech_BLD: Tensor) -> Tensor:
        return self.norm(self.proj(speech_BLD.to(dtype_of(self))))


class FaceResampler(nn.Module):  # type: ignore[misc]
    """Q-Former: an identity embedding to face tokens, [B, D] -> [B, K, C].

    Learned queries attend to themselves and to as many projections of the embedding, layer by layer.

    Source: FantasyTalking §3.3. Sizes and inner layout are ours.
    """

    def __init__(self, identity_dim: int, dim: int, tokens: int, depth: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise CommandError(f"adapters.face_dim: expected a multiple of face_heads = {heads}, found {dim}")
        self.expand = nn.Linear(identity_dim, tokens * dim)
        self.queries = nn.Parameter(torch.randn(tokens, dim) * dim**-0.5)
        self.layers = nn.ModuleList(_q_former_layer(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, identity_BD: Tensor) -> Tensor:
        tokens, _ = self.queries.shape
        memory_BKC = self.expand(identity_BD.to(dtype_of(self))).unflatten(1, (tokens, -1))
        tokens_BKC = self.queries.expand(len(identity_BD), -1, -1)
        for layer in self.layers:
            tokens_BKC = layer(tokens_BKC, memory_BKC)
        return self.norm(tokens_BKC)


class MotionNetwork(nn.Module):  # type: ignore[misc]
    """Motion intensities of face and body to what is added to the timestep embedding: [B, 2] -> [B, C].

    Each passes through an MLP of its own. Both pass side by side through a residual block and are averaged.
    The output is zero at the start.

    Source: FantasyTalking §3.4, Fig. 2. Widths are ours.
    """

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.face = _mlp(dim)
        self.body = _mlp(dim)
        self.residual = nn.Sequential(
            nn.SiLU(), nn.Conv1d(dim, dim, 3, padding=1), nn.SiLU(), nn.Conv1d(dim, dim, 3, padding=1)
        )
        self.out = nn.Linear(dim, inner_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, omega_B2: Tensor) -> Tensor:
        centred_B2 = (2 * omega_B2 - 1).to(dtype_of(self))  # the neutral 0.5 becomes 0
        pair_BC2 = torch.stack([self.face(centred_B2[:, :1]), self.body(centred_B2[:, 1:])], dim=2)
        return self.out((pair_BC2 + self.residual(pair_BC2)).mean(dim=2))


def dtype_of(module: nn.Module) -> torch.dtype:
    """Type of a module's weights, without gathering sharded ones."""
    dtype: torch.dtype = next(module.parameters()).dtype
    return dtype


def _zero_linear(in_dim: int, out_dim: int) -> nn.Linear:
    linear = nn.Linear(in_dim, out_dim, bias=False)
    nn.init.zeros_(linear.weight)
    return linear


def _mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, dim), nn.SiLU(), nn.Linear(dim, dim))


def _q_former_layer(dim: int, heads: int) -> nn.TransformerDecoderLayer:
    return nn.TransformerDecoderLayer(
        dim, heads, FACE_MLP_RATIO * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def _attend(query_GnHD: Tensor, key_GWC: Tensor, value_GWC: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of tokens to added keys, [G, n, C], as wide and as precise as the query."""
    heads = query_GnHD.shape[2]
    attended_GHnD = functional.scaled_dot_product_attention(
        query_GnHD.transpose(1, 2),
        key_GWC.type_as(query_GnHD).unflatten(2, (heads, -1)).transpose(1, 2),
        value_GWC.type_as(query_GnHD).unflatten(2, (heads, -1)).transpose(1, 2),
        attn_mask=mask,
    )
    return attended_GHnD.transpose(1, 2).flatten(2).type_as(query_GnHD)
