"""What each call sends, where to, and what its answer means; the same for both clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from photon.v1 import document_pb2, generation_pb2, model_pb2

from photon_client import _affinity, _wire, types
from photon_client import public_formats_pb2 as formats

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Result = TypeVar("Result")
Stub = TypeVar("Stub")


@dataclass(frozen=True)
class Method(Generic[Request, Response]):
    """A method of a service."""

    path: str
    request: type[Request]
    response: type[Response]
    #: Doing it twice does no harm.
    repeatable: bool = True

    def on(self, kind: Callable[..., Stub]) -> Stub:
        """What calls it; ``kind``: ``channel.unary_unary`` and the like, of grpc or grpc.aio."""
        return kind(
            self.path,
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.response.FromString,
        )


_GENERATION = "/photon.v1.GenerationService/"
_DOCUMENTS = "/photon.v1.DocumentService/"
_MODEL = "/photon.v1.ModelService/"

_GENERATE = Method(
    _GENERATION + "Generate", generation_pb2.GenerateRequest, generation_pb2.GenerateResponse
)
_GENERATE_BATCH = Method(
    _GENERATION + "GenerateBatch",
    generation_pb2.GenerateBatchRequest,
    generation_pb2.GenerateBatchResponse,
)
_ASK = Method(_DOCUMENTS + "Ask", document_pb2.AskRequest, document_pb2.AskResponse)
_CREATE_DOCUMENT = Method(
    _DOCUMENTS + "CreateDocument",
    document_pb2.CreateDocumentRequest,
    document_pb2.CreateDocumentResponse,
    repeatable=False,
)
_GET_DOCUMENT = Method(
    _DOCUMENTS + "GetDocument", document_pb2.GetDocumentRequest, document_pb2.GetDocumentResponse
)
_LIST_DOCUMENTS = Method(
    _DOCUMENTS + "ListDocuments",
    document_pb2.ListDocumentsRequest,
    document_pb2.ListDocumentsResponse,
)
_UPDATE_DOCUMENT = Method(
    _DOCUMENTS + "UpdateDocument",
    document_pb2.UpdateDocumentRequest,
    document_pb2.UpdateDocumentResponse,
)
_DELETE_DOCUMENT = Method(
    _DOCUMENTS + "DeleteDocument",
    document_pb2.DeleteDocumentRequest,
    document_pb2.DeleteDocumentResponse,
    repeatable=False,
)
_GET_MODEL_INFO = Method(
    _MODEL + "GetModelInfo", model_pb2.GetModelInfoRequest, model_pb2.GetModelInfoResponse
)
_TOKENIZE = Method(_MODEL + "Tokenize", model_pb2.TokenizeRequest, model_pb2.TokenizeResponse)
_DETOKENIZE = Method(
    _MODEL + "Detokenize", model_pb2.DetokenizeRequest, model_pb2.DetokenizeResponse
)
_ESTIMATE_COST = Method(
    _MODEL + "EstimateCost", model_pb2.EstimateCostRequest, model_pb2.EstimateCostResponse
)
_CHECK_HEALTH = Method(
    "/grpc.health.v1.Health/Check", formats.HealthCheckRequest, formats.HealthCheckResponse
)


@dataclass(frozen=True)
class Unary(Generic[Result]):
    """A call with one message as its answer."""

    method: Method[Any, Any]
    #: A message, or what makes a new iterator of those of an upload.
    request: Message | Callable[[], Iterator[Message]]
    result: Callable[[Any], Result]
    #: Empty: any replica.
    affinity: str = ""

    @property
    def uploads(self) -> bool:
        return callable(self.request)

    def argument(self) -> Message | Iterator[Message]:
        """What an attempt sends."""
        return self.request() if callable(self.request) else self.request


@dataclass(frozen=True)
class Streamed:
    """A call whose answer are chunks."""

    method: Method[Any, Any]
    request: Message
    to_chunk: Callable[[Any], types.Chunk]
    #: Prompts or questions.
    num_queries: int
    affinity: str


# --- Generation ---


def generate(
    prompt: types.Prompt,
    parameters: types.Parameters,
    affinity: str | None,
    *,
    n: int = 1,
    integrate: types.Vote | types.BestOf | None = None,
    omit_samples: bool = False,
) -> Streamed:
    request = generation_pb2.GenerateRequest(
        prompt=_wire.prompt(prompt),
        parameters=_wire.parameters(parameters, n, integrate, omit_samples),
    )
    affinity = _affinity.of_prefix(prompt) if affinity is None else affinity
    return Streamed(_GENERATE, request, _wire.chunk_of_generate, 1, affinity)


def consensus(
    prompt: types.Prompt,
    parameters: types.Parameters,
    affinity: str | None,
    *,
    n: int,
    integrate: types.Vote | types.BestOf,
) -> Streamed:
    return generate(
        prompt, parameters, affinity, n=n, integrate=integrate, omit_samples=True
    )


def batch(
    prompts: Sequence[types.Prompt],
    parameters: types.Parameters,
    affinity: str | None,
    *,
    n: int,
    integrate: types.Vote | types.BestOf | None = None,
) -> Streamed:
    request = generation_pb2.GenerateBatchRequest(
        prompts=map(_wire.prompt, prompts), parameters=_wire.parameters(parameters, n, integrate)
    )
    affinity = _affinity.of_batch(prompts) if affinity is None else affinity
    return Streamed(_GENERATE_BATCH, request, _wire.chunk_of_batch, len(prompts), affinity)


# --- Documents ---


def create_document(
    content: types.Prompt, name: str, ttl_s: int | None, affinity: str | None
) -> Unary[types.Document]:
    affinity = _affinity.of_document(content) if affinity is None else affinity
    return Unary(
        _CREATE_DOCUMENT,
        lambda: _wire.upload_requests(content, name, ttl_s),
        _document_at(affinity),
        affinity,
    )


def get_document(document: types.Document | str) -> Unary[types.Document]:
    affinity, document_id = _affinity.split_reference(document)
    request = document_pb2.GetDocumentRequest(document_id=document_id)
    return Unary(_GET_DOCUMENT, request, _document_at(affinity), affinity)


def list_documents(affinity: str) -> Unary[list[types.Document]]:
    def documents(response: document_pb2.ListDocumentsResponse) -> list[types.Document]:
        return [_wire.document(document, affinity) for document in response.documents]

    return Unary(_LIST_DOCUMENTS, document_pb2.ListDocumentsRequest(), documents, affinity)


def extend_document(document: types.Document | str, ttl_s: int) -> Unary[types.Document]:
    affinity, document_id = _affinity.split_reference(document)
    request = document_pb2.UpdateDocumentRequest(document_id=document_id, ttl_s=ttl_s)
    return Unary(_UPDATE_DOCUMENT, request, _document_at(affinity), affinity)


def delete_document(document: types.Document | str) -> Unary[None]:
    affinity, document_id = _affinity.split_reference(document)
    request = document_pb2.DeleteDocumentRequest(document_id=document_id)
    return Unary(_DELETE_DOCUMENT, request, lambda _: None, affinity)


def ask(
    document: types.Document | str,
    questions: Sequence[types.Prompt],
    parameters: types.Parameters,
    *,
    n: int,
    integrate: types.Vote | types.BestOf | None = None,
) -> Streamed:
    affinity, document_id = _affinity.split_reference(document)
    request = document_pb2.AskRequest(
        document_id=document_id,
        questions=map(_wire.prompt, questions),
        parameters=_wire.parameters(parameters, n, integrate),
    )
    return Streamed(_ASK, request, _wire.chunk_of_ask, len(questions), affinity)


def _document_at(affinity: str) -> Callable[[Any], types.Document]:
    """Of the responses that hold a document."""
    return lambda response: _wire.document(response.document, affinity)


# --- The model ---


def model_info() -> Unary[types.ModelInfo]:
    return Unary(_GET_MODEL_INFO, model_pb2.GetModelInfoRequest(), _wire.model_info)


def tokenize(text: str, add_bos: bool) -> Unary[list[int]]:
    request = model_pb2.TokenizeRequest(text=text, add_bos=add_bos)
    return Unary(_TOKENIZE, request, lambda response: list(response.token_ids))


def detokenize(token_ids: Sequence[int]) -> Unary[str]:
    request = model_pb2.DetokenizeRequest(token_ids=token_ids)
    return Unary(_DETOKENIZE, request, lambda response: str(response.text))


def estimate_cost(
    prompt: types.Prompt | None, prompt_tokens: int | None, max_tokens: int | None
) -> Unary[types.Cost]:
    if (prompt is None) == (prompt_tokens is None):
        raise TypeError("estimate_cost takes a prompt or prompt_tokens")
    request = model_pb2.EstimateCostRequest(max_tokens=max_tokens)
    if prompt is not None:
        request.prompt.CopyFrom(_wire.prompt(prompt))
    if prompt_tokens is not None:
        request.prompt_tokens = prompt_tokens
    return Unary(_ESTIMATE_COST, request, _wire.cost)


def health(service: str) -> Unary[types.HealthStatus]:
    return Unary(_CHECK_HEALTH, formats.HealthCheckRequest(service=service), _wire.health)
