#!/usr/bin/env python3
"""A vanilla Transformer in PyTorch, tuned as its users tune it: CUDA graphs, flash attention, static caches, bf16.

    transformer.py --model photon-600m --attention mha gqa --contexts 1152 --batches 1 16 256 --json OUT.json

Decoding: one step of `batch` sequences that all hold `context` tokens, captured as a CUDA graph with greedy sampling
inside and replayed. Prefill: prompts of --prompt tokens, as many as fill the card, and one of each of --first-token
tokens alone, until its first token is there. Regimes: --regimes IN,OUT runs
whole requests; the graph of a step is captured anew every 256 tokens of context. Batches that do not fit the memory
are left out and said to be. `--device cpu` tries the script out, without graphs.
"""
import argparse
import json
import pathlib
import statistics
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
from shapes import COMPARISONS  # noqa: E402

BUCKET = 256


class Transformer:
    """Weights, caches and the two passes. Weights are random: only their shapes matter here."""

    def __init__(self, shape, device, dtype, compile_layers):
        self.shape, self.device, self.dtype = shape, device, dtype
        kv = shape.kv_heads * shape.head_dim
        self.widths = [shape.width, kv, kv]

        def matrix(rows, columns):
            return (torch.randn(rows, columns, device=device) * columns**-0.5).to(dtype)

        self.embedding = matrix(shape.vocab, shape.width)
        self.head = self.embedding if shape.tied else matrix(shape.vocab, shape.width)
        self.layers = [
            {"qkv": matrix(shape.width + 2 * kv, shape.width), "out": matrix(shape.width, shape.width),
             "gate_up": matrix(2 * shape.ffn, shape.width), "down": matrix(shape.width, shape.ffn)}
            for _ in range(shape.layers)]
        self.ones = torch.ones(shape.width, device=device, dtype=dtype)
        # Flash kernels want heads of a multiple of eight; what is added is zero.
        self.head_padding = -shape.head_dim % 8
        half = shape.head_dim // 2
        self.frequencies = 10000.0 ** (-torch.arange(half, device=device) / half)
        # What is around attention: fused where the compiler can, once for all layers.
        wrap = (lambda f: torch.compile(f, dynamic=False)) if compile_layers else (lambda f: f)
        self.before_attention = wrap(self.before_attention)
        self.after_attention = wrap(self.after_attention)

    def make_cache(self, batch, tokens):
        """[layers][2][batch, kv_heads, tokens, padded head_dim]"""
        size = (2, batch, self.shape.kv_heads, tokens, self.shape.head_dim + self.head_padding)
        return [torch.zeros(size, device=self.device, dtype=self.dtype) for _ in self.layers]

    def norm(self, x):
        return F.rms_norm(x, (self.shape.width,), self.ones, 1e-5)

    def rotate(self, x, positions):
        angles = positions[:, None].float() * self.frequencies
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    def before_attention(self, x, positions, qkv):
        q, k, v = F.linear(self.norm(x), qkv).split(self.widths, dim=-1)
        q = self.rotate(q.unflatten(-1, (self.shape.heads, -1)).transpose(1, 2), positions)
        k = self.rotate(k.unflatten(-1, (self.shape.kv_heads, -1)).transpose(1, 2), positions)
        v = v.unflatten(-1, (self.shape.kv_heads, -1)).transpose(1, 2)
        return tuple(F.pad(head, (0, self.head_padding)) for head in (q, k, v))

    def after_attention(self, x, attended, out, gate_up, down):
        x = x + F.linear(attended.transpose(1, 2).flatten(2), out)
        gate, up = F.linear(self.norm(x), gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, down)

    def forward(self, tokens, positions, cache, context):
        """tokens [B, T] at `positions` [T] -> the last's best next token [B]; attends to `context` cached tokens."""
        x = self.embedding[tokens]
        for layer, (keys, values) in zip(self.layers, cache):
            q, k, v = self.before_attention(x, positions, layer["qkv"])
            keys.index_copy_(2, positions, k)
            values.index_copy_(2, positions, v)
            attended = F.scaled_dot_product_attention(
                q, keys[:, :, :context], values[:, :, :context], is_causal=tokens.shape[1] > 1,
                scale=self.shape.head_dim**-0.5, enable_gqa=self.shape.heads != self.shape.kv_heads)
            attended = attended[..., :self.shape.head_dim]
            x = self.after_attention(x, attended, layer["out"], layer["gate_up"], layer["down"])
        return F.linear(self.norm(x[:, -1]), self.head).argmax(dim=-1)


class DecodeStep:
    """One token of every sequence that holds `context` tokens: a CUDA graph, where there is CUDA."""

    def __init__(self, model, cache, batch, context):
        self.tokens = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
        self.position = torch.tensor([context - 1], device=model.device)

        def step():
            self.tokens.copy_(model.forward(self.tokens, self.position, cache, context)[:, None])

        self.run = step
        if model.device == "cuda":
            for _ in range(3):
                step()
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                step()
            self.run = self.graph.replay


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(device, repeats, body):
    """Median of `repeats` after one to warm up."""
    body()
    times = []
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        body()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


