"""What goes to the server and what comes back, as plain data."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from photon_client.errors import PhotonError

#: Text, which the server tokenises with BOS before it; or token ids, used as they are.
Prompt = str | Sequence[int]

#: How the tokens of a meta-context are generated; a checkpoint may not allow all of them.
Mode = Literal["exact", "hiergen", "recgen"]
#: Whose turn it is; an API key may limit it.
Priority = Literal["low", "normal", "high"]


class Parameters(TypedDict, total=False):
    """Parameters of a generation, given to methods as keyword arguments. All are optional."""

    #: Most tokens to generate, at least 1. Default: the server's.
    max_tokens: int
    #: In [0, 100]; 0 takes the most probable token. Default 1.
    temperature: float
    #: Keeps the k most probable tokens; 0 keeps all. Default 0.
    top_k: int
    #: In (0, 1]: keeps the fewest tokens whose probabilities reach it. Default 1.
    top_p: float
    #: In [0, 1]: drops tokens less probable than this times the most probable one. Default 0.
    min_p: float
    #: The same request with the same seed gives the same output. Default: the server draws one.
    seed: int
    #: Output ends before the first of these: one string, or up to 16.
    stop: str | Sequence[str]
    #: Output ends with the first of these, beside the model's own end of text.
    stop_token_ids: Sequence[int]
    #: Goes on through the model's end of text.
    ignore_eos: bool
    #: Reports the log-probability of each token.
    logprobs: bool
    #: Reports so many alternatives of each token, at most 20.
    top_logprobs: int
    #: Default: the server's.
    mode: Mode
    #: Default "normal".
    priority: Priority


@dataclass(frozen=True)
class Tls:
    """How to speak TLS. Each is PEM, or the path of a file of it.

    >>> Tls(authorities=Path("ca.pem"))                                            # doctest: +SKIP
    >>> Tls(Path("ca.pem"), certificate=Path("me.pem"), key=Path("me.key"))        # doctest: +SKIP
    """

    #: Whose servers are trusted. None: those that the system trusts.
    authorities: bytes | Path | None = None
    #: What this client shows to servers that ask who it is. Both or neither.
    certificate: bytes | Path | None = None
    key: bytes | Path | None = None


@dataclass(frozen=True)
class RetryPolicy:
    """When a call is tried again.

    A call is tried again only if nothing of its answer has come, and if the server is unavailable or
    says when to come again. Calls that create or delete are tried again only if the server itself
    refused them. Waits grow from ``initial_backoff_s`` by ``multiplier``, less up to a half at random;
    a wait that the server asks for is kept. Attempts and waits together stay within ``timeout_s``.
    """

    max_attempts: int = 4
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    multiplier: float = 2.0


class FinishReason(enum.Enum):
    """Why a generation ended."""

    UNKNOWN = "unknown"  # one that this version does not know
    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    DRAIN = "drain"  # the server shut down; the output is partial
    STALLED = "stalled"


class HealthStatus(enum.Enum):
    """What the health service says."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"


@dataclass(frozen=True)
class TokenLogprob:
    token_id: int
    logprob: float


@dataclass(frozen=True)
class TokenLogprobs:
    """Of one generated token: its own log-probability, and the most probable ones."""

    logprob: float
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    #: Those of them that the server found in its cache.
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    reencoded_tokens: int


@dataclass(frozen=True)
class Timings:
    """Where the time went, in milliseconds."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    steps: int


@dataclass(frozen=True)
class Result:
    """How a generation ended."""

    finish_reason: FinishReason
    stop_string: str | None
    stop_token_id: int | None
    usage: Usage
    timings: Timings
    #: The seed and mode that were used.
    seed: int
    mode: str


@dataclass(frozen=True)
class RegularExpression:
    """The first match of a pattern in RE2's syntax: its first group, or all of it."""

    pattern: str


@dataclass(frozen=True)
class JsonPointer:
    """The value at an RFC 6901 pointer in the first JSON object or array."""

    pointer: str


#: Where in a sample's text its answer is.
AnswerSource = Literal["last_number", "whole_text"] | RegularExpression | JsonPointer


