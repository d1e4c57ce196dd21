#!/usr/bin/env python3
"""Hugging Face Transformers' continuous batching over a Llama of the same size with random weights.

    batching.py --model photon-600m --attention mha gqa --requests 256 --prompt 128 --output 512 --json OUT.json

All requests are there at the start; the window ends with the last token. Its paged cache takes --memory of what the
card has left, less than the nine tenths of its own default, which leave no room for the masks and gathered keys of its
attention. A number of requests that fails is said to have, and the next one is tried.
"""
import argparse
import json
import pathlib
import sys
import time

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
from shapes import COMPARISONS  # noqa: E402


def build(shape, context, device, implementation):
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        max_position_embeddings=context, tie_word_embeddings=shape.tied, attn_implementation=implementation,
        bos_token_id=1, eos_token_id=None, pad_token_id=0)
    with torch.device(device):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def measure(model, options, requests):
    random = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, model.config.vocab_size, (requests, options.prompt), generator=random).tolist()
    generation = GenerationConfig(max_new_tokens=options.output, min_new_tokens=options.output, do_sample=False,
                                  eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(max_memory_percent=options.memory)
    begin = time.perf_counter()
    outputs = model.generate_batch(inputs=prompts, generation_config=generation, continuous_batching_config=batching,
                                   progress_bar=False)
    seconds = time.perf_counter() - begin
    tokens = sum(len(output.generated_tokens) for output in outputs.values())
    row = {"requests": requests, "prompt": options.prompt, "output": options.output, "seconds": seconds,
            "generated_tokens": tokens, "tokens_per_second": tokens / seconds}
    if tokens != requests * options.output:
        reasons = {str(output.error)[:300] for output in outputs.values() if output.error}
        row["error"] = f"{tokens} tokens came, {requests * options.output} were asked for: {'; '.join(sorted(reasons))}"
        print(row["error"], file=sys.stderr)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=COMPARISONS, default="photon-600m")
    parser.add_argument("--attention", nargs="+", choices=("mha", "gqa"), default=["mha", "gqa"])
    parser.add_argument("--implementation", default="sdpa", help="of its attention: sdpa, flash_attention_2, ...")
    parser.add_argument("--requests", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=512)
    parser.add_argument("--memory", type=float, default=0.5, help="share of the free memory for the paged cache")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=pathlib.Path, required=True)
    options = parser.parse_args()

    report = {"command": " ".join(sys.argv), "transformers": transformers.__version__, "torch": torch.__version__,
              "model": options.model, "rows": []}
    for shape in COMPARISONS[options.model].transformers:
        if shape.name not in options.attention:
            continue
        model = build(shape, options.prompt + options.output, options.device, options.implementation)
        measure(model, argparse.Namespace(prompt=options.prompt, output=8, memory=options.memory), 2)  # warm-up
        for requests in options.requests:
            row = {"attention": shape.name, "phase": "batching", **measure(model, options, requests)}
            row["cache_bytes_per_sequence"] = (options.prompt + options.output) * shape.kv_bytes_per_token()
            report["rows"].append(row)
            print(f"{shape.name} {requests} requests: {row['tokens_per_second']:,.0f} tok/s", flush=True)
            options.json.write_text(json.dumps(report, indent=1) + "\n")
        del model


if __name__ == "__main__":
    main()
