"""The PHOTON model: hierarchical autoregressive language modelling (arXiv 2512.20687).

An encoder folds `C_1` tokens into one level-1 unit, `C_2` of those into one level-2 unit, and so on
up to level `L`; a decoder rebuilds the units below from the unit above inside windows of `R_l +
C_l` positions. Notation follows docs/model.md: level l is `levels[l - 1]`, `X[l]` are encoder
states, `Y[l]` the decoder's predictions of them, `P_l` tokens lie under one unit of level l, and a
meta-context is `P_L` tokens.

Parameters are named as a checkpoint names its tensors, so `state_dict()` is the checkpoint. They
are stored in one dtype (fp32 while training); every forward pass runs in the dtype of its `dtype`
argument.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Windows up to this many positions use two batched products, not a library's attention.
SMALL_WINDOW = 16
# As many of them as fit are computed as one masked window, which fills a GPU's tiles.
PACKED_POSITIONS = 64


@dataclass
class StackConfig:
    """A causal pre-norm Transformer stack with a final RMSNorm."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10000.0
    rope_partial: float = 1.0
    qk_norm: bool = False
    norm_eps: float = 1e-5

    def rope_dims(self) -> int:
        return round(self.head_dim * self.rope_partial)


@dataclass
class ChunkerConfig:
    type: str = "linear"  # "concat" | "linear"
    in_norm: str = "none"  # "none" | "unit" | "concat"
    out_norm: bool = False
    bias: bool = False


@dataclass
class ConverterConfig:
    kernel: int = 1  # 3 adds a depthwise convolution along the R axis
    in_norm: bool = False
    out_norm: bool = False
    bias: bool = False


@dataclass
class LevelConfig:
    chunk_size: int
    converter_width: int
    encoder: StackConfig
    decoder: StackConfig
    chunker: ChunkerConfig = field(default_factory=ChunkerConfig)
    converter: ConverterConfig = field(default_factory=ConverterConfig)
    encoder_span: str = "global"  # "global" | "block"


@dataclass
class PhotonConfig:
    """The contents of a checkpoint's config.json."""

    vocab_size: int
    embedding_dim: int
    levels: list[LevelConfig]
    encoder_embedding_dim: Optional[int] = None
    tie_word_embeddings: bool = False
    scale_embeddings: bool = False
    final_norm: bool = False
    bos_token_id: Optional[int] = None
    eos_token_id: Optional[int] = None
    pad_token_id: Optional[int] = None
    max_context: int = 2048

    @staticmethod
    def from_dict(values: dict) -> "PhotonConfig":
        values = {k: v for k, v in values.items() if k not in ("model_type", "dtype")}
        levels = []
        for level in values.pop("levels"):
            level = dict(level)
            for name, cls in (
                ("encoder", StackConfig),
                ("decoder", StackConfig),
                ("chunker", ChunkerConfig),
                ("converter", ConverterConfig),
            ):
                if name in level:
                    level[name] = cls(**level[name])
            levels.append(LevelConfig(**level))
        return PhotonConfig(levels=levels, **values)

    def to_dict(self) -> dict:
        values = {"model_type": "photon", **asdict(self)}
        if self.encoder_embedding_dim is None:
            del values["encoder_embedding_dim"]
        return values

    def meta_tokens(self) -> int:
        """P_L: tokens under one top-level unit."""
        tokens = 1
        for level in self.levels:
            tokens *= level.chunk_size
        return tokens

    def unit_width(self, index: int) -> int:
        """Width of the units that the chunker of `levels[index]` reads."""
        if index > 0:
            return self.levels[index - 1].encoder.hidden_size
        return self.encoder_embedding_dim or self.embedding_dim


def weight(*shape: int) -> nn.Parameter:
    """A matrix [out, in] with the usual 1/sqrt(in) initialisation."""
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)


def ones(width: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(width))


def linear(x: Tensor, w: Tensor, b: Optional[Tensor] = None) -> Tensor:
    return F.linear(x, w.to(x.dtype), None if b is None else b.to(x.dtype))


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), w.to(x.dtype), eps)


