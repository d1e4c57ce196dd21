"""The client for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar, Unpack

import grpc
import grpc.aio
from photon.v1 import document_pb2, model_pb2

from photon_client import _wire, errors, types
from photon_client import public_formats_pb2 as formats
from photon_client._channel import Call, CallDefaults, check_key_is_safe, credentials
from photon_client._wire import Method, Request, Response

Answer = TypeVar("Answer")


class _Messages(Protocol):
    """A call of grpc.aio, of whatever message type."""

    def __aiter__(self) -> AsyncIterator[Any]: ...
    def cancel(self) -> bool: ...


class AsyncStream(AsyncIterator[types.Chunk]):
    """Output as it comes, for ``async for``. Leave it by :meth:`cancel`, or by the end of an ``async with``.

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
        self._rpc = start()
        self._messages = self._rpc.__aiter__()
        self._began = False
        self._left = False

    @property
    def request_id(self) -> str:
        """Under which the server logs the call, and an operator may abort it."""
        return self._call.request_id

    def cancel(self) -> None:
        """Ends the call."""
        self._left = True
        self._rpc.cancel()

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> types.Chunk:
        while True:
            try:
                message = await self._messages.__anext__()
            except asyncio.CancelledError:
                # grpc.aio says so of a call that was cancelled, too, which does not cancel the task.
                task = asyncio.current_task()
                if not self._left or (task is not None and task.cancelling()):
                    raise
                raise self._cancelled() from None
            except grpc.RpcError as failed:
                error = errors.from_grpc(failed, self.request_id)
                delay = None if self._began else self._call.attempts.delay_after(error)
                if delay is None:
                    raise error from None
                await asyncio.sleep(delay)
                if self._left:
                    raise self._cancelled() from None
                self._rpc = self._start()
                self._messages = self._rpc.__aiter__()
                continue
            self._began = True
            return self._to_chunk(message)

    def _cancelled(self) -> errors.CancelledError:
        return errors.CancelledError(
            "CANCELLED", "the stream was cancelled", request_id=self.request_id
        )

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class AsyncClient:
    """:class:`Client` for asyncio: the same methods, to be awaited. Make it inside a running loop.

    >>> async with AsyncClient("127.0.0.1:50051") as client:                   # doctest: +SKIP
    ...     async for chunk in client.stream("Once upon a time", max_tokens=100):
    ...         print(chunk.text, end="", flush=True)
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
        """As :class:`Client`."""
        check_key_is_safe(target, api_key, tls, insecure)
        options = list(channel_options)
        self._channel = (
            grpc.aio.insecure_channel(target, options)
            if tls is None
            else grpc.aio.secure_channel(target, credentials(tls), options)
        )
        self._defaults = CallDefaults(api_key, timeout_s, retry)

    async def close(self) -> None:
        """Ends the calls that run, and the connection."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # --- Generation ---

    async def generate(
        self,
        prompt: types.Prompt,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> types.Generation:
        """As :meth:`Client.generate`."""
        stream = self.stream(
            prompt, timeout_s=timeout_s, request_id=request_id, affinity=affinity, **parameters
        )
        return (await _gather(stream, 1))[0].samples[0]

    def stream(
        self,
        prompt: types.Prompt,
        *,
        n: int = 1,
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> AsyncStream:
        """As :meth:`Client.stream`."""
        affinity = _wire.prefix_affinity(prompt) if affinity is None else affinity
        request = _wire.generate_request(prompt, parameters, n=n)
        call = self._call(_wire.GENERATE, timeout_s, request_id, affinity)
        return self._stream(_wire.GENERATE, request, _wire.chunk_of_generate, call)

    async def samples(
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
        """As :meth:`Client.samples`."""
        affinity = _wire.prefix_affinity(prompt) if affinity is None else affinity
        request = _wire.generate_request(prompt, parameters, n=n, integrate=integrate)
        call = self._call(_wire.GENERATE, timeout_s, request_id, affinity)
        stream = self._stream(_wire.GENERATE, request, _wire.chunk_of_generate, call)
        return (await _gather(stream, 1))[0]

    async def vote(
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
        """As :meth:`Client.vote`."""
        return await self._consensus(
            prompt, n, types.Vote(answer), timeout_s, request_id, affinity, parameters
        )

    async def best_of(
        self,
        prompt: types.Prompt,
        n: int,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> types.Consensus:
        """As :meth:`Client.best_of`."""
        return await self._consensus(
            prompt, n, types.BestOf(), timeout_s, request_id, affinity, parameters
        )

    async def batch(
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
        """As :meth:`Client.batch`."""
        affinity = _wire.batch_affinity(prompts) if affinity is None else affinity
        request = _wire.batch_request(prompts, parameters, n=n, integrate=integrate)
        call = self._call(_wire.GENERATE_BATCH, timeout_s, request_id, affinity)
        stream = self._stream(_wire.GENERATE_BATCH, request, _wire.chunk_of_batch, call)
        return await _gather(stream, len(prompts))

    def stream_batch(
        self,
        prompts: Sequence[types.Prompt],
        *,
        n: int = 1,
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
        **parameters: Unpack[types.Parameters],
    ) -> AsyncStream:
        """As :meth:`Client.stream_batch`."""
        affinity = _wire.batch_affinity(prompts) if affinity is None else affinity
        request = _wire.batch_request(prompts, parameters, n=n)
        call = self._call(_wire.GENERATE_BATCH, timeout_s, request_id, affinity)
        return self._stream(_wire.GENERATE_BATCH, request, _wire.chunk_of_batch, call)

    # --- Documents ---

    async def create_document(
        self,
        content: types.Prompt,
        *,
        name: str = "",
        ttl_s: int | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        affinity: str | None = None,
    ) -> types.Document:
        """As :meth:`Client.create_document`."""
        affinity = _wire.document_affinity(content) if affinity is None else affinity
        method = _wire.CREATE_DOCUMENT
        call = self._call(method, timeout_s, request_id, affinity)
        upload = self._channel.stream_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )

        async def attempt() -> document_pb2.CreateDocumentResponse:
            return await upload(
                _wire.upload_requests(content, name, ttl_s),
                timeout=call.attempts.remaining_s(),
                metadata=call.metadata,
            )

        return _wire.document((await _retried(attempt, call)).document, affinity)

    async def get_document(
        self,
        document: types.Document | str,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.Document:
        """As :meth:`Client.get_document`."""
        affinity, document_id = _wire.split_reference(document)
        request = document_pb2.GetDocumentRequest(document_id=document_id)
        response = await self._unary(_wire.GET_DOCUMENT, request, timeout_s, request_id, affinity)
        return _wire.document(response.document, affinity)

    async def list_documents(
        self,
        *,
        affinity: str = "",
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[types.Document]:
        """As :meth:`Client.list_documents`."""
        request = document_pb2.ListDocumentsRequest()
        response = await self._unary(_wire.LIST_DOCUMENTS, request, timeout_s, request_id, affinity)
        return [_wire.document(document, affinity) for document in response.documents]

    async def extend_document(
        self,
        document: types.Document | str,
        ttl_s: int,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.Document:
        """As :meth:`Client.extend_document`."""
        affinity, document_id = _wire.split_reference(document)
        request = document_pb2.UpdateDocumentRequest(document_id=document_id, ttl_s=ttl_s)
        response = await self._unary(_wire.UPDATE_DOCUMENT, request, timeout_s, request_id, affinity)
        return _wire.document(response.document, affinity)

    async def delete_document(
        self,
        document: types.Document | str,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        """As :meth:`Client.delete_document`."""
        affinity, document_id = _wire.split_reference(document)
        request = document_pb2.DeleteDocumentRequest(document_id=document_id)
        await self._unary(_wire.DELETE_DOCUMENT, request, timeout_s, request_id, affinity)

    async def ask(
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
        """As :meth:`Client.ask`."""
        affinity, document_id = _wire.split_reference(document)
        request = _wire.ask_request(document_id, questions, parameters, n=n, integrate=integrate)
        call = self._call(_wire.ASK, timeout_s, request_id, affinity)
        return await _gather(
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
    ) -> AsyncStream:
        """As :meth:`Client.stream_ask`."""
        affinity, document_id = _wire.split_reference(document)
        request = _wire.ask_request(document_id, questions, parameters, n=n)
        call = self._call(_wire.ASK, timeout_s, request_id, affinity)
        return self._stream(_wire.ASK, request, _wire.chunk_of_ask, call)

    # --- The model ---

    async def model_info(
        self, *, timeout_s: float | None = None, request_id: str | None = None
    ) -> types.ModelInfo:
        """As :meth:`Client.model_info`."""
        request = model_pb2.GetModelInfoRequest()
        return _wire.model_info(
            await self._unary(_wire.GET_MODEL_INFO, request, timeout_s, request_id)
        )

    async def tokenize(
        self,
        text: str,
        *,
        add_bos: bool = False,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[int]:
        """As :meth:`Client.tokenize`."""
        request = model_pb2.TokenizeRequest(text=text, add_bos=add_bos)
        return list((await self._unary(_wire.TOKENIZE, request, timeout_s, request_id)).token_ids)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> str:
        """As :meth:`Client.detokenize`."""
        request = model_pb2.DetokenizeRequest(token_ids=token_ids)
        return (await self._unary(_wire.DETOKENIZE, request, timeout_s, request_id)).text

    async def estimate_cost(
        self,
        prompt: types.Prompt | None = None,
        *,
        prompt_tokens: int | None = None,
        max_tokens: int | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.Cost:
        """As :meth:`Client.estimate_cost`."""
        request = _wire.cost_request(prompt, prompt_tokens, max_tokens)
        return _wire.cost(await self._unary(_wire.ESTIMATE_COST, request, timeout_s, request_id))

    # --- Health ---

    async def health(
        self,
        service: str = "",
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.HealthStatus:
        """As :meth:`Client.health`."""
        request = formats.HealthCheckRequest(service=service)
        return _wire.health(await self._unary(_wire.CHECK_HEALTH, request, timeout_s, request_id))

    async def wait_until_serving(self, timeout_s: float) -> None:
        """As :meth:`Client.wait_until_serving`."""
        give_up = time.monotonic() + timeout_s
        pause = 0.05
        while (remaining := give_up - time.monotonic()) > 0:
            try:
                if await self.health(timeout_s=min(remaining, 5.0)) is types.HealthStatus.SERVING:
                    return
            except (errors.UnavailableError, errors.DeadlineExceededError):
                pass
            await asyncio.sleep(min(pause, max(0.0, give_up - time.monotonic())))
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

    async def _unary(
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
        return await _retried(
            lambda: rpc(request, timeout=call.attempts.remaining_s(), metadata=call.metadata), call
        )

    def _stream(
        self,
        method: Method[Request, Response],
        request: Request,
        to_chunk: Callable[[Response], types.Chunk],
        call: Call,
    ) -> AsyncStream:
        rpc = self._channel.unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return AsyncStream(
            lambda: rpc(request, timeout=call.attempts.remaining_s(), metadata=call.metadata),
            to_chunk,
            call,
        )

    async def _consensus(
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
        return _wire.consensus_of((await _gather(stream, 1))[0])


async def _gather(stream: AsyncStream, num_queries: int) -> list[types.Outcome]:
    outcomes = _wire.Outcomes(num_queries)
    async with stream:
        async for chunk in stream:
            outcomes.add(chunk)
    return outcomes.finish()


async def _retried(attempt: Callable[[], Awaitable[Answer]], call: Call) -> Answer:
    while True:
        try:
            return await attempt()
        except grpc.RpcError as failed:
            error = errors.from_grpc(failed, call.request_id)
            delay = call.attempts.delay_after(error)
            if delay is None:
                raise error from None
            await asyncio.sleep(delay)