class Bench:
    def __init__(self, options, shape):
        self.options, self.shape = options, shape
        self.model = Transformer(shape, options.device, torch.bfloat16, options.compile)

    def guarded(self, body):
        try:
            return body()
        except torch.OutOfMemoryError:
            return None
        finally:
            if self.options.device == "cuda":
                torch.cuda.empty_cache()

    @torch.no_grad()
    def decode(self, batch, context):
        def body():
            cache = self.model.make_cache(batch, context)
            step = DecodeStep(self.model, cache, batch, context)
            seconds = seconds_of(self.options.device, self.options.repeats,
                                 lambda: [step.run() for _ in range(self.options.steps)]) / self.options.steps
            return {"batch": batch, "context": context, "tokens_per_second": batch / seconds, "step_seconds": seconds,
                    "cache_bytes_per_sequence": context * self.shape.kv_bytes_per_token()}
        return self.guarded(body)

    @torch.no_grad()
    def prefill(self, batch, prompt):
        def body():
            cache = self.model.make_cache(batch, prompt)
            tokens = torch.randint(self.shape.vocab, (batch, prompt), device=self.options.device)
            positions = torch.arange(prompt, device=self.options.device)
            seconds = seconds_of(self.options.device, self.options.repeats,
                                 lambda: self.model.forward(tokens, positions, cache, prompt))
            return {"batch": batch, "prompt": prompt, "tokens_per_second": batch * prompt / seconds,
                    "seconds": seconds}
        return self.guarded(body)

    @torch.no_grad()
    def regime(self, batch, prompt, output):
        """Whole requests of `batch` sequences; the captures are not counted, as a server makes them at its start."""
        def body():
            total = prompt + output
            cache = self.model.make_cache(batch, total)
            ends = [*range(prompt + min(BUCKET, output), total, BUCKET), total]
            steps = [(end, DecodeStep(self.model, cache, batch, end)) for end in ends]
            positions = torch.arange(prompt, device=self.options.device)
            at_once = max(1, self.options.prefill_tokens // prompt)
            pieces = [torch.randint(self.shape.vocab, (min(at_once, batch - i), prompt), device=self.options.device)
                      for i in range(0, batch, at_once)]
            # Prefill writes a cache of its own size; what it leaves there is not looked at.
            scratch = self.model.make_cache(at_once, prompt)

            def run():
                for piece in pieces:
                    self.model.forward(piece, positions, [layer[:, :len(piece)] for layer in scratch], prompt)
                done = prompt
                for end, step in steps:
                    for position in range(done, end):
                        step.position.fill_(position)
                        step.run()
                    done = end

            seconds = seconds_of(self.options.device, 1, run)
            gib = total * self.shape.kv_bytes_per_token() / 2**30
            rate = batch * output / seconds
            return {"batch": batch, "prompt": prompt, "output": output, "tokens_per_second": rate,
                    "cache_bytes_per_sequence": gib * 2**30, "tpm": rate / 1e3 / gib}
        return self.guarded(body)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=COMPARISONS, default="photon-600m")
    parser.add_argument("--attention", nargs="+", choices=("mha", "gqa"), default=["mha", "gqa"])
    parser.add_argument("--contexts", type=int, nargs="*", default=[1152])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256, 512])
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--prefill-tokens", type=int, default=16384, help="of a prefill's batch")
    parser.add_argument("--first-token", type=int, nargs="*", default=[], help="prompts that are prefilled alone")
    parser.add_argument("--regimes", nargs="*", default=[], help="IN,OUT of whole requests")
    parser.add_argument("--regime-batches", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=pathlib.Path, required=True)
    options = parser.parse_args()

    torch.manual_seed(0)
    report = {"command": " ".join(sys.argv), "torch": torch.__version__, "model": options.model, "rows": []}
    if options.device == "cuda":
        report["device"] = torch.cuda.get_device_name()

    def add(attention, phase, wanted, row):
        row = row or {**wanted, "out_of_memory": True}
        report["rows"].append({"attention": attention, "phase": phase, **row})
        speed = f"{row['tokens_per_second']:12,.0f} tok/s" if "tokens_per_second" in row else "out of memory"
        print(f"{attention} {phase:8} {wanted} {speed}", flush=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")

    for shape in COMPARISONS[options.model].transformers:
        if shape.name not in options.attention:
            continue
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 1000  # each batch is a shape of its own
        bench = Bench(options, shape)
        batch = max(1, options.prefill_tokens // options.prompt)
        add(shape.name, "prefill", {"batch": batch, "prompt": options.prompt}, bench.prefill(batch, options.prompt))
        for prompt in options.first_token:
            add(shape.name, "first-token", {"batch": 1, "prompt": prompt}, bench.prefill(1, prompt))
        for context in options.contexts:
            for batch in options.batches:
                row = bench.decode(batch, context)
                add(shape.name, "decode", {"batch": batch, "context": context}, row)
                if row is None:
                    break  # larger ones do not fit either
        for regime in options.regimes:
            prompt, output = map(int, regime.split(","))
            for batch in options.regime_batches:
                add(shape.name, "regime", {"batch": batch, "prompt": prompt, "output": output},
                    bench.regime(batch, prompt, output))
        del bench


if __name__ == "__main__":
    main()
