#!/usr/bin/env python3
"""Validation bits per byte of a checkpoint in bf16 and quantised as `--quantization fp8` has it, in PyTorch.

    PYTHONPATH=training bench/quality/fp8.py --model models/demo --cache CACHE --windows 64 --out fp8.json

CACHE is what `training/data.py` makes of the corpus. Weights of all products but the head are rounded to e4m3 with a scale
for each output (its largest element / 448); "w8a8" rounds the rows that they multiply likewise, as the engine does from
nine rows on, and "w8a16" rounds those to bf16, as it does below. Sums and everything else are fp32, as checkpoints' bf16
weights are in every row.
"""
import argparse
import json
import pathlib

import torch

import evaluate
import photon_model
from checkpoint import load_checkpoint

E4M3_MAX = 448.0
plain_linear = photon_model.linear


def e4m3(x):
    """x with each of its last dimension's vectors rounded to e4m3 under a scale of its own."""
    scale = x.abs().amax(-1, keepdim=True) / E4M3_MAX
    return (x / scale.clamp(min=1e-30)).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype) * scale


def quantised_linear(head, round_input):
    def linear(x, w, b=None):
        if w is head:
            return plain_linear(x, w, b)
        return plain_linear(round_input(x), e4m3(w), b)
    return linear


def bf16(x):
    return x.bfloat16().to(x.dtype)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--cache", type=pathlib.Path, required=True)
    parser.add_argument("--windows", type=int, default=64, help="of the validation text, spread over it; 0: all")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_checkpoint(args.model)
    head = model.embedding if model.config.tie_word_embeddings else model.lm_head
    ways = {"bf16": lambda x, w, b=None: plain_linear(x if w is head else bf16(x), w, b),
            "w8a16": quantised_linear(head, bf16), "w8a8": quantised_linear(head, e4m3)}
    results = {"windows": args.windows, "length": args.length, "bits_per_byte": {}}
    for name, linear in ways.items():
        photon_model.linear = linear
        bits = evaluate.bits_per_byte(model, args.cache, 4, args.length, args.windows, "cpu", torch.float32)
        results["bits_per_byte"][name] = bits
        print(f"{name:6} {bits:.4f} bits per byte", flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
