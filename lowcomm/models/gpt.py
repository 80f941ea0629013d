"""A small modern GPT: the Llama architecture in one file.

Pre-norm blocks of causal attention and a gated feed-forward layer:

    h = x + Wo * attention(rope(Wq n(x)), rope(Wk n(x)), Wv n(x))
    y = h + Wdown * (silu(Wgate n(h)) * (Wup n(h)))

with n = RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), rotary positions (Su et al. 2021,
arXiv:2104.09864), SwiGLU (Shazeer 2020, arXiv:2002.05202) and, where `kv_heads < heads`, grouped
queries (Ainslie et al. 2023, arXiv:2305.13245). Parameter names, the half-split rotary convention
and the epsilon are those of Hugging Face's `LlamaForCausalLM`, so an export loads there and gives
the same logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowcomm.errors import ModelError

RMS_EPSILON = 1e-5
INIT_STD = 0.02


class Place(TypedDict):
    """What a layer's weights are made of, and where."""

    dtype: torch.dtype
    device: str


@dataclass(frozen=True, kw_only=True)
class GPTShape:
    """The sizes of a `GPT`. `dim` must divide by `heads` into an even head size, `heads` by `kv_heads`.

    Raises:
        ModelError: they don't.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn_dim: int
    context: int
    rope_theta: float = 10_000.0
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ModelError(
                f"dim: expected heads = {self.heads} times an even number (rotary positions pair the "
                f"elements of a head), got {self.dim}"
            )
        if self.heads % self.kv_heads:
            raise ModelError(f"kv_heads: expected a divisor of heads = {self.heads}, got {self.kv_heads}")

    @property
    def parameters(self) -> int:
        """How many elements its weights have."""
        kv_dim = self.kv_heads * (self.dim // self.heads)
        block = 2 * self.dim * (self.dim + kv_dim) + 3 * self.dim * self.ffn_dim + 2 * self.dim
        tables = self.vocab_size * self.dim * (1 if self.tie_embeddings else 2)
        return tables + self.layers * block + self.dim


class Attention(nn.Module):
    """Causal self-attention with rotary positions; (batch, time, dim) -> the same."""

    def __init__(self, shape: GPTShape, place: Place) -> None:
        super().__init__()
        self.heads, self.kv_heads = shape.heads, shape.kv_heads
        self.head_dim = shape.dim // shape.heads
        self.q_proj = nn.Linear(shape.dim, self.heads * self.head_dim, bias=False, **place)
        self.k_proj = nn.Linear(shape.dim, self.kv_heads * self.head_dim, bias=False, **place)
        self.v_proj = nn.Linear(shape.dim, self.kv_heads * self.head_dim, bias=False, **place)
        self.o_proj = nn.Linear(self.heads * self.head_dim, shape.dim, bias=False, **place)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, time, _ = x.shape
        q = self.q_proj(x).view(batch, time, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, time, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, time, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        grouped = self.kv_heads != self.heads
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, time, -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU; (batch, time, dim) -> the same."""

    def __init__(self, shape: GPTShape, place: Place) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.dim, shape.ffn_dim, bias=False, **place)
        self.up_proj = nn.Linear(shape.dim, shape.ffn_dim, bias=False, **place)
        self.down_proj = nn.Linear(shape.ffn_dim, shape.dim, bias=False, **place)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """One pre-norm transformer layer; (batch, time, dim) -> the same."""

    def __init__(self, shape: GPTShape, place: Place) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.dim, eps=RMS_EPSILON, **place)
        self.self_attn = Attention(shape, place)
        self.post_attention_layernorm = nn.RMSNorm(shape.dim, eps=RMS_EPSILON, **place)
        self.mlp = FeedForward(shape, place)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Embedding, blocks and final norm; (batch, time) token ids -> (batch, time, dim)."""

    cos: Tensor  # (context, head_dim)
    sin: Tensor  # (context, head_dim)

    def __init__(self, shape: GPTShape, place: Place) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.dim, **place)
        self.layers = nn.ModuleList([Block(shape, place) for _ in range(shape.layers)])
        self.norm = nn.RMSNorm(shape.dim, eps=RMS_EPSILON, **place)
        cos, sin = rope_table(shape.context, shape.dim // shape.heads, shape.rope_theta, place["device"])
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        time = ids.shape[1]
        if time > self.cos.shape[0]:
            raise ModelError(f"expected at most context = {self.cos.shape[0]} tokens, got {time}")
        x: Tensor = self.embed_tokens(ids)
        cos, sin, mask = self.cos[:time], self.sin[:time], None
        if positions is not None:
            cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
            mask = within_documents(positions)
        for block in self.layers:
            x = block(x, cos, sin, mask)
        out: Tensor = self.norm(x)
        return out


class GPT(nn.Module):
    """A decoder-only language model.

    Args:
        shape: the sizes; `GPTShape` says what must divide what.
        seed: seeds the initial weights, so that all islands start from the same bits.
        device: where the fp32 weights are made; torch's defaults, which a program may set, have no say.
    """

    def __init__(self, shape: GPTShape, *, seed: int = 0, device: str = "cpu") -> None:
        super().__init__()
        self.shape = shape
        place = Place(dtype=torch.float32, device=device)
        self.model = Decoder(shape, place)
        self.lm_head = nn.Linear(shape.dim, shape.vocab_size, bias=False, **place)
        if shape.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self._init_weights(seed)

    def forward(self, ids: Tensor, targets: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Logits, or the mean loss where `targets` is given.

        Args:
            ids: (batch, time) int64 token ids, time <= context.
            targets: (batch, time) int64 ids that should follow each position.
            positions: (batch, time) int64 of each token in its document, 0 where one begins; attention stays
                within documents then. None = all of a row is one.

        Returns:
            (batch, time, vocab_size) logits, or the scalar cross-entropy in nats per token (fp32).

        Raises:
            ModelError: more tokens than the context.
        """
        logits: Tensor = self.lm_head(self.model(ids, positions))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The 2-D weights between embedding and head: what Muon is meant for."""
        return [p for p in self.model.layers.parameters() if p.ndim == 2]

    @torch.no_grad()
    def _init_weights(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        residual_std = INIT_STD / (2 * self.shape.layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue  # the norms start at one
            std = residual_std if name.endswith(("o_proj.weight", "down_proj.weight")) else INIT_STD
            parameter.normal_(0.0, std, generator=generator)


def flops_per_token(shape: GPTShape, parameters: int) -> float:
    """FLOPs of the forward and backward pass for each token, nothing computed twice.

    6 for each parameter of a matrix product and 12 * layers * dim * context for attention, which counts
    the masked half, too (PaLM, arXiv:2204.02311, appendix B).

    Args:
        parameters: of the whole model; the embedding, unless it is the output layer, too, is a look-up.
    """
    looked_up = 0 if shape.tie_embeddings else shape.vocab_size * shape.dim
    return 6.0 * (parameters - looked_up) + 12.0 * shape.layers * shape.dim * shape.context


def rope_table(context: int, head_dim: int, theta: float, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each (context, head_dim), fp32."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float32, device=device), frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def within_documents(positions: Tensor) -> Tensor:
    """(batch, 1, time, time) which token looks at which: those of its document up to itself.

    Args:
        positions: (batch, time), 0 where a document begins.
    """
    document = (positions == 0).cumsum(dim=1)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same.tril()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (batch, heads, time, head_dim) by its positions, pairing element i with i + head_dim/2."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)
