"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar, Unpack

import grpc
import grpc.aio

from photon_client import _calls, _wire, errors, types
from photon_client._channel import Call, CallDefaults, check_key_is_safe, credentials
from photon_client._retry import Waiting

Result = TypeVar("Result")


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
                await asyncio.sleep(self._call.delay_after(failed, began=self._began))
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
        call = _calls.generate(prompt, parameters, affinity)
        return (await self._outcomes(call, timeout_s, request_id))[0].samples[0]

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
        return self._stream(
            _calls.generate(prompt, parameters, affinity, n=n), timeout_s, request_id
        )

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
        call = _calls.generate(prompt, parameters, affinity, n=n, integrate=integrate)
        return (await self._outcomes(call, timeout_s, request_id))[0]

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
        call = _calls.consensus(prompt, parameters, affinity, n=n, integrate=types.Vote(answer))
        return _wire.consensus_of((await self._outcomes(call, timeout_s, request_id))[0])

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
        call = _calls.consensus(prompt, parameters, affinity, n=n, integrate=types.BestOf())
        return _wire.consensus_of((await self._outcomes(call, timeout_s, request_id))[0])

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
        call = _calls.batch(prompts, parameters, affinity, n=n, integrate=integrate)
        return await self._outcomes(call, timeout_s, request_id)

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
        return self._stream(_calls.batch(prompts, parameters, affinity, n=n), timeout_s, request_id)

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
        call = _calls.create_document(content, name, ttl_s, affinity)
        return await self._unary(call, timeout_s, request_id)

    async def get_document(
        self,
        document: types.Document | str,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.Document:
        """As :meth:`Client.get_document`."""
        return await self._unary(_calls.get_document(document), timeout_s, request_id)

    async def list_documents(
        self,
        *,
        affinity: str = "",
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[types.Document]:
        """As :meth:`Client.list_documents`."""
        return await self._unary(_calls.list_documents(affinity), timeout_s, request_id)

    async def extend_document(
        self,
        document: types.Document | str,
        ttl_s: int,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.Document:
        """As :meth:`Client.extend_document`."""
        return await self._unary(_calls.extend_document(document, ttl_s), timeout_s, request_id)

    async def delete_document(
        self,
        document: types.Document | str,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        """As :meth:`Client.delete_document`."""
        await self._unary(_calls.delete_document(document), timeout_s, request_id)

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
        call = _calls.ask(document, questions, parameters, n=n, integrate=integrate)
        return await self._outcomes(call, timeout_s, request_id)

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
        return self._stream(
            _calls.ask(document, questions, parameters, n=n), timeout_s, request_id
        )

    # --- The model ---

    async def model_info(
        self, *, timeout_s: float | None = None, request_id: str | None = None
    ) -> types.ModelInfo:
        """As :meth:`Client.model_info`."""
        return await self._unary(_calls.model_info(), timeout_s, request_id)

    async def tokenize(
        self,
        text: str,
        *,
        add_bos: bool = False,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[int]:
        """As :meth:`Client.tokenize`."""
        return await self._unary(_calls.tokenize(text, add_bos), timeout_s, request_id)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> str:
        """As :meth:`Client.detokenize`."""
        return await self._unary(_calls.detokenize(token_ids), timeout_s, request_id)

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
        call = _calls.estimate_cost(prompt, prompt_tokens, max_tokens)
        return await self._unary(call, timeout_s, request_id)

    # --- Health ---

    async def health(
        self,
        service: str = "",
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.HealthStatus:
        """As :meth:`Client.health`."""
        return await self._unary(_calls.health(service), timeout_s, request_id)

    async def wait_until_serving(self, timeout_s: float) -> None:
        """As :meth:`Client.wait_until_serving`."""
        waiting = Waiting(timeout_s)
        while (look_s := waiting.look_s()) is not None:
            try:
                if await self.health(timeout_s=look_s) is types.HealthStatus.SERVING:
                    return
            except (errors.UnavailableError, errors.DeadlineExceededError):
                pass
            await asyncio.sleep(waiting.pause_s())
        raise errors.DeadlineExceededError(
            "DEADLINE_EXCEEDED", f"the server was not ready within {timeout_s} s"
        )

    # --- Calls ---

    async def _unary(
        self, exchange: _calls.Unary[Result], timeout_s: float | None, request_id: str | None
    ) -> Result:
        channel: Any = self._channel
        stub = exchange.method.on(channel.stream_unary if exchange.uploads else channel.unary_unary)
        call = self._defaults.call(exchange.method.repeatable, exchange.affinity, timeout_s, request_id)
        while True:
            try:
                return exchange.result(
                    await stub(
                        exchange.argument(), timeout=call.remaining_s(), metadata=call.metadata
                    )
                )
            except grpc.RpcError as failed:
                await asyncio.sleep(call.delay_after(failed))

    def _stream(
        self, exchange: _calls.Streamed, timeout_s: float | None, request_id: str | None
    ) -> AsyncStream:
        stub = exchange.method.on(self._channel.unary_stream)
        call = self._defaults.call(exchange.method.repeatable, exchange.affinity, timeout_s, request_id)
        return AsyncStream(
            lambda: stub(
                exchange.request, timeout=call.remaining_s(), metadata=call.metadata
            ),
            exchange.to_chunk,
            call,
        )

    async def _outcomes(
        self, exchange: _calls.Streamed, timeout_s: float | None, request_id: str | None
    ) -> list[types.Outcome]:
        outcomes = _wire.Outcomes(exchange.num_queries)
        async with self._stream(exchange, timeout_s, request_id) as stream:
            async for chunk in stream:
                outcomes.add(chunk)
        return outcomes.finish()
