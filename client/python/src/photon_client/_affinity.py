"""Which calls belong together, so that a proxy sends them to the same replica."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from photon_client import types

# Prompts that begin with so much of the same share enough of the cache to be worth the same replica.
_PREFIX_CHARACTERS = 512
_PREFIX_TOKENS = 128


def of_document(content: types.Prompt) -> str:
    data = content if isinstance(content, str) else ",".join(map(str, content))
    return hashlib.sha256(data.encode()).hexdigest()[:16]


def of_prefix(prompt: types.Prompt) -> str:
    """Of prompts that begin alike, the same; empty for those that are too short for it to matter."""
    length = _PREFIX_CHARACTERS if isinstance(prompt, str) else _PREFIX_TOKENS
    return of_document(prompt[:length]) if len(prompt) >= length else ""


def of_batch(prompts: Sequence[types.Prompt]) -> str:
    """Of the first prompt: the prompts of a batch that gain from a replica begin alike."""
    return of_prefix(prompts[0]) if prompts else ""


def split_reference(document: types.Document | str) -> tuple[str, str]:
    """(affinity, id)"""
    reference = document if isinstance(document, str) else document.reference
    affinity, _, document_id = reference.rpartition("/")
    return affinity, document_id