def rope_tables(length: int, dims: int, theta: float, device, dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [length, dims / 2] of position times theta^(-2i/dims)."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    frequency = theta ** (-torch.arange(0, dims, 2, device=device, dtype=exact) / dims)
    angle = torch.arange(length, device=device, dtype=exact)[:, None] * frequency[None, :]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first 2 * cos.shape[-1] dimensions of x [N, S, heads, head_dim]; the halves are
    the pairs."""
    half = cos.shape[-1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [N, S, heads, d], k and v [N, S, kv_heads, d] -> [N, S, heads, d], scaled by 1/sqrt(d)."""
    repeats = q.shape[2] // k.shape[2]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
    length = q.shape[1]
    if length > SMALL_WINDOW:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    return window_attention(q, k, v)


def window_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention inside each of N short windows, [N, S, heads, d] each."""
    windows, length = q.shape[:2]
    packed = math.gcd(windows, 1 << max(1, PACKED_POSITIONS // length).bit_length() - 1)
    q, k, v = (t.reshape(windows // packed, packed * length, *t.shape[2:]) for t in (q, k, v))
    position = torch.arange(packed * length, device=q.device)
    query, key = position[:, None], position[None, :]
    hidden = (key > query) | (key // length != query // length)
    scores = torch.einsum("nqhd,nkhd->nhqk", q * q.shape[-1] ** -0.5, k)
    probability = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("nhqk,nkhd->nqhd", probability, v).reshape(windows, length, *v.shape[2:])


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, each added to its input."""

    def __init__(self, c: StackConfig, residual_scale: float):
        super().__init__()
        self.config = c
        d, q_width, kv_width = c.hidden_size, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.attn_norm = ones(d)
        self.wq, self.wk, self.wv = weight(q_width, d), weight(kv_width, d), weight(kv_width, d)
        self.wo = weight(d, q_width)
        if c.qk_norm:
            self.q_norm, self.k_norm = ones(c.head_dim), ones(c.head_dim)
        self.ffn_norm = ones(d)
        self.w_gate, self.w_up = weight(c.intermediate_size, d), weight(c.intermediate_size, d)
        self.w_down = weight(d, c.intermediate_size)
        with torch.no_grad():
            self.wo *= residual_scale
            self.w_down *= residual_scale

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c = self.config
        h = rms_norm(x, self.attn_norm, c.norm_eps)
        # One product for all heads reads its input once.
        heads = linear(h, torch.cat([self.wq, self.wk, self.wv])).unflatten(-1, (-1, c.head_dim))
        q, k, v = heads.split([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=-2)
        if c.qk_norm:
            q, k = rms_norm(q, self.q_norm, c.norm_eps), rms_norm(k, self.k_norm, c.norm_eps)
        attended = causal_attention(apply_rope(q, cos, sin), apply_rope(k, cos, sin), v)
        x = x + linear(attended.flatten(-2), self.wo)
        h = rms_norm(x, self.ffn_norm, c.norm_eps)
        gate, up = linear(h, torch.cat([self.w_gate, self.w_up])).chunk(2, dim=-1)
        return x + linear(F.silu(gate) * up, self.w_down)


class Stack(nn.Module):
    """[N, S, hidden_size] -> same shape; position s attends to positions <= s of its own row."""

    def __init__(self, c: StackConfig):
        super().__init__()
        self.config = c
        self.layers = nn.ModuleList(
            Block(c, (2 * c.num_layers) ** -0.5) for _ in range(c.num_layers)
        )
        self.norm = ones(c.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        c = self.config
        cos, sin = rope_tables(x.shape[1], c.rope_dims(), c.rope_theta, x.device, x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return rms_norm(x, self.norm, c.norm_eps)


class Chunker(nn.Module):
    """[..., C, unit width] -> [..., D_l]."""

    def __init__(self, level: LevelConfig, unit_width: int):
        super().__init__()
        self.config, self.eps = level.chunker, level.encoder.norm_eps
        concat_width = level.chunk_size * unit_width
        if self.config.type == "concat":
            assert level.encoder.hidden_size == concat_width
            return
        if self.config.in_norm != "none":
            self.in_norm = ones(unit_width if self.config.in_norm == "unit" else concat_width)
        self.weight = weight(level.encoder.hidden_size, concat_width)
        if self.config.bias:
            self.bias = nn.Parameter(torch.zeros(level.encoder.hidden_size))
        if self.config.out_norm:
            self.out_norm = ones(level.encoder.hidden_size)

    def forward(self, units: Tensor) -> Tensor:
        c = self.config
        if c.type == "concat":
            return units.flatten(-2)
        if c.in_norm == "unit":
            units = rms_norm(units, self.in_norm, self.eps)
        x = units.flatten(-2)
        if c.in_norm == "concat":
            x = rms_norm(x, self.in_norm, self.eps)
        x = linear(x, self.weight, self.bias if c.bias else None)
        return rms_norm(x, self.out_norm, self.eps) if c.out_norm else x


class Converter(nn.Module):
    """[..., D_l] -> [..., R, D_{l-1}]."""

    def __init__(self, level: LevelConfig):
        super().__init__()
        self.config, self.eps, self.r = (
            level.converter,
            level.decoder.norm_eps,
            level.converter_width,
        )
        above, below = level.encoder.hidden_size, level.decoder.hidden_size
        if self.config.in_norm:
            self.in_norm = ones(above)
        self.weight = weight(self.r * below, above)
        if self.config.bias:
            self.bias = nn.Parameter(torch.zeros(self.r * below))
        if self.config.kernel == 3:
            self.conv = nn.Parameter(torch.randn(below, 3) * 0.02)
        if self.config.out_norm:
            self.out_norm = ones(below)

    def forward(self, x: Tensor) -> Tensor:
        c = self.config
        if c.in_norm:
            x = rms_norm(x, self.in_norm, self.eps)
        h = linear(x, self.weight, self.bias if c.bias else None).unflatten(-1, (self.r, -1))
        if c.kernel == 3:
            conv = self.conv.to(h.dtype)
            padded = F.pad(h, (0, 0, 1, 1))
            h = h + sum(conv[:, i] * padded[..., i : i + self.r, :] for i in range(3))
        return rms_norm(h, self.out_norm, self.eps) if c.out_norm else h


class Level(nn.Module):
    """The four modules of one level."""

    def __init__(self, c: LevelConfig, unit_width: int):
        super().__init__()
        self.config = c
        self.chunker, self.encoder = Chunker(c, unit_width), Stack(c.encoder)
        self.converter, self.decoder = Converter(c), Stack(c.decoder)

    def decode(self, condition: Tensor, content: Tensor) -> Tensor:
        """Predictions for slots 0 .. S of each group.

        condition [N, D_l] and the content of the first S slots [N, S, D_{l-1}] -> [N, S + 1,
        D_{l-1}]. Row j has seen the conditioning and the content of slots < j.
        """
        window = torch.cat([self.converter(condition), content], dim=1)
        return self.decoder(window)[:, self.config.converter_width - 1 :]

    def decode_own_predictions(self, condition: Tensor) -> Tensor:
        """As decode() for all C slots, where each slot's content is the prediction made for it."""
        window = self.converter(condition)
        for _ in range(self.config.chunk_size - 1):
            window = torch.cat([window, self.decoder(window)[:, -1:]], dim=1)
        return self.decoder(window)[:, self.config.converter_width - 1 :]


class Photon(nn.Module):
    def __init__(self, c: PhotonConfig):
        super().__init__()
        self.config = c
        if c.encoder_embedding_dim is not None:
            self.encoder_embedding = nn.Parameter(
                torch.randn(c.vocab_size, c.encoder_embedding_dim)
            )
        # A tied table also is the head, whose logits should start near zero.
        self.embedding = nn.Parameter(torch.randn(c.vocab_size, c.embedding_dim))
        if c.tie_word_embeddings or c.scale_embeddings:
            with torch.no_grad():
                self.embedding *= c.embedding_dim**-0.5
        if not c.tie_word_embeddings:
            self.lm_head = nn.Parameter(
                torch.randn(c.vocab_size, c.embedding_dim) * c.embedding_dim**-0.5
            )
        if c.final_norm:
            self.final_norm = ones(c.embedding_dim)
        self.start_latent = nn.Parameter(torch.randn(c.levels[-1].encoder.hidden_size) * 0.5)
        self.levels = nn.ModuleList(
            Level(level, c.unit_width(i)) for i, level in enumerate(c.levels)
        )

    def embed(self, tokens: Tensor, dtype, for_encoder: bool) -> Tensor:
        """tokens [...] -> [..., E] for the level-1 chunker, [..., D_0] for the level-1 decoder."""
        separate = for_encoder and self.config.encoder_embedding_dim is not None
        x = F.embedding(tokens, self.encoder_embedding if separate else self.embedding).to(dtype)
        return x * x.shape[-1] ** 0.5 if self.config.scale_embeddings else x

    def encode_units(self, index: int, units: Tensor) -> Tensor:
        """units [B, M, unit width], M a multiple of C -> encoder states [B, M / C, D_l]."""
        level = self.levels[index]
        x = level.chunker(units.unflatten(1, (-1, level.config.chunk_size)))
        if level.config.encoder_span == "global":
            return level.encoder(x)
        span = self.config.levels[index + 1].chunk_size
        blocks = x.unflatten(1, (-1, span)).flatten(0, 1)
        return level.encoder(blocks).reshape(x.shape)

    def encode(self, tokens: Tensor, dtype=torch.float32) -> list[Tensor]:
        """tokens [B, T], T a multiple of P_L -> [X[0], X[1], ..., X[L]], X[l] of shape [B, T / P_l,
        D_l]."""
        states = [self.embed(tokens, dtype, for_encoder=True)]
        for index in range(len(self.levels)):
            states.append(self.encode_units(index, states[-1]))
        return states

    def conditions(self, top_states: Tensor) -> Tensor:
        """X[L] [B, M, D_L] -> what conditions each meta-context: the states one to the right."""
        start = self.start_latent.to(top_states.dtype).expand(top_states.shape[0], 1, -1)
        return torch.cat([start, top_states[:, :-1]], dim=1)

    def decode_units(self, index: int, condition: Tensor, content: Optional[Tensor]) -> Tensor:
        """Level index + 1 >= 2: condition [B, M, D_l] -> Y[l-1] [B, M * C, D_{l-1}].

        content [B, M * C, D_{l-1}] are the encoder states of the units below; None: own
        predictions.
        """
        level = self.levels[index]
        flat = condition.flatten(0, 1)
        if content is None:
            y = level.decode_own_predictions(flat)
        else:
            size = level.config.chunk_size
            y = level.decode(flat, content.reshape(flat.shape[0], size, -1)[:, :-1])
        return y.reshape(condition.shape[0], -1, y.shape[-1])

    def decode_tokens(self, condition: Tensor, tokens: Tensor) -> Tensor:
        """condition Y[1] (or X[1] shifted) [B, M, D_1], tokens [B, M * C_1] -> Y[0] [B, M * C_1,
        D_0]."""
        level = self.levels[0]
        content = self.embed(tokens, condition.dtype, for_encoder=False)
        content = content.reshape(-1, level.config.chunk_size, content.shape[-1])[:, :-1]
        return level.decode(condition.flatten(0, 1), content).reshape(*tokens.shape, -1)

    def logits(self, y: Tensor) -> Tensor:
        """Y[0] [..., D_0] -> [..., V]."""
        if self.config.final_norm:
            y = rms_norm(y, self.final_norm, self.config.levels[0].decoder.norm_eps)
        return linear(y, self.embedding if self.config.tie_word_embeddings else self.lm_head)

    def forward(self, tokens: Tensor, dtype=torch.float32, own_predictions: bool = False) -> Tensor:
        """Teacher forcing: tokens [B, T], T a multiple of P_L -> logits [B, T, V]; row i scores
        token i.

        `own_predictions` gives the conditioning of `hiergen`: decoders of level >= 2 read their own
        outputs.
        """
        states = self.encode(tokens, dtype)
        condition = self.conditions(states[-1])
        for index in range(len(self.levels) - 1, 0, -1):
            condition = self.decode_units(
                index, condition, None if own_predictions else states[index]
            )
        return self.logits(self.decode_tokens(condition, tokens))

    def predicted_conditions(self, states: list[Tensor]) -> Tensor:
        """What conditions each meta-context when the top stream, from a random meta-context of each
        row on, reads predictions as in `recgen`; they are made from real states, for all
        meta-contexts at once."""
        top, last = self.levels[-1], len(self.levels) - 1
        real = states[last].unflatten(1, (-1, top.config.chunk_size))
        predicted = self.decode_units(last, self.conditions(states[-1]), None).view_as(real)
        rows, count = real.shape[:2]
        meta = torch.arange(count, device=real.device)
        first = torch.randint(count, (rows, 1), device=real.device)
        units = torch.where((meta < first)[..., None, None], real, predicted)
        return self.conditions(top.encoder(top.chunker(units)))

    def loss(
        self, tokens: Tensor, dtype=torch.float32, hiergen_rows: int = 0, recgen_rows: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Mean token cross-entropy [nats] and the recursive-consistency loss L_rec, both scalars.

        The first `hiergen_rows` sequences of the batch are conditioned as in `hiergen`, the first
        `recgen_rows` of those as in `recgen`, so that the decoders learn to continue from their own
        predictions.
        """
        states = self.encode(tokens, dtype)
        condition = self.conditions(states[-1])
        if recgen_rows > 0:
            predicted = self.predicted_conditions([x[:recgen_rows] for x in states])
            condition = torch.cat([predicted, condition[recgen_rows:]])
        consistency = []
        for index in range(len(self.levels) - 1, 0, -1):
            content, k = states[index], hiergen_rows
            parts = []
            if k > 0:
                parts.append(self.decode_units(index, condition[:k], None))
            if k < tokens.shape[0]:
                parts.append(self.decode_units(index, condition[k:], content[k:]))
            condition = torch.cat(parts, dim=0)
            cosine = F.cosine_similarity(condition.float(), content.detach().float(), dim=-1)
            consistency.append((1 - cosine).mean())
        logits = self.logits(self.decode_tokens(condition, tokens))
        cross_entropy = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
        zero = cross_entropy.new_zeros(())
        return cross_entropy, torch.stack(consistency).mean() if consistency else zero
