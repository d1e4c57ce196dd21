"""Trains the SentencePiece BPE tokenizer of a checkpoint.

    python tokenizer.py --corpus DIR --out tokenizer.model

Identity normalisation and no whitespace clean-up, so decoding gives the text back; newlines are a
piece of their own; unknown characters fall back to bytes. Ids: unk 0, bos 1, eos 2, no pad.
"""

import argparse
import io
import lzma
from pathlib import Path
from typing import Iterator

import sentencepiece

DOCUMENT_END = "<|endoftext|>"


def read_documents(path: Path) -> Iterator[str]:
    """Documents of one corpus file: xz, UTF-8, each followed by a line that holds only
    DOCUMENT_END."""
    lines: list[str] = []
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.rstrip("\n") == DOCUMENT_END:
                yield "".join(lines).strip("\n")
                lines = []
            else:
                lines.append(line)


def sample_paragraphs(corpus: Path, bytes_per_file: int) -> Iterator[str]:
    """Paragraphs from the start of every training file; its documents are shuffled already."""
    for path in sorted(corpus.glob("train_*.txt.xz")):
        taken = 0
        for document in read_documents(path):
            for paragraph in document.split("\n"):
                if paragraph:
                    yield paragraph
            taken += len(document)
            if taken >= bytes_per_file:
                break


def train(corpus: Path, out: Path, vocab_size: int, bytes_per_file: int) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sample_paragraphs(corpus, bytes_per_file),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        user_defined_symbols=["\n"],
        required_chars="0123456789",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        max_sentence_length=1 << 16,
        num_threads=8,
        minloglevel=1,
    )
    out.write_bytes(model.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder of train_*.txt.xz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument(
        "--bytes-per-file", type=int, default=3_000_000, help="text taken from each file"
    )
    args = parser.parse_args()
    train(args.corpus, args.out, args.vocab_size, args.bytes_per_file)


if __name__ == "__main__":
    main()