@dataclass(frozen=True)
class Vote:
    """Makes the answer that most samples give the answer. Samples that can no longer change it are
    cancelled, unless ``run_all_samples``."""

    answer: AnswerSource = "last_number"
    run_all_samples: bool = False


@dataclass(frozen=True)
class BestOf:
    """Makes the sample with the highest mean log-probability the answer."""


@dataclass(frozen=True)
class AnswerCount:
    answer: str
    votes: int
    #: The first sample that gave it.
    sample: int


@dataclass(frozen=True)
class Consensus:
    """One answer of many samples, by a vote or as the best of them."""

    #: The sample that won; None: none has an answer.
    sample: int | None
    #: Its text.
    text: str
    #: Of a vote: the answer.
    answer: str
    #: Of best of n.
    mean_logprob: float | None
    #: Of a vote: every answer, most votes first.
    answers: tuple[AnswerCount, ...]
    samples_finished: int
    samples_cancelled: int
    samples_without_answer: int
    generated_tokens: int
    saved_tokens: int


@dataclass(frozen=True)
class Chunk:
    """A piece of output, as it comes."""

    text: str
    token_ids: tuple[int, ...]
    #: One for each of ``token_ids``, if asked for.
    logprobs: tuple[TokenLogprobs, ...] = ()
    #: Which prompt or question, and which sample of it.
    query: int = 0
    sample: int = 0
    #: In the last chunk of a sample, and only there.
    result: Result | None = None
    #: After all samples, if they are made one answer; then there is nothing else in the chunk.
    consensus: Consensus | None = None
    #: Why this prompt or question failed alone; then there is nothing else of it.
    error: PhotonError | None = None


@dataclass(frozen=True)
class Generation:
    """A whole output."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    result: Result

    @property
    def finish_reason(self) -> FinishReason:
        return self.result.finish_reason

    @property
    def usage(self) -> Usage:
        return self.result.usage


@dataclass(frozen=True)
class Outcome:
    """What became of one prompt of a batch, or of one question about a document."""

    #: One for each sample; empty if the prompt failed.
    samples: tuple[Generation, ...]
    #: If samples were made one answer.
    consensus: Consensus | None = None
    error: PhotonError | None = None

    @property
    def text(self) -> str:
        """Of the first sample; raises the error if the prompt failed."""
        if self.error is not None:
            raise self.error
        return self.samples[0].text


@dataclass(frozen=True)
class Document:
    """A document that the server has read. It ends with its time to live, or with the server."""

    id: str
    #: Which replica has it, where a proxy balances over several.
    affinity: str
    name: str
    num_tokens: int
    cache_bytes: int
    created: datetime.datetime
    expires: datetime.datetime
    owner: str

    @property
    def reference(self) -> str:
        """Names the document to every method that takes one; to keep or to hand to other programs."""
        return f"{self.affinity}/{self.id}"


@dataclass(frozen=True)
class Stack:
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int


@dataclass(frozen=True)
class Level:
    """A level of the hierarchy."""

    chunk_size: int
    converter_width: int
    encoder_span: str
    encoder: Stack
    decoder: Stack


@dataclass(frozen=True)
class ModelInfo:
    """The model, what it can do, and the limits of requests."""

    name: str
    server_version: str
    device: str
    num_parameters: int
    vocab_size: int
    max_context_tokens: int
    meta_context_tokens: int
    #: The bottom one first.
    levels: tuple[Level, ...]
    modes: tuple[str, ...]
    default_mode: str
    default_max_tokens: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    tokenizer_sha256: str
    page_tokens: int
    page_bytes: int
    num_pages: int


@dataclass(frozen=True)
class Cost:
    """What a generation would take, were nothing shared."""

    prompt_tokens: int
    max_tokens: int
    pages: int
    cache_bytes: int
    #: What it would take in a Transformer of the same layers.
    transformer_cache_bytes: int
    #: It can run at all; it would begin with the next step.
    fits: bool
    fits_now: bool
    expected_wait_ms: float
