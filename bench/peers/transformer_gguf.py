#!/usr/bin/env python3
"""Writes a Transformer with random weights as a GGUF file for llama.cpp.

    transformer_gguf.py --model demo --attention mha --dtype bf16 --context 16384 OUT.gguf
"""
import argparse

import gguf
import numpy as np

from shapes import COMPARISONS

TYPES = {
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def write(shape, dtype, context, path, seed=0):
    kind, file_type = TYPES[dtype]
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"random-{shape.name}")
    writer.add_file_type(file_type)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)

    def matrix(name, rows, columns):
        # Rows are output features; the variance keeps activations near one.
        values = random.standard_normal((rows, columns), dtype=np.float32) * columns**-0.5
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def norm(name):
        writer.add_tensor(name, np.ones(shape.width, np.float32))

    kv_width = shape.kv_heads * shape.head_dim
    matrix("token_embd.weight", shape.vocab, shape.width)
    for i in range(shape.layers):
        norm(f"blk.{i}.attn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", shape.width, shape.width)
        matrix(f"blk.{i}.attn_k.weight", kv_width, shape.width)
        matrix(f"blk.{i}.attn_v.weight", kv_width, shape.width)
        matrix(f"blk.{i}.attn_output.weight", shape.width, shape.width)
        norm(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.ffn_gate.weight", shape.ffn, shape.width)
        matrix(f"blk.{i}.ffn_up.weight", shape.ffn, shape.width)
        matrix(f"blk.{i}.ffn_down.weight", shape.width, shape.ffn)
    norm("output_norm.weight")
    if not shape.tied:
        matrix("output.weight", shape.vocab, shape.width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=COMPARISONS, default="demo")
    parser.add_argument("--attention", choices=("mha", "gqa"), default="mha")
    parser.add_argument("--dtype", choices=TYPES, default="bf16")
    parser.add_argument("--context", type=int, default=16384)
    parser.add_argument("out")
    options = parser.parse_args()
    shape, = (t for t in COMPARISONS[options.model].transformers if t.name == options.attention)
    write(shape, options.dtype, options.context, options.out)
    print(f"{options.out}: {shape.parameters / 1e6:.1f} M parameters, {options.dtype}")


if __name__ == "__main__":
    main()
