"""Measures a model on the validation text and writes the numbers as JSON.

    python evaluate.py --model DIR_OR_STATE --cache CACHE --out results.json

Validation bits per byte come from consecutive windows of `--length` tokens, the first token of each
left out, so that PHOTON and the Transformer are scored on the same tokens. For PHOTON every
generation mode is measured too: half a window is the prompt, and the next `--horizon` tokens are
scored as the mode would predict them with those tokens forced: perplexity, KL divergence from the
reference forward pass, and how often the likeliest token agrees. Then each mode continues prompts
by itself, and the reference forward pass scores what it wrote: a text whose groups do not fit each
other has a high perplexity.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoint import load_checkpoint
from data import validation_batches
from generate import MODES
from photon_model import Photon
from sample import continue_prompts, min_p
from transformer_model import Transformer


def token_losses(model, tokens: Tensor, dtype) -> Tensor:
    """-log p of tokens 1 .. T-1 [B, T-1] in nats."""
    if isinstance(model, Transformer):
        logits = model(tokens, dtype)[:, :-1]
    else:
        logits = model(tokens, dtype)[:, 1:]
    return F.cross_entropy(logits.transpose(1, 2).float(), tokens[:, 1:], reduction="none")


@torch.no_grad()
def bits_per_byte(model, cache: Path, rows: int, length: int, limit: int, device, dtype) -> float:
    byte_lengths = torch.from_numpy(np.load(cache / "bytes_per_token.npy"))
    nats = total_bytes = 0.0
    for tokens in validation_batches(cache, rows, length, limit):
        nats += token_losses(model, tokens.to(device), dtype).sum().item()
        total_bytes += byte_lengths[tokens[:, 1:]].sum().item()
    return nats / math.log(2) / total_bytes


def recgen_logits(model: Photon, tokens: Tensor, first: int, metas: int, dtype) -> Tensor:
    """Logits [B, metas * P_L, V] of the tokens from `first` on; the top stream never sees them."""
    top = model.levels[-1]
    units = model.encode(tokens[:, :first], dtype)[len(model.levels) - 1]
    top_inputs = top.chunker(units.unflatten(1, (-1, top.config.chunk_size)))
    conditions = []
    for _ in range(metas):
        condition = top.encoder(top_inputs)[:, -1:]
        predictions = model.decode_units(len(model.levels) - 1, condition, None)
        conditions.append(predictions)
        top_inputs = torch.cat([top_inputs, top.chunker(predictions)[:, None]], dim=1)
    condition = torch.cat(conditions, dim=1)
    for index in range(len(model.levels) - 2, 0, -1):
        condition = model.decode_units(index, condition, None)
    scored = tokens[:, first : first + metas * model.config.meta_tokens()]
    return model.logits(model.decode_tokens(condition, scored))


@torch.no_grad()
def measure_modes(
    model: Photon, cache: Path, rows: int, length: int, limit: int, horizon: int, device, dtype
) -> dict:
    meta = model.config.meta_tokens()
    first, count = length // 2 // meta * meta, horizon
    sums: dict[str, list[float]] = {}
    tokens_scored = 0
    for tokens in validation_batches(cache, rows, length, limit):
        tokens = tokens[:, : first + count].to(device)
        target = tokens[:, first:]
        reference = model(tokens, dtype)[:, first:].float().log_softmax(-1)
        logits = {"exact": reference}
        if len(model.levels) > 1:
            logits["hiergen"] = model(tokens, dtype, own_predictions=True)[:, first:]
            logits["recgen"] = recgen_logits(model, tokens, first, horizon // meta, dtype)
        tokens_scored += target.numel()
        for mode, values in logits.items():
            log_p = values.float().log_softmax(-1)
            found = [
                -log_p.gather(-1, target[..., None]).sum().item(),
                (reference.exp() * (reference - log_p)).sum().item(),
                (log_p.argmax(-1) == reference.argmax(-1)).sum().item(),
            ]
            sums[mode] = [a + b for a, b in zip(sums.get(mode, [0.0] * 3), found)]
    return {
        mode: {
            "perplexity": math.exp(nats / tokens_scored),
            "kl_nats": kl / tokens_scored,
            "greedy_agreement": agreed / tokens_scored,
        }
        for mode, (nats, kl, agreed) in sums.items()
    }


@torch.no_grad()
def own_text(
    model: Photon, cache: Path, rows: int, limit: int, horizon: int, device, dtype
) -> dict[str, float]:
    """Perplexity, under the reference forward pass, of the tokens that each mode samples at
    temperature 0.6 after prompts of as many."""
    model = copy.deepcopy(model).to(dtype)
    torch.manual_seed(1)
    nats: dict[str, list[float]] = {}
    for prompts in validation_batches(cache, rows, horizon, limit):
        for mode in MODES if len(model.levels) > 1 else MODES[:1]:
            tokens = continue_prompts(model, prompts.to(device), horizon, min_p(0.6, 0.1), mode)
            log_p = model(tokens, dtype)[:, horizon:].float().log_softmax(-1)
            chosen = log_p.gather(-1, tokens[:, horizon:, None])
            nats.setdefault(mode, []).append(-chosen.mean().item())
    return {mode: math.exp(sum(values) / len(values)) for mode, values in nats.items()}


def matrix_sizes(model) -> dict[str, float]:
    """What a generated token costs: key-value bytes that stay (bf16), and multiply-adds of the
    weight matrices."""

    def stack_weights(stack) -> int:
        return sum(p.numel() for p in stack.parameters() if p.ndim == 2)

    def kv_bytes(c) -> int:
        return 2 * c.num_layers * c.num_kv_heads * c.head_dim * 2

    if isinstance(model, Transformer):
        c = model.config
        return {
            "kv_bytes_per_token": kv_bytes(c.stack),
            "multiply_adds_per_token": stack_weights(model.stack) + model.embedding.numel(),
        }
    head = model.config.vocab_size * model.config.embedding_dim
    kv, cost, below = 0.0, float(head), 1
    for level in model.levels:
        c = level.config
        cost += (
            stack_weights(level.decoder)
            * (c.converter_width + c.chunk_size - 1)
            / (below * c.chunk_size)
        )
        below *= c.chunk_size
        cost += (stack_weights(level.encoder) + level.converter.weight.numel()) / below
        cost += 0 if c.chunker.type == "concat" else level.chunker.weight.numel() / below
        if c.encoder_span == "global":
            kv += kv_bytes(c.encoder) / below
    return {"kv_bytes_per_token": kv, "multiply_adds_per_token": cost}


@torch.no_grad()
def prefill_speed(model, length: int, device, dtype, rows: int = 4, repeats: int = 8) -> float:
    """Prompt tokens per second: PHOTON runs its encoders, the Transformer its layers, no head."""
    tokens = torch.randint(3, model.config.vocab_size, (rows, length), device=device)
    best = math.inf
    for _ in range(repeats):
        if device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        if isinstance(model, Transformer):
            model.hidden(tokens, dtype)
        else:
            model.encode(tokens, dtype)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return rows * length / best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder or state.pt")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--windows", type=int, default=0, help="0: all")
    parser.add_argument(
        "--horizon", type=int, default=128, help="tokens that a mode predicts after its prompt"
    )
    parser.add_argument(
        "--own-prompts", type=int, default=256, help="that each mode continues by itself"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    model = load_checkpoint(args.model).to(args.device)
    shared = (args.cache, args.rows, args.length, args.windows)
    results = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bits_per_byte": bits_per_byte(model, *shared, args.device, dtype),
        **matrix_sizes(model),
        "prefill_tokens_per_second": prefill_speed(model, args.length, args.device, dtype),
    }
    if isinstance(model, Photon):
        meta = model.config.meta_tokens()
        horizon = max(meta, args.horizon // meta * meta)
        results["modes"] = measure_modes(model, *shared, horizon, args.device, dtype)
        own = own_text(model, args.cache, 64, args.own_prompts, horizon, args.device, dtype)
        for mode, perplexity in own.items():
            results["modes"][mode]["own_text_perplexity"] = perplexity
    text = json.dumps(results, indent=2)
    print(text, flush=True)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
