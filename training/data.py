"""Tokenises a corpus into a cache of uint16 streams, and draws training batches from it.

    python data.py --corpus DIR --tokenizer tokenizer.model --cache DIR

For each corpus file NAME.txt.xz the cache holds NAME.tokens.npy, every document as BOS + pieces +
EOS, and NAME.starts.npy, where each document starts. bytes_per_token.npy has the UTF-8 length of
every piece.
"""

import argparse
import functools
import multiprocessing
from pathlib import Path
from typing import Iterator

import numpy as np
import sentencepiece
import torch

from tokenizer import read_documents

# How often each training file is seen, relatively.
WEIGHTS = "tinystories=4,picture_books=3,fairy_tales=3,books_a=2,books_b=1,books_c=1,books_d=1"


def parse_weights(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in (item.split("=") for item in text.split(","))}


def piece_lengths(processor: sentencepiece.SentencePieceProcessor) -> np.ndarray:
    """Bytes of text that each token stands for; control tokens stand for none."""
    lengths = np.zeros(processor.vocab_size(), dtype=np.int64)
    for token in range(processor.vocab_size()):
        if processor.is_byte(token):
            lengths[token] = 1
        elif not processor.is_control(token):
            lengths[token] = len(processor.id_to_piece(token).replace("\u2581", " ").encode())
    return lengths


def tokenise(path: Path, tokenizer: Path, cache: Path, threads: int) -> str:
    """Caches one corpus file; returns what to say of it."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    documents = processor.encode(
        list(read_documents(path)), add_bos=True, add_eos=True, num_threads=threads
    )
    lengths = np.array([len(document) for document in documents])
    name = path.name.removesuffix(".txt.xz")
    np.save(
        cache / f"{name}.tokens.npy",
        np.concatenate([np.array(d, dtype=np.uint16) for d in documents]),
    )
    np.save(cache / f"{name}.starts.npy", np.cumsum(lengths) - lengths)
    return f"{name}: {len(documents)} documents, {lengths.sum():,} tokens"


def build_cache(corpus: Path, tokenizer: Path, cache: Path, threads: int) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    assert processor.vocab_size() <= 1 << 16
    np.save(cache / "bytes_per_token.npy", piece_lengths(processor))
    paths = sorted(corpus.glob("*.txt.xz"))
    files = min(len(paths), threads)
    job = functools.partial(
        tokenise, tokenizer=tokenizer, cache=cache, threads=max(1, threads // files)
    )
    with multiprocessing.Pool(files) as pool:
        for line in pool.imap(job, paths):
            print(line, flush=True)


class Mixture:
    """Random sequences from the cached training files, each file drawn in proportion to weight *
    tokens."""

    def __init__(
        self, cache: Path, weights: dict[str, float], seed: int, document_start_share: float = 0.5
    ):
        self.rng = np.random.default_rng(seed)
        self.document_start_share = document_start_share
        self.streams = [np.load(cache / f"train_{name}.tokens.npy") for name in weights]
        self.starts = [np.load(cache / f"train_{name}.starts.npy") for name in weights]
        share = np.array(
            [len(s) * w for s, w in zip(self.streams, weights.values())], dtype=np.float64
        )
        self.share = share / share.sum()

    def batch(self, rows: int, length: int) -> torch.Tensor:
        """[rows, length] int64. A sequence starts at a document's start, as prompts do, or
        anywhere."""
        out = np.empty((rows, length), dtype=np.int64)
        for row, source in enumerate(self.rng.choice(len(self.streams), size=rows, p=self.share)):
            stream = self.streams[source]
            if self.rng.random() < self.document_start_share:
                start = self.rng.choice(self.starts[source])
            else:
                start = self.rng.integers(len(stream))
            out[row] = stream.take(np.arange(start, start + length), mode="wrap")
        return torch.from_numpy(out)


def validation_batches(
    cache: Path, rows: int, length: int, limit: int = 0
) -> Iterator[torch.Tensor]:
    """Consecutive windows of the validation stream, [<= rows, length] each; `limit` caps the
    windows."""
    stream = np.load(cache / "valid.tokens.npy")
    windows = stream[: len(stream) // length * length].reshape(-1, length)
    if limit:
        windows = windows[:: max(1, len(windows) // limit)][:limit]
    for first in range(0, len(windows), rows):
        yield torch.from_numpy(windows[first : first + rows].astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    build_cache(args.corpus, args.tokenizer, args.cache, args.threads)


if __name__ == "__main__":
    main()
