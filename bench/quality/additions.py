"""The sums: which, how they are asked, and which of them a model is trained on."""
import random

_PAIRS = [(a, b) for a in range(100) for b in range(100)]
random.Random(0).shuffle(_PAIRS)
HELD_OUT, TRAINED = _PAIRS[:2000], _PAIRS[2000:]


def question(a, b):
    return f"{a:02}+{b:02}="


def answer(a, b):
    return f"{a + b:03}"
