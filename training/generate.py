"""Reference generation in the three modes, as docs/model.md section 5 defines them. Plain, not
fast.

    python generate.py --model DIR --prompt "Once upon a time" --mode hiergen
"""

import argparse
from pathlib import Path
from typing import Callable, Optional

import sentencepiece
import torch
from torch import Tensor

from checkpoint import load_checkpoint
from photon_model import Photon

MODES = ("exact", "hiergen", "recgen")
# Picks one token of each row of logits [N, V] -> [N].
Sampler = Callable[[Tensor], Tensor]


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def nucleus(temperature: float, top_p: float, seed: int) -> Sampler:
    """Samples from the smallest set of likeliest tokens that holds `top_p` of the probability."""
    rng = torch.Generator().manual_seed(seed)

    def sample(logits: Tensor) -> Tensor:
        probability, order = (logits.float() / temperature).softmax(-1).sort(-1, descending=True)
        probability[probability.cumsum(-1) - probability >= top_p] = 0
        return order.gather(-1, torch.multinomial(probability, 1, generator=rng)).squeeze(-1)

    return sample


class Generator:
    """One sequence. `logits` holds the row that each generated token was picked from.

    The top stream is kept as the inputs of the top encoder, one per finished meta-context; lower
    states are recomputed from the tokens.
    """

    def __init__(self, model: Photon, mode: str, sampler: Sampler = greedy):
        levels = model.config.levels
        if mode == "recgen" and len(levels) == 1:
            raise ValueError("recgen needs at least two levels")
        self.model, self.mode, self.sampler = model, mode, sampler
        self.dtype = model.embedding.dtype
        self.meta = model.config.meta_tokens()
        self.tokens: list[int] = []  # of finished meta-contexts
        self.top_inputs: list[Tensor] = []
        self.logits: list[Tensor] = []

    def lower_states(self, tokens: list[int]) -> list[Tensor]:
        """[X[0], ..., X[L-1]] of whole meta-contexts."""
        states = [self.model.embed(torch.tensor([tokens]), self.dtype, for_encoder=True)]
        for index in range(len(self.model.levels) - 1):
            states.append(self.model.encode_units(index, states[-1]))
        return states

    def extend(self, meta_tokens: list[int], predictions: Optional[Tensor] = None) -> None:
        """Advances the top stream by one meta-context: its real states, or `predictions` Y[L-1]
        [C_L, D_{L-1}]."""
        self.tokens += meta_tokens
        top = self.model.levels[-1]
        units = predictions
        if units is None:
            units = self.lower_states(self.tokens)[-1][0, -top.config.chunk_size :]
        self.top_inputs.append(top.chunker(units))

    def condition(self) -> Tensor:
        """[1, 1, D_L]: the last top state, or the start latent."""
        if not self.top_inputs:
            return self.model.start_latent[None, None]
        return self.model.levels[-1].encoder(torch.stack(self.top_inputs)[None])[:, -1:]

    def decode_exact(self, forced: list[int]) -> list[int]:
        """One meta-context, token by token; every state below is the real encoder's."""
        model, tokens, top_condition = self.model, list(forced), self.condition()
        while len(tokens) < self.meta:
            padded = tokens + [0] * (self.meta - len(tokens))
            states = self.lower_states(self.tokens + padded)
            condition = top_condition
            for index in range(len(model.levels) - 1, 0, -1):
                units = condition.shape[1] * model.levels[index].config.chunk_size
                condition = model.decode_units(index, condition, states[index][:, -units:])
            y = model.decode_tokens(condition, torch.tensor([padded]))
            self.pick(model.logits(y[:, len(tokens)]), tokens)
        return tokens

    def pick(self, logits: Tensor, tokens: list[int]) -> None:
        self.logits.append(logits[0])
        tokens.append(int(self.sampler(logits)[0]))

    def decode_parallel(self) -> tuple[list[int], Optional[Tensor]]:
        """One meta-context whose decoders of level >= 2 read their own predictions; all its level-1
        groups at once.

        Returns the tokens and Y[L-1] [C_L, D_{L-1}] (None at one level).
        """
        model, condition, predictions = self.model, self.condition(), None
        for index in range(len(model.levels) - 1, 0, -1):
            condition = model.decode_units(index, condition, None)
            predictions = condition[0] if predictions is None else predictions
        chunk, groups = model.config.levels[0].chunk_size, condition.shape[1]
        tokens = torch.zeros(groups, chunk, dtype=torch.long)
        rows = []
        for slot in range(chunk):
            y = model.decode_tokens(condition, tokens.view(1, -1)).view(groups, chunk, -1)
            rows.append(model.logits(y[:, slot]))
            tokens[:, slot] = self.sampler(rows[-1])
        self.logits += torch.stack(rows, dim=1).flatten(0, 1).unbind()
        return tokens.flatten().tolist(), predictions

    @torch.no_grad()
    def run(self, prompt: list[int], count: int) -> list[int]:
        """Continues `prompt` by at least `count` tokens, to the end of a meta-context."""
        whole = len(prompt) // self.meta * self.meta
        for first in range(0, whole, self.meta):
            self.extend(prompt[first : first + self.meta])
        forced = prompt[whole:]
        if forced:
            self.extend(self.decode_exact(forced))
        while len(self.tokens) < len(prompt) + count:
            if self.mode == "exact":
                self.extend(self.decode_exact([]))
            else:
                tokens, predictions = self.decode_parallel()
                self.extend(tokens, predictions if self.mode == "recgen" else None)
        return self.tokens[len(prompt) :]


def generate_text(
    model: Photon, processor, prompt: str, mode: str, count: int, sampler: Sampler
) -> str:
    """The prompt's continuation, up to the first end-of-text token."""
    ids = [processor.bos_id()] + processor.encode(prompt)
    output = Generator(model, mode, sampler).run(ids, count)[:count]
    if processor.eos_id() in output:
        output = output[: output.index(processor.eos_id())]
    return processor.decode(ids[1:] + output)[len(prompt) :]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="checkpoint folder with tokenizer.model"
    )
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--mode", action="append", choices=MODES)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7, help="0: greedy")
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_checkpoint(args.model)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(args.model / "tokenizer.model"))
    for prompt in args.prompt:
        for mode in args.mode or MODES:
            sampler = (
                nucleus(args.temperature, args.top_p, args.seed) if args.temperature > 0 else greedy
            )
            text = generate_text(model, processor, prompt, mode, args.tokens, sampler)
            print(f"[{mode}] {prompt}|{text}\n", flush=True)


if __name__ == "__main__":
    main()
