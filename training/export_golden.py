"""Writes the golden checkpoints of tests/golden: small models of every option with what they must
compute.

    python export_golden.py --out ../tests/golden

Every folder is a checkpoint in fp32 whose parameters are all random, plus golden.safetensors:

- `tokens` [T] int32 and `logits` [T, V] fp32: the reference forward pass; T is no multiple of a
  meta-context.
- For each mode the checkpoint allows and both an aligned and an unaligned prompt:
  `<mode>.<alignment>.prompt` [n], `<mode>.<alignment>.output` [m] int32, its greedy continuation to
  the end of a meta-context, and `<mode>.<alignment>.logits` [m, V], the rows that the output was
  picked from.

Everything is computed in fp64.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoint import save_checkpoint
from generate import MODES, Generator
from photon_model import (
    ChunkerConfig,
    ConverterConfig,
    LevelConfig,
    Photon,
    PhotonConfig,
    StackConfig,
)

# Smallest gap between the best and the second logit of a greedy pick: rounding cannot change it.
MIN_MARGIN = 0.02


def stack(
    hidden: int,
    layers: int = 1,
    heads: int = 2,
    kv_heads: int = 2,
    head_dim: int = 8,
    ffn: int = 24,
    **options,
) -> StackConfig:
    return StackConfig(hidden, layers, heads, kv_heads, head_dim, ffn, **options)


def level(
    chunk: int,
    converter_width: int,
    encoder: StackConfig,
    decoder: StackConfig,
    span: str = "global",
    chunker: ChunkerConfig = ChunkerConfig(),
    converter: ConverterConfig = ConverterConfig(),
) -> LevelConfig:
    return LevelConfig(chunk, converter_width, encoder, decoder, chunker, converter, span)


def configs() -> dict[str, PhotonConfig]:
    """Between them: L = 1, 2, 3, uneven chunks, R = 1, 2, 3, and every option of every module."""
    concat = ChunkerConfig("concat")
    biased = ConverterConfig(bias=True)
    return {
        # The paper's structure: concat, then a normalised linear chunker; two tables, untied head.
        "paper_4x4": PhotonConfig(
            64,
            16,
            [
                level(4, 2, stack(16), stack(16), "global", concat, biased),
                level(
                    4, 2, stack(16), stack(16), "global", ChunkerConfig(in_norm="concat"), biased
                ),
            ],
            encoder_embedding_dim=4,
            bos_token_id=1,
            eos_token_id=2,
        ),
        # What this project trains: block span, one tied table, scaled embeddings, query-key norms.
        "demo_4x4": PhotonConfig(
            97,
            16,
            [
                level(
                    4,
                    2,
                    stack(16, 2, qk_norm=True),
                    stack(16, 2, qk_norm=True),
                    "block",
                    converter=ConverterConfig(out_norm=True, bias=True),
                ),
                level(
                    4,
                    2,
                    stack(24, 2, heads=3, kv_heads=3, qk_norm=True),
                    stack(16, qk_norm=True),
                    converter=ConverterConfig(out_norm=True, bias=True),
                ),
            ],
            tie_word_embeddings=True,
            scale_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
        ),
        "one_level": PhotonConfig(
            64, 16, [level(4, 2, stack(24, 2), stack(16, 2))], final_norm=True
        ),
        "one_level_width_1": PhotonConfig(
            67,
            24,
            [
                level(
                    3,
                    1,
                    stack(16, kv_heads=1),
                    stack(24, kv_heads=1),
                    converter=ConverterConfig(in_norm=True),
                ),
            ],
            tie_word_embeddings=True,
        ),
        "block_2x4": PhotonConfig(
            64,
            16,
            [
                level(
                    2,
                    1,
                    stack(24, 2, heads=4, kv_heads=2, head_dim=8),
                    stack(16, heads=4, kv_heads=1, head_dim=4),
                    "block",
                    ChunkerConfig(in_norm="unit", bias=True),
                    ConverterConfig(out_norm=True),
                ),
                level(
                    4,
                    3,
                    stack(32, 2, heads=4, kv_heads=2),
                    stack(24, heads=3, kv_heads=1, head_dim=12),
                    chunker=ChunkerConfig(out_norm=True),
                    converter=ConverterConfig(kernel=3, bias=True),
                ),
            ],
            encoder_embedding_dim=8,
            scale_embeddings=True,
            final_norm=True,
        ),
        "global_3x2": PhotonConfig(
            71,
            24,
            [
                level(
                    3,
                    3,
                    stack(16, 2, rope_partial=0.5),
                    stack(24, rope_partial=0.5),
                    "global",
                    ChunkerConfig(in_norm="concat", out_norm=True, bias=True),
                    ConverterConfig(kernel=3, out_norm=True),
                ),
                level(
                    2,
                    2,
                    stack(24, heads=2, kv_heads=1, head_dim=16, rope_partial=0.5),
                    stack(16),
                    chunker=ChunkerConfig(in_norm="unit", out_norm=True),
                    converter=ConverterConfig(in_norm=True, out_norm=True, bias=True),
                ),
            ],
            encoder_embedding_dim=12,
            tie_word_embeddings=True,
        ),
        "three_levels_block": PhotonConfig(
            64,
            16,
            [
                level(
                    2, 1, stack(16, 2), stack(16), "block", ChunkerConfig(in_norm="unit"), biased
                ),
                level(2, 2, stack(24), stack(16), "block", ChunkerConfig(in_norm="concat"), biased),
                level(
                    2,
                    3,
                    stack(32, 2, heads=4),
                    stack(24),
                    chunker=ChunkerConfig(bias=True),
                    converter=biased,
                ),
            ],
            scale_embeddings=True,
        ),
        "three_levels_global": PhotonConfig(
            64,
            16,
            [
                level(2, 2, stack(32), stack(16), "global", concat),
                level(
                    2,
                    1,
                    stack(16, 2, kv_heads=1),
                    stack(32),
                    "global",
                    ChunkerConfig(out_norm=True),
                    ConverterConfig(kernel=3),
                ),
                level(2, 2, stack(24), stack(16), converter=ConverterConfig(in_norm=True)),
            ],
            final_norm=True,
            tie_word_embeddings=True,
        ),
        "three_levels_mixed": PhotonConfig(
            73,
            16,
            [
                level(2, 3, stack(16), stack(16), "block"),
                level(3, 2, stack(24), stack(16), "global", ChunkerConfig(in_norm="unit")),
                level(2, 1, stack(32), stack(24)),
            ],
            encoder_embedding_dim=24,
        ),
        # Rotation bases and epsilons differ everywhere: a mix-up of stacks shows.
        "distinct_constants": PhotonConfig(
            64,
            16,
            [
                level(
                    4,
                    2,
                    stack(16, rope_theta=100.0, norm_eps=0.1),
                    stack(16, rope_theta=500.0, norm_eps=0.2),
                    "block",
                    ChunkerConfig(in_norm="unit", out_norm=True),
                    ConverterConfig(in_norm=True, out_norm=True),
                ),
                level(
                    4,
                    2,
                    stack(24, 2, rope_theta=50.0, norm_eps=0.3, qk_norm=True),
                    stack(16, rope_theta=1000.0, norm_eps=0.05),
                    chunker=ChunkerConfig(in_norm="concat", out_norm=True),
                    converter=ConverterConfig(in_norm=True, out_norm=True),
                ),
            ],
            final_norm=True,
        ),
        # Windows of 11 and 9 positions, one query head of all-rotated 32 dimensions.
        "wide_windows_8x6": PhotonConfig(
            64,
            32,
            [
                level(
                    8,
                    3,
                    stack(24, heads=1, kv_heads=1, head_dim=32),
                    stack(32, 2, heads=1, kv_heads=1, head_dim=32),
                    "block",
                    ChunkerConfig(in_norm="unit"),
                    ConverterConfig(kernel=3, in_norm=True, bias=True),
                ),
                level(
                    6,
                    3,
                    stack(32, 2, heads=4, kv_heads=4),
                    stack(24),
                    converter=ConverterConfig(kernel=3),
                ),
            ],
            tie_word_embeddings=True,
            scale_embeddings=True,
        ),
    }


def randomise(model: Photon, rng: torch.Generator) -> None:
    """Every parameter random: norms near one, biases and convolutions far from zero; values that
    fp32 holds."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=rng, dtype=torch.float64)
            leaf = name.split(".")[-1]
            if leaf.endswith("norm"):
                noise = 1 + 0.3 * noise
            elif leaf == "bias" or leaf == "conv":
                noise = 0.4 * noise
            elif (
                leaf == "embedding"
                and not model.config.tie_word_embeddings
                or leaf == "encoder_embedding"
            ):
                noise = noise * (p.shape[-1] ** -0.5 if model.config.scale_embeddings else 1.0)
            elif leaf in ("embedding", "lm_head"):
                noise = 2.0 * noise * p.shape[-1] ** -0.5
            elif p.ndim == 2:
                noise = 1.3 * noise * p.shape[-1] ** -0.5
            p.copy_(noise.float().double())


