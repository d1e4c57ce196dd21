"""The blocking client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar, Unpack

import grpc

from photon_client import _calls, _wire, errors, types
from photon_client._channel import Call, CallDefaults, check_key_is_safe, credentials
from photon_client._retry import Waiting

Result = TypeVar("Result")


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
                if self._left.wait(self._call.delay_after(failed, began=self._began)):
                    raise errors.from_grpc(failed, self.request_id) from None
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
        call = _calls.generate(prompt, parameters, affinity)
        return self._outcomes(call, timeout_s, request_id)[0].samples[0]

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
        return self._stream(
            _calls.generate(prompt, parameters, affinity, n=n), timeout_s, request_id
        )

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
        call = _calls.generate(prompt, parameters, affinity, n=n, integrate=integrate)
        return self._outcomes(call, timeout_s, request_id)[0]

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
        call = _calls.consensus(prompt, parameters, affinity, n=n, integrate=types.Vote(answer))
        return _wire.consensus_of(self._outcomes(call, timeout_s, request_id)[0])

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
        call = _calls.consensus(prompt, parameters, affinity, n=n, integrate=types.BestOf())
        return _wire.consensus_of(self._outcomes(call, timeout_s, request_id)[0])

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
        call = _calls.batch(prompts, parameters, affinity, n=n, integrate=integrate)
        return self._outcomes(call, timeout_s, request_id)

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
        return self._stream(_calls.batch(prompts, parameters, affinity, n=n), timeout_s, request_id)

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
        call = _calls.create_document(content, name, ttl_s, affinity)
        return self._unary(call, timeout_s, request_id)

    def get_document(
        self,
        document: types.Document | str,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.Document:
        """A document by its :attr:`~Document.reference`, or by its id where there is one replica only."""
        return self._unary(_calls.get_document(document), timeout_s, request_id)

    def list_documents(
        self,
        *,
        affinity: str = "",
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[types.Document]:
        """The caller's documents on one replica, the oldest first."""
        return self._unary(_calls.list_documents(affinity), timeout_s, request_id)

    def extend_document(
        self,
        document: types.Document | str,
        ttl_s: int,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.Document:
        """Lets a document live for ``ttl_s`` from now on."""
        return self._unary(_calls.extend_document(document, ttl_s), timeout_s, request_id)

    def delete_document(
        self,
        document: types.Document | str,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        """Gives a document's memory back. Questions that run go on."""
        self._unary(_calls.delete_document(document), timeout_s, request_id)

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
        call = _calls.ask(document, questions, parameters, n=n, integrate=integrate)
        return self._outcomes(call, timeout_s, request_id)

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
        return self._stream(
            _calls.ask(document, questions, parameters, n=n), timeout_s, request_id
        )

    # --- The model ---

    def model_info(
        self, *, timeout_s: float | None = None, request_id: str | None = None
    ) -> types.ModelInfo:
        """The model, what it can do, and the limits of requests."""
        return self._unary(_calls.model_info(), timeout_s, request_id)

    def tokenize(
        self,
        text: str,
        *,
        add_bos: bool = False,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[int]:
        """Text to token ids; ``add_bos`` as a text prompt gets it."""
        return self._unary(_calls.tokenize(text, add_bos), timeout_s, request_id)

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> str:
        """Token ids to text."""
        return self._unary(_calls.detokenize(token_ids), timeout_s, request_id)

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
        call = _calls.estimate_cost(prompt, prompt_tokens, max_tokens)
        return self._unary(call, timeout_s, request_id)

    # --- Health ---

    def health(
        self,
        service: str = "",
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> types.HealthStatus:
        """Of a service (``"photon.v1.GenerationService"``), or of the whole server."""
        return self._unary(_calls.health(service), timeout_s, request_id)

    def wait_until_serving(self, timeout_s: float) -> None:
        """Returns once the server takes requests; raises :class:`DeadlineExceededError` if it does not."""
        waiting = Waiting(timeout_s)
        while (look_s := waiting.look_s()) is not None:
            try:
                if self.health(timeout_s=look_s) is types.HealthStatus.SERVING:
                    return
            except (errors.UnavailableError, errors.DeadlineExceededError):
                pass
            time.sleep(waiting.pause_s())
        raise errors.DeadlineExceededError(
            "DEADLINE_EXCEEDED", f"the server was not ready within {timeout_s} s"
        )

    # --- Calls ---

    def _unary(
        self, exchange: _calls.Unary[Result], timeout_s: float | None, request_id: str | None
    ) -> Result:
        channel: Any = self._channel
        stub = exchange.method.on(channel.stream_unary if exchange.uploads else channel.unary_unary)
        call = self._defaults.call(exchange.method.repeatable, exchange.affinity, timeout_s, request_id)
        while True:
            try:
                return exchange.result(
                    stub(
                        exchange.argument(), timeout=call.remaining_s(), metadata=call.metadata
                    )
                )
            except grpc.RpcError as failed:
                time.sleep(call.delay_after(failed))

    def _stream(
        self, exchange: _calls.Streamed, timeout_s: float | None, request_id: str | None
    ) -> Stream:
        stub = exchange.method.on(self._channel.unary_stream)
        call = self._defaults.call(exchange.method.repeatable, exchange.affinity, timeout_s, request_id)
        return Stream(
            lambda: stub(
                exchange.request, timeout=call.remaining_s(), metadata=call.metadata
            ),
            exchange.to_chunk,
            call,
        )

    def _outcomes(
        self, exchange: _calls.Streamed, timeout_s: float | None, request_id: str | None
    ) -> list[types.Outcome]:
        outcomes = _wire.Outcomes(exchange.num_queries)
        with self._stream(exchange, timeout_s, request_id) as stream:
            for chunk in stream:
                outcomes.add(chunk)
        return outcomes.finish()
