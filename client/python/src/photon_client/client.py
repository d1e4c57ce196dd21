"""The blocking client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar, Unpack

import grpc
from photon.v1 import document_pb2, model_pb2

from photon_client import _wire, errors, types
from photon_client import public_formats_pb2 as formats
from photon_client._channel import Call, CallDefaults, check_key_is_safe, credentials
from photon_client._wire import Method, Request, Response

Answer = TypeVar("Answer")


class _Messages(Protocol):
    """A call of grpc, of whatever message type."""

    def __next__(self) -> Any: ...
    def cancel(self) -> bool: ...


class Stream(Iterator[types.Chunk]):
    """Output as it comes. Iterate over it; leave it by :meth:`cancel`, or by the end of a ``with``.

    Raises :class:`PhotonError` where the call fails. The server stops working on a stream that was left.
    """

    def __init__(
        self,
        start: Callable[[], _Messages],
        to_chunk: Callable[[Any], types.Chunk],
        call: Call,
    ) -> None:
        self._start = start
        self._to_chunk = to_chunk
        self._call = call
        self._left = threading.Event()
        self._rpc = start()
        self._began = False

    @property
    def request_id(self) -> str:
        """Under which the server logs the call, and an operator may abort it."""
        return self._call.request_id

    def cancel(self) -> None:
        """Ends the call. From any thread."""
        self._left.set()
        self._rpc.cancel()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> types.Chunk:
        while True:
            try:
                message = next(self._rpc)
            except grpc.RpcError as failed:
                error = errors.from_grpc(failed, self.request_id)
                delay = None if self._began else self._call.attempts.delay_after(error)
                if delay is None or self._left.wait(delay):
                    raise error from None
                self._rpc = self._start()
                continue
            self._began = True
            return self._to_chunk(message)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class Client:
    """Calls to a photon server. Safe to use from several threads; connects with the first call.

    >>> with Client("127.0.0.1:50051") as client:                              # doctest: +SKIP
    ...     for chunk in client.stream("Once upon a time", max_tokens=100):
    ...         print(chunk.text, end="", flush=True)
    ...     print(client.generate("6 times 7 is", temperature=0, max_tokens=8).text)

    Every method that calls takes ``timeout_s`` (of all attempts together; default: the client's) and
    ``request_id`` (default: a new one), and raises :class:`PhotonError`. Methods that generate take
    :class:`Parameters` as keywords, and ``affinity``: calls with the same one go to the same replica
    where a proxy balances over several. By default that is drawn from the beginning of a long prompt.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        api_key: str | None = None,
        tls: types.Tls | None = None,
        insecure: bool = False,
        timeout_s: float | None = None,
        retry: types.RetryPolicy = types.RetryPolicy(),
        channel_options: Sequence[tuple[str, str | int]] = (),
    ) -> None:
        """
        ``target``: host:port, or any name that gRPC knows (``unix:/run/photon.sock``,
        ``dns:///photon:50051``). ``insecure``: lets ``api_key`` go to another machine without ``tls``.
        ``channel_options``: of gRPC.
        """
        check_key_is_safe(target, api_key, tls, insecure)
        options = list(channel_options)
        self._channel = (
            grpc.insecure_channel(target, options)
            if tls is None
            else grpc.secure_channel(target, credentials(tls), options)
        )
        self._defaults = CallDefaults(api_key, timeout_s, retry)

    def close(self) -> None:
        """Ends the calls that run, and the connection."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- Generation ---

    def generate(
        self,
        prompt: types.Prompt,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> types.Generation:
        """Continues a prompt, once, and returns when it is done.

        >>> client.generate("Once upon a time", stop=["."], seed=7).text       # doctest: +SKIP
        """
        stream = self.stream(
            prompt, timeout_s=timeout_s, request_id=request_id, affinity=affinity, **parameters
        )
        return _gather(stream, 1)[0].samples[0]

    def stream(
        self,
        prompt: types.Prompt,
        *,
        n: int = 1,
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> Stream:
        """Continues a prompt in ``n`` samples, whose chunks come mixed: see :attr:`Chunk.sample`."""
        affinity = _wire.prefix_affinity(prompt) if affinity is None else affinity
        request = _wire.generate_request(prompt, parameters, n=n)
        call = self._call(_wire.GENERATE, timeout_s, request_id, affinity)
        return self._stream(_wire.GENERATE, request, _wire.chunk_of_generate, call)

    def samples(
        self,
        prompt: types.Prompt,
        n: int,
        *,
        integrate: types.Vote | types.BestOf | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> types.Outcome:
        """``n`` samples of one prompt, which cost one prefill; and one answer of them, if asked for.

        >>> client.samples("Once upon a time", 4, max_tokens=20).samples[3].text  # doctest: +SKIP
        """
        affinity = _wire.prefix_affinity(prompt) if affinity is None else affinity
        request = _wire.generate_request(prompt, parameters, n=n, integrate=integrate)
        call = self._call(_wire.GENERATE, timeout_s, request_id, affinity)
        stream = self._stream(_wire.GENERATE, request, _wire.chunk_of_generate, call)
        return _gather(stream, 1)[0]

    def vote(
        self,
        prompt: types.Prompt,
        n: int,
        *,
        answer: types.AnswerSource = "last_number",
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> types.Consensus:
        """The answer that most of ``n`` samples give. Sends no sample's output but the winner's.

        >>> client.vote("6 times 7 is", 16, max_tokens=8).answer               # doctest: +SKIP
        """
        return self._consensus(
            prompt, n, types.Vote(answer), timeout_s, request_id, affinity, parameters
        )

    def best_of(
        self,
        prompt: types.Prompt,
        n: int,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> types.Consensus:
        """Of ``n`` samples the one with the highest mean log-probability."""
        return self._consensus(
            prompt, n, types.BestOf(), timeout_s, request_id, affinity, parameters
        )

    def batch(
        self,
        prompts: Sequence[types.Prompt],
        *,
        n: int = 1,
        integrate: types.Vote | types.BestOf | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> list[types.Outcome]:
        """Continues many prompts at once. One that is bad fails alone: see :attr:`Outcome.error`.

        >>> [o.text for o in client.batch(["One day", "The fox"], max_tokens=9)]  # doctest: +SKIP
        """
        affinity = _wire.batch_affinity(prompts) if affinity is None else affinity
        request = _wire.batch_request(prompts, parameters, n=n, integrate=integrate)
        call = self._call(_wire.GENERATE_BATCH, timeout_s, request_id, affinity)
        stream = self._stream(_wire.GENERATE_BATCH, request, _wire.chunk_of_batch, call)
        return _gather(stream, len(prompts))

    def stream_batch(
        self,
        prompts: Sequence[types.Prompt],
        *,
        n: int = 1,
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> Stream:
        """As :meth:`batch`, as it comes: see :attr:`Chunk.query`."""
        affinity = _wire.batch_affinity(prompts) if affinity is None else affinity
        request = _wire.batch_request(prompts, parameters, n=n)
        call = self._call(_wire.GENERATE_BATCH, timeout_s, request_id, affinity)
        return self._stream(_wire.GENERATE_BATCH, request, _wire.chunk_of_batch, call)

    # --- Documents ---

    def create_document(
        self,
        content: types.Prompt,
        *,
        name: str = "",
        ttl_s: int | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
    ) -> types.Document:
        """Has the server read a document, text or token ids, and keep it for ``ttl_s``.

        >>> document = client.create_document(Path("story.txt").read_text())   # doctest: +SKIP
        >>> client.ask(document, [" So the fox", " And the owl"])[0].text      # doctest: +SKIP
        """
        affinity = _wire.document_affinity(content) if affinity is None else affinity
        method = _wire.CREATE_DOCUMENT
        call = self._call(method, timeout_s, request_id, affinity)
        upload = self._channel.stream_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )

        def attempt() -> document_pb2.CreateDocumentResponse:
            return upload(
                _wire.upload_requests(content, name, ttl_s),
                timeout=call.attempts.remaining_s(),
                metadata=call.metadata,
            )

        return _wire.document(_retried(attempt, call).document, affinity)

    def get_document(
        self,
        document: types.Document | str,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.Document:
        """A document by its :attr:`~Document.reference`, or by its id where there is one replica only."""
        affinity, document_id = _wire.split_reference(document)
        request = document_pb2.GetDocumentRequest(document_id=document_id)
        response = self._unary(_wire.GET_DOCUMENT, request, timeout_s, request_id, affinity)
        return _wire.document(response.document, affinity)

    def list_documents(
        self,
        *,
        affinity: str = "",
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[types.Document]:
        """The caller's documents on one replica, the oldest first."""
        request = document_pb2.ListDocumentsRequest()
        response = self._unary(_wire.LIST_DOCUMENTS, request, timeout_s, request_id, affinity)
        return [_wire.document(document, affinity) for document in response.documents]

    def extend_document(
        self,
        document: types.Document | str,
        ttl_s: int,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.Document:
        """Lets a document live for ``ttl_s`` from now on."""
        affinity, document_id = _wire.split_reference(document)
        request = document_pb2.UpdateDocumentRequest(document_id=document_id, ttl_s=ttl_s)
        response = self._unary(_wire.UPDATE_DOCUMENT, request, timeout_s, request_id, affinity)
        return _wire.document(response.document, affinity)

    def delete_document(
        self,
        document: types.Document | str,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        """Gives a document's memory back. Questions that run go on."""
        affinity, document_id = _wire.split_reference(document)
        request = document_pb2.DeleteDocumentRequest(document_id=document_id)
        self._unary(_wire.DELETE_DOCUMENT, request, timeout_s, request_id, affinity)

    def ask(
        self,
        document: types.Document | str,
        questions: Sequence[types.Prompt],
        *,
        n: int = 1,
        integrate: types.Vote | types.BestOf | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> list[types.Outcome]:
        """Continues the document with each of the questions. A question brings its own leading space."""
        affinity, document_id = _wire.split_reference(document)
        request = _wire.ask_request(document_id, questions, parameters, n=n, integrate=integrate)
        call = self._call(_wire.ASK, timeout_s, request_id, affinity)
        return _gather(
            self._stream(_wire.ASK, request, _wire.chunk_of_ask, call), len(questions)
        )

    def stream_ask(
        self,
        document: types.Document | str,
        questions: Sequence[types.Prompt],
        *,
        n: int = 1,
        timeout_s: float | None = None,
        request_id: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> Stream:
        """As :meth:`ask`, as it comes: see :attr:`Chunk.query`."""
        affinity, document_id = _wire.split_reference(document)
        request = _wire.ask_request(document_id, questions, parameters, n=n)
        call = self._call(_wire.ASK, timeout_s, request_id, affinity)
        return self._stream(_wire.ASK, request, _wire.chunk_of_ask, call)

    # --- The model ---

    def model_info(
        self, *, timeout_s: float | None = None, request_id: str | None = None
    ) -> types.ModelInfo:
        """The model, what it can do, and the limits of requests."""
        request = model_pb2.GetModelInfoRequest()
        return _wire.model_info(
            self._unary(_wire.GET_MODEL_INFO, request, timeout_s, request_id)
        )

    def tokenize(
        self,
        text: str,
        *,
        add_bos: bool = False,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[int]:
        """Text to token ids; ``add_bos`` as a text prompt gets it."""
        request = model_pb2.TokenizeRequest(text=text, add_bos=add_bos)
        return list(self._unary(_wire.TOKENIZE, request, timeout_s, request_id).token_ids)

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> str:
        """Token ids to text."""
        request = model_pb2.DetokenizeRequest(token_ids=token_ids)
        return self._unary(_wire.DETOKENIZE, request, timeout_s, request_id).text

    def estimate_cost(
        self,
        prompt: types.Prompt | None = None,
        *,
        prompt_tokens: int | None = None,
        max_tokens: int | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.Cost:
        """What a generation would take, from a prompt or from the number of its tokens."""
        request = _wire.cost_request(prompt, prompt_tokens, max_tokens)
        return _wire.cost(self._unary(_wire.ESTIMATE_COST, request, timeout_s, request_id))

    # --- Health ---

    def health(
        self,
        service: str = "",
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.HealthStatus:
        """Of a service (``"photon.v1.GenerationService"``), or of the whole server."""
        request = formats.HealthCheckRequest(service=service)
        return _wire.health(self._unary(_wire.CHECK_HEALTH, request, timeout_s, request_id))

    def wait_until_serving(self, timeout_s: float) -> None:
        """Returns once the server takes requests; raises :class:`DeadlineExceededError` if it does not."""
        give_up = time.monotonic() + timeout_s
        pause = 0.05
        while (remaining := give_up - time.monotonic()) > 0:
            try:
                if self.health(timeout_s=min(remaining, 5.0)) is types.HealthStatus.SERVING:
                    return
            except (errors.UnavailableError, errors.DeadlineExceededError):
                pass
            time.sleep(min(pause, max(0.0, give_up - time.monotonic())))
            pause = min(1.0, pause * 1.5)
        raise errors.DeadlineExceededError(
            "DEADLINE_EXCEEDED", f"the server was not ready within {timeout_s} s"
        )

    # --- Calls ---

    def _call(
        self,
        method: Method[Request, Response],
        timeout_s: float | None,
        request_id: str | None,
        affinity: str,
    ) -> Call:
        return self._defaults.call(
            repeatable=method.repeatable,
            timeout_s=timeout_s,
            request_id=request_id,
            affinity=affinity,
        )

    def _unary(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout_s: float | None,
        request_id: str | None,
        affinity: str = "",
    ) -> Response:
        call = self._call(method, timeout_s, request_id, affinity)
        rpc = self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return _retried(
            lambda: rpc(request, timeout=call.attempts.remaining_s(), metadata=call.metadata), call
        )

    def _stream(
        self,
        method: Method[Request, Response],
        request: Request,
        to_chunk: Callable[[Response], types.Chunk],
        call: Call,
    ) -> Stream:
        rpc = self._channel.unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return Stream(
            lambda: rpc(request, timeout=call.attempts.remaining_s(), metadata=call.metadata),
            to_chunk,
            call,
        )

    def _consensus(
        self,
        prompt: types.Prompt,
        n: int,
        integrate: types.Vote | types.BestOf,
        timeout_s: float | None,
        request_id: str | None,
        affinity: str | None,
        parameters: types.Parameters,
    ) -> types.Consensus:
        affinity = _wire.prefix_affinity(prompt) if affinity is None else affinity
        request = _wire.generate_request(
            prompt, parameters, n=n, integrate=integrate, omit_samples=True
        )
        call = self._call(_wire.GENERATE, timeout_s, request_id, affinity)
        stream = self._stream(_wire.GENERATE, request, _wire.chunk_of_generate, call)
        return _wire.consensus_of(_gather(stream, 1)[0])


def _gather(stream: Stream, num_queries: int) -> list[types.Outcome]:
    outcomes = _wire.Outcomes(num_queries)
    with stream:
        for chunk in stream:
            outcomes.add(chunk)
    return outcomes.finish()


def _retried(attempt: Callable[[], Answer], call: Call) -> Answer:
    while True:
        try:
            return attempt()
        except grpc.RpcError as failed:
            error = errors.from_grpc(failed, call.request_id)
            delay = call.attempts.delay_after(error)
            if delay is None:
                raise error from None
            time.sleep(delay)
