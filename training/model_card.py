"""Writes a checkpoint's README.md: comparison, modes, samples.

    python model_card.py --model DIR --notes notes.md --results "PHOTON=photon.json" \\
        --results "Transformer=transformer.json"

Results are files of evaluate.py; the first one is the checkpoint's. The notes say how the models
were trained and follow the title.
"""

import argparse
import json
import math
from pathlib import Path

import sentencepiece
import torch

from checkpoint import load_checkpoint
from generate import MODES, generate_text, nucleus

PROMPTS = (
    "Once upon a time, there was a little girl",
    "One day, Tom and his dog went to the park",
    "The old king looked at his three sons and said",
)


def comparison_table(results: dict[str, dict]) -> str:
    lines = [
        "| model | parameters | validation bits per byte | prefill, tokens/s | KV bytes per token (bf16) "
        "| weight multiply-adds per generated token |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, r in results.items():
        lines.append(
            f"| {name} | {r['parameters'] / 1e6:.1f} M | {r['bits_per_byte']:.3f} | "
            f"{r['prefill_tokens_per_second']:,.0f} | {r['kv_bytes_per_token']:,.0f} | "
            f"{r['multiply_adds_per_token'] / 1e6:.1f} M |"
        )
    return "\n".join(lines)


def mode_table(modes: dict[str, dict]) -> str:
    lines = [
        "| mode | perplexity per token | KL from the reference, nats per token | greedy agreement "
        "| perplexity of its own text |",
        "|---|---:|---:|---:|---:|",
    ]
    for mode, r in modes.items():
        lines.append(
            f"| `{mode}` | {r['perplexity']:.1f} | {abs(r['kl_nats']):.3f} | {r['greedy_agreement']:.1%} "
            f"| {r['own_text_perplexity']:.1f} |"
        )
    return "\n".join(lines)


def samples(folder: Path, count: int, temperature: float, top_p: float, seed: int) -> str:
    model = load_checkpoint(folder)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    sections = []
    for prompt in PROMPTS:
        for mode in MODES:
            text = generate_text(
                model, processor, prompt, mode, count, nucleus(temperature, top_p, seed)
            )
            quoted = f"**{prompt}**{text}".strip().replace("\n", "\n> ")
            sections.append(f"`{mode}`\n\n> {quoted}")
    return "\n\n".join(sections)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="checkpoint folder; its README.md is written"
    )
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--results", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--tokens", type=int, default=112)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for item in args.results:
        name, file = item.rsplit("=", 1)
        results[name] = json.loads(Path(file).read_text())
    modes = next(iter(results.values()))["modes"]
    levels = json.loads((args.model / "config.json").read_text())["levels"]
    tokens_per_group = levels[0]["chunk_size"]
    count = math.prod(level["chunk_size"] for level in levels) // tokens_per_group
    groups = f"{count} of {tokens_per_group} tokens"
    (args.model / "README.md").write_text(f"""{args.notes.read_text().strip()}

## Against a Transformer

{comparison_table(results)}

Bits per byte are over the whole validation text in windows of 1,024 tokens. Prefill runs four prompts of 1,024 tokens through
uncompiled fp32 PyTorch, each on a processor of the same machine; PHOTON runs its encoders alone. KV bytes are those that grow
with the context. Multiply-adds count the weight matrices, attention over the context left out.

## The three modes

{mode_table(modes)}

Half a validation window of 1,024 tokens is the prompt; the next 128 tokens are forced and scored as each mode
would predict them. The reference is the teacher-forced forward pass, which `exact` samples from. The last column scores, by the
reference, text that each mode continues prompts of 128 tokens with, at temperature 0.6 among tokens of at least a tenth of the
likeliest one's probability. `hiergen` and `recgen` write all groups of a meta-context ({groups}) at once and without seeing each
other's tokens: what breaks, breaks at the seams between groups.

## Samples

Sampled at temperature {args.temperature:g}, top-p {args.top_p:g}, seed {args.seed}, {args.tokens} tokens, not selected. The prompt is bold.

{samples(args.model, args.tokens, args.temperature, args.top_p, args.seed)}
""")


if __name__ == "__main__":
    main()
