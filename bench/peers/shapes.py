"""The models that are compared: PHOTON checkpoints of this project and Transformers of the same size."""
import dataclasses
import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A decoder-only Transformer as llama.cpp and everyone else knows it: RMSNorm, rotary positions, SwiGLU."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    tied: bool

    @property
    def head_dim(self):
        return self.width // self.heads

    @property
    def parameters(self):
        attention = 2 * self.width * (self.width + self.kv_heads * self.head_dim)
        layer = attention + 3 * self.width * self.ffn + 2 * self.width
        return self.layers * layer + self.width + (1 if self.tied else 2) * self.vocab * self.width

    def kv_bytes_per_token(self, element_bytes=2):
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes


@dataclasses.dataclass(frozen=True)
class Comparison:
    photon: pathlib.Path  # a config.json, or a checkpoint folder
    transformers: tuple


# Multi-head attention, and grouped queries that put what they save into the feed-forward layers, so that all
# have about as many parameters. photon-600m's Transformer is the paper's: as wide, 16 layers.
COMPARISONS = {
    "demo": Comparison(
        ROOT / "models/demo",
        (Transformer("mha", 9, 512, 8, 8, 1408, 4096, tied=True),
         Transformer("gqa", 9, 512, 8, 2, 1664, 4096, tied=True))),
    "photon-600m": Comparison(
        ROOT / "models/photon-600m",
        (Transformer("mha", 16, 1664, 32, 32, 4096, 32000, tied=False),
         Transformer("gqa", 16, 1664, 32, 8, 4928, 32000, tied=False))),
    "photon-1.2b": Comparison(
        ROOT / "models/photon-1.2b",
        (Transformer("mha", 24, 1920, 32, 32, 5120, 32000, tied=False),
         Transformer("gqa", 24, 1920, 32, 8, 6080, 32000, tied=False))),
    # For trying the scripts out.
    "tiny": Comparison(
        ROOT / "models/demo",
        (Transformer("mha", 2, 128, 4, 4, 384, 4096, tied=True),
         Transformer("gqa", 2, 128, 4, 1, 448, 4096, tied=True))),
}


def photon_config(path):
    return json.loads((pathlib.Path(path) / "config.json").read_text())


def photon_kv_bytes_per_token(config, element_bytes=2):
    """Of the levels whose keys and values grow with the context."""
    total, tokens_per_unit = 0, 1
    for i, level in enumerate(config["levels"]):
        tokens_per_unit *= level["chunk_size"]
        if i == len(config["levels"]) - 1 or level["encoder_span"] == "global":
            stack = level["encoder"]
            total += 2 * stack["num_layers"] * stack["num_kv_heads"] * stack["head_dim"] * element_bytes / tokens_per_unit
    return total
