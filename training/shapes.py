"""Writes the config.json of a model to train. Two levels, block span below the top, tied
embeddings.

    python shapes.py --decoder 384x4 --mid 384x2 --encoder 384x2 --top 512x4 > config.json
    python shapes.py --transformer 512x8 > config.json
"""

import argparse
import json

from photon_model import ChunkerConfig, ConverterConfig, LevelConfig, PhotonConfig, StackConfig
from transformer_model import TransformerConfig

HEAD_DIM = 64


def stack(shape: str) -> StackConfig:
    """ "WIDTHxLAYERS", SwiGLU of 8/3 of the width rounded up to 64."""
    width, layers = map(int, shape.split("x"))
    heads = width // HEAD_DIM
    return StackConfig(
        width, layers, heads, heads, HEAD_DIM, -(-width * 8 // 3 // 64) * 64, qk_norm=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decoder", default="384x4", help="level-1 decoder, which sees tokens")
    parser.add_argument(
        "--mid", default="384x2", help="level-2 decoder; its width is the level-1 encoder's"
    )
    parser.add_argument("--encoder", default="384x2", help="level-1 encoder")
    parser.add_argument("--top", default="512x4", help="level-2 encoder")
    parser.add_argument("--chunks", default="4x4")
    parser.add_argument("--converter-width", type=int, default=2, help="R of both levels")
    parser.add_argument("--transformer", help="a plain Transformer of this shape instead")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--max-context", type=int, default=1024)
    args = parser.parse_args()
    if args.transformer:
        config = TransformerConfig(args.vocab_size, stack(args.transformer), args.max_context)
    else:
        decoder, mid, encoder, top = map(stack, (args.decoder, args.mid, args.encoder, args.top))
        chunks = [int(c) for c in args.chunks.split("x")]
        converter = ConverterConfig(out_norm=True, bias=True)
        levels = [
            LevelConfig(
                chunks[0],
                args.converter_width,
                encoder,
                decoder,
                ChunkerConfig(),
                converter,
                "block",
            ),
            LevelConfig(chunks[1], args.converter_width, top, mid, ChunkerConfig(), converter),
        ]
        config = PhotonConfig(
            args.vocab_size,
            decoder.hidden_size,
            levels,
            tie_word_embeddings=True,
            scale_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            max_context=args.max_context,
        )
    print(json.dumps(config.to_dict(), indent=2))


if __name__ == "__main__":
    main()
