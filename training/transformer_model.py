"""A vanilla decoder-only Transformer from the same blocks: the baseline that PHOTON is compared
with."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from photon_model import Stack, StackConfig, linear


@dataclass
class TransformerConfig:
    vocab_size: int
    stack: StackConfig
    max_context: int = 1024

    @staticmethod
    def from_dict(values: dict) -> "TransformerConfig":
        return TransformerConfig(
            values["vocab_size"], StackConfig(**values["stack"]), values["max_context"]
        )

    def to_dict(self) -> dict:
        return {"model_type": "transformer", **asdict(self)}


class Transformer(nn.Module):
    """Tied embeddings. Row i of forward() scores token i + 1; row i of the loss scores token i, as
    in Photon."""

    def __init__(self, c: TransformerConfig):
        super().__init__()
        self.config = c
        self.embedding = nn.Parameter(
            torch.randn(c.vocab_size, c.stack.hidden_size) * c.stack.hidden_size**-0.5
        )
        self.stack = Stack(c.stack)

    def hidden(self, tokens: Tensor, dtype=torch.float32) -> Tensor:
        """tokens [B, T] -> [B, T, hidden_size]."""
        return self.stack(
            F.embedding(tokens, self.embedding).to(dtype) * self.config.stack.hidden_size**0.5
        )

    def forward(self, tokens: Tensor, dtype=torch.float32) -> Tensor:
        """tokens [B, T] -> logits [B, T, V] of the token after each."""
        return linear(self.hidden(tokens, dtype), self.embedding)

    def loss(
        self, tokens: Tensor, dtype=torch.float32, hiergen_rows: int = 0, recgen_rows: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of tokens 1 .. T-1 given those before them, and zero (there is no
        L_rec)."""
        logits = self.forward(tokens[:, :-1], dtype)
        cross_entropy = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        return cross_entropy, cross_entropy.new_zeros(())