def reference_logits(model: Photon, tokens: list[int]) -> Tensor:
    meta = model.config.meta_tokens()
    padded = tokens + [0] * (-len(tokens) % meta)
    return model(torch.tensor([padded]), torch.float64)[0, : len(tokens)]


@torch.no_grad()
def golden(config: PhotonConfig, seed: int) -> tuple[Photon, dict[str, Tensor]] | None:
    """A random model with its golden tensors; None if a greedy pick is too close to call."""
    rng = torch.Generator().manual_seed(seed)
    model = Photon(config).double().eval()
    randomise(model, rng)
    meta = config.meta_tokens()
    tokens = torch.randint(
        3, config.vocab_size, (3 * meta + meta // 2 + 1,), generator=rng
    ).tolist()
    tensors = {
        "tokens": torch.tensor(tokens, dtype=torch.int32),
        "logits": reference_logits(model, tokens),
    }
    prompts = {"aligned": tokens[: 2 * meta], "unaligned": tokens[: meta + meta // 2 + 1]}
    for mode in MODES[:2] if len(config.levels) == 1 else MODES:
        for alignment, prompt in prompts.items():
            generator = Generator(model, mode)
            output = generator.run(prompt, 2 * meta + 1)
            rows = torch.stack(generator.logits)
            best = rows.topk(2).values
            if (best[:, 0] - best[:, 1]).min() < MIN_MARGIN:
                return None
            name = f"{mode}.{alignment}"
            tensors[f"{name}.prompt"] = torch.tensor(prompt, dtype=torch.int32)
            tensors[f"{name}.output"] = torch.tensor(output, dtype=torch.int32)
            tensors[f"{name}.logits"] = rows
    return model, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, config in configs().items():
        config.max_context = 16 * config.meta_tokens()
        seed = 1
        while (made := golden(config, seed)) is None:
            seed += 1
        model, tensors = made
        save_checkpoint(model, args.out / name, "float32")
        save_file(tensors, args.out / name / "golden.safetensors")
        logits = tensors["logits"]
        distinct = len(set(tensors["exact.unaligned.output"].tolist()))
        print(
            f"{name}: seed {seed}, {sum(p.numel() for p in model.parameters()):,} parameters, "
            f"logits std {logits.std():.2f}, max {logits.abs().max():.1f}, "
            f"{distinct} distinct greedy tokens",
            flush=True,
        )


if __name__ == "__main__":
    main()
