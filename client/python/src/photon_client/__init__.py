"""Client of photon servers, which serve PHOTON language models over gRPC.

:class:`Client` blocks, :class:`AsyncClient` is for asyncio; they have the same methods.

>>> from photon_client import Client
>>> with Client("127.0.0.1:50051") as client:                                  # doctest: +SKIP
...     print(client.generate("Once upon a time", max_tokens=40).text)
"""

from photon_client.aio import AsyncClient, AsyncStream
from photon_client.client import Client, Stream
from photon_client.errors import (
    CancelledError,
    DeadlineExceededError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PhotonError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from photon_client.types import (
    AnswerCount,
    AnswerSource,
    BestOf,
    Chunk,
    Consensus,
    Cost,
    Document,
    FinishReason,
    Generation,
    HealthStatus,
    JsonPointer,
    Level,
    ModelInfo,
    Outcome,
    Parameters,
    Prompt,
    RegularExpression,
    Result,
    RetryPolicy,
    Stack,
    Timings,
    Tls,
    TokenLogprob,
    TokenLogprobs,
    Usage,
    Vote,
)

__version__ = "0.1.0"

__all__ = [
    "AnswerCount",
    "AnswerSource",
    "AsyncClient",
    "AsyncStream",
    "BestOf",
    "CancelledError",
    "Chunk",
    "Client",
    "Consensus",
    "Cost",
    "DeadlineExceededError",
    "Document",
    "FieldViolation",
    "FinishReason",
    "Generation",
    "HealthStatus",
    "InvalidArgumentError",
    "JsonPointer",
    "Level",
    "ModelInfo",
    "NotFoundError",
    "Outcome",
    "Parameters",
    "PermissionDeniedError",
    "PhotonError",
    "Prompt",
    "RegularExpression",
    "ResourceExhaustedError",
    "Result",
    "RetryPolicy",
    "Stack",
    "Stream",
    "Timings",
    "Tls",
    "TokenLogprob",
    "TokenLogprobs",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
    "Vote",
]
