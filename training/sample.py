"""Writes text that a model samples as a training file of its own.

    python sample.py --model RUN/demo/state.pt --cache CACHE --name sampled --minutes 1

What a parallel mode cannot know is which of many continuations the other groups of its
meta-context take. Text sampled at a low temperature has far fewer of them than people's, so the
modes learn more from it (sequence-level distillation: Kim and Rush, arXiv 1606.07947). Prompts come
from the training files; the text is of `exact` mode. CACHE then holds NAME's tokens and starts, as
data.py leaves them: `train.py --hiergen-text NAME` reads them.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from checkpoint import load_checkpoint
from data import WEIGHTS, Mixture, parse_weights
from generate import Sampler
from photon_model import Photon


def min_p(temperature: float, share: float) -> Sampler:
    """Samples among the tokens that have at least `share` of the likeliest one's probability."""

    def sample(logits: Tensor) -> Tensor:
        scaled = logits.float() / temperature
        scaled = scaled.masked_fill(
            scaled < scaled.amax(-1, keepdim=True) + math.log(share), float("-inf")
        )
        gumbel = -torch.empty_like(scaled).exponential_().log()
        return (scaled + gumbel).argmax(-1)

    return sample


def decode_group(model: Photon, index: int, condition: Tensor, sampler: Sampler) -> Tensor:
    """The tokens [B, P_l] under one unit of level l = index + 1, given its condition [B, D_l]."""
    level = model.levels[index]
    below = level.decoder.config.hidden_size
    content = condition.new_empty(condition.shape[0], 0, below)
    parts: list[Tensor] = []
    for _ in range(level.config.chunk_size):
        y = level.decode(condition, content)[:, -1]
        if index == 0:
            parts.append(sampler(model.logits(y))[:, None])
            unit = model.embed(parts[-1], y.dtype, for_encoder=False)
        else:
            parts.append(decode_group(model, index - 1, y, sampler))
            unit = encode_group(model, index, torch.cat(parts, dim=1))[:, -1:]
        content = torch.cat([content, unit], dim=1)
    return torch.cat(parts, dim=1)


def encode_group(model: Photon, index: int, tokens: Tensor) -> Tensor:
    """X[index] of the units that `tokens`, the first of one group of levels[index], make up."""
    levels = model.levels[: index + 1]
    whole = math.prod(level.config.chunk_size for level in levels)
    units = tokens.shape[1] * levels[-1].config.chunk_size // whole
    padded = torch.nn.functional.pad(tokens, (0, whole - tokens.shape[1]))
    x = model.embed(padded, model.embedding.dtype, for_encoder=True)
    for below in range(index):
        x = model.encode_units(below, x)
    return x[:, :units]


def decode_parallel(model: Photon, condition: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """The tokens [B, P_L] under one top unit, all level-1 groups at once, and Y[L-1] [B, C_L,
    D_{L-1}], given the unit's condition [B, D_L]."""
    predictions = model.decode_units(len(model.levels) - 1, condition[:, None], None)
    groups = predictions
    for index in range(len(model.levels) - 2, 0, -1):
        groups = model.decode_units(index, groups, None)
    tokens = decode_group(model, 0, groups.flatten(0, 1), sampler)
    return tokens.view(condition.shape[0], -1), predictions


@torch.no_grad()
def continue_prompts(
    model: Photon, prompts: Tensor, count: int, sampler: Sampler, mode: str = "exact"
) -> Tensor:
    """prompts [B, T] of whole meta-contexts -> [B, T + count], `count` likewise.

    Nothing is kept but the top encoder's inputs: windows are short, and rows are many.
    """
    top, last = model.levels[-1], len(model.levels) - 1
    if any(level.config.encoder_span != "block" for level in model.levels[:-1]):
        raise ValueError("encoders below the top must be of block span")
    states = model.encode(prompts, model.embedding.dtype)
    inputs = top.chunker(states[last].unflatten(1, (-1, top.config.chunk_size)))
    tokens = prompts
    while tokens.shape[1] < prompts.shape[1] + count:
        condition, predictions = top.encoder(inputs)[:, -1], None
        if mode == "exact":
            written = decode_group(model, last, condition, sampler)
        else:
            written, predictions = decode_parallel(model, condition, sampler)
        tokens = torch.cat([tokens, written], dim=1)
        units = predictions if mode == "recgen" else encode_group(model, last, written)
        inputs = torch.cat([inputs, top.chunker(units)[:, None]], dim=1)
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder or state.pt")
    parser.add_argument("--cache", type=Path, required=True, help="folder that data.py filled")
    parser.add_argument("--name", default="sampled")
    parser.add_argument("--weights", default=WEIGHTS, help="of the files that prompts come from")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch", type=int, default=4096, help="sequences at a time")
    parser.add_argument("--prompt-metas", type=int, default=2, help="meta-contexts of a prompt")
    parser.add_argument("--metas", type=int, default=14, help="meta-contexts that follow")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--min-p", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = load_checkpoint(args.model, getattr(torch, args.dtype)).to(args.device)
    meta = model.config.meta_tokens()
    data = Mixture(args.cache, parse_weights(args.weights), args.seed)
    sampler = min_p(args.temperature, args.min_p)
    begun, sequences = time.monotonic(), []
    while not sequences or time.monotonic() - begun < 60 * args.minutes:
        prompts = data.batch(args.batch, args.prompt_metas * meta).to(args.device)
        tokens = continue_prompts(model, prompts, args.metas * meta, sampler)
        sequences.append(tokens.cpu().numpy().astype(np.uint16))
        written = sum(s.shape[0] for s in sequences) * args.metas * meta
        print(
            f"{args.name}: {written / 1e6:.1f} M tokens written, "
            f"{written / (time.monotonic() - begun):,.0f} a second",
            flush=True,
        )
    stream = np.concatenate(sequences)
    np.save(args.cache / f"train_{args.name}.tokens.npy", stream.ravel())
    np.save(args.cache / f"train_{args.name}.starts.npy", np.arange(len(stream)) * stream.shape[1])


if __name__ == "__main__":
    main()
