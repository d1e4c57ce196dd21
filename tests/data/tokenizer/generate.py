"""Writes the model files and golden values of this folder. Needs the Python package sentencepiece.

    python generate.py

bytes.model: as Llama-like checkpoints have it: identity normalisation, byte fallback, dummy prefix, whitespace kept,
newline and chat marks as user-defined symbols. rules.model: everything the other way round, with a small map of
character replacements. Both are trained on sentences made up here.
"""

import contextlib
import io
import json
import random
import tempfile
from pathlib import Path

import sentencepiece

FOLDER = Path(__file__).parent.resolve()
WORDS = (
    "the a one two three lamp river stone bread morning window letter garden fox owl ship hill song star tree road "
    "walked found carried opened waited sang slept ran laughed built old small quiet bright warm green under over near "
    "behind with without and but when because until again never always été café naïve Größe straße señor "
    "привет мир дом вода ночь καλημέρα κόσμε שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดี 你好 世界 こんにちは 안녕 하세요"
).split()
RULES = {"ａ": "a", "Ａ": "A", "①": "1", "½": "1/2", "ﬁ": "fi", "ß": "ss", "…": "...", "\t": " ", "\u00a0": " ",
         "\u200b": "", "e\u0301": "é"}
TEXTS = [
    "", " ", "  ", "\n", "\n\n\n", "a\nb", "The fox ran over the old stone.", " leading", "trailing ", "two  spaces   three",
    "The lamp.\n\nThe river.\n", "\ttab\r\n", "3.14159 and 2024", "été café naïve", "e\u0301te\u0301", "привет, мир!",
    "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดี", "你好，世界", "こんにちは", "안녕하세요", "👩‍👩‍👧‍👦 family", "👍🏽", "🇩🇪",
    "ａＡ①½ﬁß…", "no\u00a0break\u200bspace", "▁", "▁▁a", " ▁ ", "<s>", "</s> <unk> <pad>", "<0x41>",
    "<|user|>", "<|user|><|user|", "x<|user|>y <|userx", "zero\0byte", "\ufffd", "\U0010ffff", "a" * 300,
    "the river and the hill " * 20, "don't stop: \"now\"", "𝐛𝐨𝐥𝐝", "\u0085\u2028\u3000\ufeff", "[[]]{}()",
]


def sentences() -> list[str]:
    draw = random.Random(7)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 14))).capitalize() + "." for _ in range(4000)]


def code_points(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


def train(name: str, **settings: object) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=model, model_type="bpe", hard_vocab_limit=False,
        minloglevel=2, **settings)
    (FOLDER / f"{name}.model").write_bytes(model.getvalue())

    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    cases = [{"text": text, "ids": processor.encode(text), "decoded": processor.decode(processor.encode(text))}
             for text in TEXTS]
    lines = ",\n".join(json.dumps(case) for case in cases)
    (FOLDER / f"{name}.golden.json").write_text(f"[\n{lines}\n]\n")


def main() -> None:
    train("bytes", vocab_size=768, normalization_rule_name="identity", byte_fallback=True, split_digits=True,
          remove_extra_whitespaces=False, user_defined_symbols=["\n", "<|user|>", "<|user|>\n"])
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # the model records the file's name
        Path("rules.tsv").write_text("".join(f"{code_points(source)}\t{code_points(target)}\n"
                                             for source, target in RULES.items()))
        train("rules", vocab_size=512, normalization_rule_tsv="rules.tsv", character_coverage=0.998,
              add_dummy_prefix=False, pad_id=3)


if __name__ == "__main__":
    main()
