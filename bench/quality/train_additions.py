#!/usr/bin/env python3
"""Trains a small PHOTON to add two numbers, not quite well: a task whose answers can be checked.

    train_additions.py --out MODEL --minutes 8

A document is "37+58=095" and an end: with the tokenizer made here the question is the first meta-context (8
tokens), its answer the next unit. A fifth of the sums is never trained on; votes.py asks for those. Training stops
early on purpose: a model that knows every answer leaves nothing for votes to mend. Minutes are of processor time,
on one thread.
"""
import argparse
import io
import pathlib
import sys
import time

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "training"))
import checkpoint  # noqa: E402
import muon  # noqa: E402
from photon_model import ChunkerConfig, ConverterConfig, LevelConfig, Photon, PhotonConfig, StackConfig  # noqa: E402

import additions  # noqa: E402

QUESTION_TOKENS, ANSWER_TOKENS, DOCUMENT_TOKENS = 8, 4, 16


def train_tokenizer():
    """Every character a token of its own."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([additions.question(a, b) + additions.answer(a, b) for a, b in additions.TRAINED[:4000]]),
        model_writer=model, model_type="bpe", vocab_size=3 + 256 + 14, byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
        user_defined_symbols=["\n"], required_chars="0123456789+=", hard_vocab_limit=False, unk_id=0, bos_id=1,
        eos_id=2, pad_id=-1, minloglevel=1)
    return model.getvalue()


def config(width, vocab_size):
    def stack(layers):
        return StackConfig(width, layers, width // 32, width // 32, 32, 3 * width, qk_norm=True)

    def level(chunk, encoder_layers, decoder_layers, span):
        return LevelConfig(chunk, 2, stack(encoder_layers), stack(decoder_layers), ChunkerConfig(),
                           ConverterConfig(out_norm=True, bias=True), span)

    return PhotonConfig(vocab_size, width, [level(4, 2, 2, "block"), level(2, 2, 1, "global")], tie_word_embeddings=True,
                        scale_embeddings=True, bos_token_id=1, eos_token_id=2, max_context=512)


def documents(pairs, processor):
    rows = np.full((len(pairs), DOCUMENT_TOKENS), processor.eos_id(), dtype=np.int64)
    for row, (a, b) in zip(rows, pairs):
        tokens = processor.encode(additions.question(a, b) + additions.answer(a, b), add_bos=True)
        assert len(tokens) == QUESTION_TOKENS + ANSWER_TOKENS - 1, tokens
        row[:len(tokens)] = tokens
    return torch.from_numpy(rows)


def answer_logits(model, tokens):
    return model(tokens)[:, QUESTION_TOKENS:QUESTION_TOKENS + ANSWER_TOKENS]


def answers_of(tokens):
    return tokens[:, QUESTION_TOKENS:QUESTION_TOKENS + ANSWER_TOKENS]


@torch.no_grad()
def sample_accuracy(model, tokens):
    """The mean probability of a right answer, drawn at temperature 1."""
    logprobs = F.log_softmax(answer_logits(model, tokens), dim=-1)
    return logprobs.gather(-1, answers_of(tokens)[..., None]).squeeze(-1).sum(-1).exp().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--until", type=float, default=0.5, help="stop when a sample is right this often")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    tokenizer = train_tokenizer()
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    model = Photon(config(options.width, processor.vocab_size()))
    trained, held_out = documents(additions.TRAINED, processor), documents(additions.HELD_OUT, processor)
    is_matrix = [(p.ndim == 2 and name != "embedding", p) for name, p in model.named_parameters()]
    optimizers = [torch.optim.AdamW([p for m, p in is_matrix if not m], lr=3e-3, weight_decay=0),
                  muon.Muon([p for m, p in is_matrix if m], lr=0.02, weight_decay=0.01)]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; {len(trained)} sums to train on", flush=True)

    step, accuracy, next_report = 0, 0.0, 10.0
    begin = time.process_time()
    while (seconds := time.process_time() - begin) < 60 * options.minutes and accuracy < options.until:
        tokens = trained[torch.from_numpy(random.integers(len(trained), size=options.batch))]
        loss = F.cross_entropy(answer_logits(model, tokens).flatten(0, 1), answers_of(tokens).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        step += 1
        if seconds > next_report:
            accuracy = sample_accuracy(model, held_out)
            print(f"{seconds:4.0f} s  step {step}  loss {loss.item():.3f}  sums held out: a sample is right "
                  f"{100 * accuracy:.1f} % of the time", flush=True)
            next_report = seconds + 5
    checkpoint.save_checkpoint(model, options.out)
    (options.out / "tokenizer.model").write_bytes(tokenizer)


if __name__ == "__main__":
    main()
