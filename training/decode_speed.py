"""Times cached greedy generation of a two-level block-span PHOTON and of a Transformer, side by
side.

    python decode_speed.py --model ../models/demo --transformer configs/transformer.json

Plain eager PyTorch for both, on one thread, in processor time: every stack keeps the keys and
values it has seen. Weights do not matter for speed, so the Transformer's are random.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoint import build_model, load_checkpoint
from photon_model import Photon, Stack, apply_rope, linear, rms_norm, rope_tables
from transformer_model import Transformer


class CachedStack:
    """A stack that is fed positions as they come."""

    def __init__(self, stack: Stack):
        self.stack = stack
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def feed(self, x: Tensor) -> Tensor:
        """The next positions [B, S, hidden_size] -> the last one's output [B, hidden_size]; S > 1
        only at first."""
        c = self.stack.config
        start = self.keys[0].shape[2] if self.keys else 0
        assert start == 0 or x.shape[1] == 1
        tables = rope_tables(start + x.shape[1], c.rope_dims(), c.rope_theta, x.device, x.dtype)
        cos, sin = (t[start:] for t in tables)
        for i, block in enumerate(self.stack.layers):
            h = rms_norm(x, block.attn_norm, c.norm_eps)
            q, k, v = (
                linear(h, w).unflatten(-1, (-1, c.head_dim)) for w in (block.wq, block.wk, block.wv)
            )
            if c.qk_norm:
                q, k = rms_norm(q, block.q_norm, c.norm_eps), rms_norm(k, block.k_norm, c.norm_eps)
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            if start == 0:
                self.keys.append(k)
                self.values.append(v)
            else:
                self.keys[i] = k = torch.cat([self.keys[i], k], dim=2)
                self.values[i] = v = torch.cat([self.values[i], v], dim=2)
            attended = F.scaled_dot_product_attention(
                q, k, v, is_causal=start == 0, enable_gqa=True
            )
            x = x + linear(attended.transpose(1, 2).flatten(-2), block.wo)
            h = rms_norm(x, block.ffn_norm, c.norm_eps)
            gated = F.silu(linear(h, block.w_gate)) * linear(h, block.w_up)
            x = x + linear(gated, block.w_down)
        return rms_norm(x[:, -1], self.stack.norm, c.norm_eps)


def transformer_tokens(model: Transformer, prompt: Tensor, count: int):
    """Yields the greedy continuation of prompt [B, T], a column [B] at a time."""
    stack, scale = CachedStack(model.stack), model.config.stack.hidden_size**0.5
    tokens = prompt
    for _ in range(count):
        y = stack.feed(F.embedding(tokens, model.embedding) * scale)
        token = linear(y, model.embedding).argmax(-1)
        yield token
        tokens = token[:, None]


def photon_tokens(model: Photon, prompt: Tensor, count: int):
    """As transformer_tokens(), in `exact` mode; T is a multiple of the meta-context."""
    low, top = model.levels
    dtype = model.embedding.dtype
    units = model.encode_units(0, model.embed(prompt, dtype, for_encoder=True))
    stream = CachedStack(top.encoder)
    state = stream.feed(top.chunker(units.unflatten(1, (-1, top.config.chunk_size))))
    while True:
        decoder, encoder, states = CachedStack(top.decoder), CachedStack(low.encoder), []
        prediction = decoder.feed(top.converter(state))
        for _ in range(top.config.chunk_size):
            if states:
                prediction = decoder.feed(states[-1][:, None])
            window, tokens = CachedStack(low.decoder), []
            y = window.feed(low.converter(prediction))
            for _ in range(low.config.chunk_size):
                if tokens:
                    y = window.feed(model.embed(tokens[-1][:, None], dtype, for_encoder=False))
                tokens.append(model.logits(y).argmax(-1))
                yield tokens[-1]
                count -= 1
                if count == 0:
                    return
            unit = model.embed(torch.stack(tokens, 1), dtype, for_encoder=True)
            states.append(encoder.feed(low.chunker(unit)[:, None]))
        state = stream.feed(top.chunker(torch.stack(states, 1))[:, None])


@torch.no_grad()
def tokens_per_second(tokens_of, model, batch: int, context: int, count: int, repeats: int):
    """(generated tokens a second without the first, seconds to the first), the best of repeats."""
    prompt = torch.randint(3, model.config.vocab_size, (batch, context))
    speeds, firsts = [], []
    for _ in range(repeats):
        started = time.process_time()
        tokens = tokens_of(model, prompt, count + 1)
        next(tokens)
        first = time.process_time()
        for _ in tokens:
            pass
        speeds.append(batch * count / (time.process_time() - first))
        firsts.append(first - started)
    return max(speeds), min(firsts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="PHOTON checkpoint folder")
    parser.add_argument("--transformer", type=Path, required=True, help="config.json")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = {
        "PHOTON": (photon_tokens, load_checkpoint(args.model)),
        "Transformer": (
            transformer_tokens,
            build_model(json.loads(args.transformer.read_text())).eval(),
        ),
    }
    for batch in args.batches:
        for name, (tokens_of, model) in models.items():
            speed, first = tokens_per_second(
                tokens_of, model, batch, args.context, args.tokens, args.repeats
            )
            print(
                f"{name}, {batch} sequences of {args.context} tokens: {speed:,.0f} tokens/s, "
                f"first after {first * 1000:,.0f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
