"""Between plain data and the messages of photon.v1; the same for both clients."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from photon.v1 import document_pb2, generation_pb2, integration_pb2, model_pb2

from photon_client import public_formats_pb2 as formats
from photon_client import types
from photon_client.errors import from_code

# --- Requests ---


def prompt(prompt: types.Prompt) -> generation_pb2.Prompt:
    if isinstance(prompt, str):
        return generation_pb2.Prompt(text=prompt)
    return generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=prompt))


def _integration(
    integrate: types.Vote | types.BestOf | None, omit_samples: bool
) -> integration_pb2.Integration | None:
    if integrate is None:
        return None
    if isinstance(integrate, types.BestOf):
        return integration_pb2.Integration(
            best_of_n=integration_pb2.BestOfN(), omit_samples=omit_samples
        )
    vote = integration_pb2.MajorityVote(run_all_samples=integrate.run_all_samples)
    if isinstance(integrate.answer, types.RegularExpression):
        vote.answer_source = integration_pb2.ANSWER_SOURCE_REGULAR_EXPRESSION
        vote.regular_expression = integrate.answer.pattern
    elif isinstance(integrate.answer, types.JsonPointer):
        vote.answer_source = integration_pb2.ANSWER_SOURCE_JSON_POINTER
        vote.json_pointer = integrate.answer.pointer
    elif integrate.answer == "last_number":
        vote.answer_source = integration_pb2.ANSWER_SOURCE_LAST_NUMBER
    else:
        vote.answer_source = integration_pb2.ANSWER_SOURCE_WHOLE_TEXT
    return integration_pb2.Integration(majority_vote=vote, omit_samples=omit_samples)


def parameters(
    parameters: types.Parameters,
    n: int,
    integrate: types.Vote | types.BestOf | None,
    omit_samples: bool = False,
) -> generation_pb2.GenerationParameters:
    unknown = set(parameters) - set(types.Parameters.__annotations__)
    if unknown:
        raise TypeError(f"unknown parameters: {', '.join(sorted(unknown))}")
    stop = parameters.get("stop", ())
    mode = f"GENERATION_MODE_{parameters.get('mode', 'unspecified').upper()}"
    priority = f"PRIORITY_{parameters.get('priority', 'unspecified').upper()}"
    return generation_pb2.GenerationParameters(
        mode=mode,
        max_tokens=parameters.get("max_tokens"),
        sampling=generation_pb2.SamplingParameters(
            temperature=parameters.get("temperature"),
            top_k=parameters.get("top_k"),
            top_p=parameters.get("top_p"),
            min_p=parameters.get("min_p"),
            seed=parameters.get("seed"),
        ),
        stop=generation_pb2.StopConditions(
            strings=[stop] if isinstance(stop, str) else stop,
            token_ids=parameters.get("stop_token_ids", ()),
            ignore_eos=parameters.get("ignore_eos", False),
        ),
        logprobs=parameters.get("logprobs", False),
        top_logprobs=parameters.get("top_logprobs"),
        n=n,
        priority=priority,
        integration=_integration(integrate, omit_samples),
    )


def upload_requests(
    content: types.Prompt, name: str, ttl_s: int | None
) -> Iterator[document_pb2.CreateDocumentRequest]:
    yield document_pb2.CreateDocumentRequest(
        settings=document_pb2.DocumentSettings(display_name=name, ttl_s=ttl_s)
    )
    # Far below the limit of a message, in characters of up to four bytes as in ids of up to five.
    piece = 1 << 16
    for begin in range(0, len(content), piece):
        part = content[begin : begin + piece]
        if isinstance(part, str):
            yield document_pb2.CreateDocumentRequest(text=part)
        else:
            yield document_pb2.CreateDocumentRequest(token_ids=generation_pb2.TokenIds(ids=part))


# --- Responses ---

_FINISH_REASONS = {
    generation_pb2.FinishReason.Value(f"FINISH_REASON_{reason.name}"): reason
    for reason in types.FinishReason
    if reason is not types.FinishReason.UNKNOWN
}
_MODES = {
    generation_pb2.GENERATION_MODE_EXACT: "exact",
    generation_pb2.GENERATION_MODE_HIERGEN: "hiergen",
    generation_pb2.GENERATION_MODE_RECGEN: "recgen",
}
_SPANS = {model_pb2.ENCODER_SPAN_GLOBAL: "global", model_pb2.ENCODER_SPAN_BLOCK: "block"}


def _result(message: generation_pb2.GenerationResult) -> types.Result:
    usage, timings = message.usage, message.timings
    return types.Result(
        finish_reason=_FINISH_REASONS.get(message.finish_reason, types.FinishReason.UNKNOWN),
        stop_string=message.stop_string if message.HasField("stop_string") else None,
        stop_token_id=message.stop_token_id if message.HasField("stop_token_id") else None,
        usage=types.Usage(
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.generated_tokens,
            usage.preemptions,
            usage.reencoded_tokens,
        ),
        timings=types.Timings(
            timings.queue_ms, timings.prefill_ms, timings.decode_ms, timings.steps
        ),
        seed=message.seed,
        mode=_MODES.get(message.mode, "unknown"),
    )


def _logprobs(message: generation_pb2.TokenLogprobs) -> types.TokenLogprobs:
    return types.TokenLogprobs(
        message.logprob,
        tuple(types.TokenLogprob(top.token_id, top.logprob) for top in message.top),
    )


def _consensus(message: integration_pb2.IntegrationResult) -> types.Consensus:
    return types.Consensus(
        sample=message.sample_index if message.HasField("sample_index") else None,
        text=message.text,
        answer=message.answer,
        mean_logprob=message.mean_logprob if message.HasField("mean_logprob") else None,
        answers=tuple(
            types.AnswerCount(count.answer, count.votes, count.sample_index)
            for count in message.answers
        ),
        samples_finished=message.samples_finished,
        samples_cancelled=message.samples_cancelled,
        samples_without_answer=message.samples_without_answer,
        generated_tokens=message.generated_tokens,
        saved_tokens=message.saved_tokens,
    )


def _output(message: generation_pb2.GenerateResponse, query: int) -> types.Chunk:
    return types.Chunk(
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(map(_logprobs, message.logprobs)),
        query=query,
        sample=message.sample_index,
        result=_result(message.result) if message.HasField("result") else None,
        consensus=_consensus(message.integration) if message.HasField("integration") else None,
    )


def chunk_of_generate(message: generation_pb2.GenerateResponse) -> types.Chunk:
    return _output(message, 0)


def chunk_of_batch(message: generation_pb2.GenerateBatchResponse) -> types.Chunk:
    return _output_or_error(message, message.prompt_index)


def chunk_of_ask(message: document_pb2.AskResponse) -> types.Chunk:
    return _output_or_error(message, message.question_index)


def _output_or_error(
    message: generation_pb2.GenerateBatchResponse | document_pb2.AskResponse, query: int
) -> types.Chunk:
    if message.HasField("error"):
        error = from_code(message.error.code, message.error.message)
        return types.Chunk("", (), query=query, error=error)
    return _output(message.output, query)


class Outcomes:
    """Puts the chunks of a call together."""

    def __init__(self, num_queries: int) -> None:
        self._samples: list[dict[int, list[types.Chunk]]] = [{} for _ in range(num_queries)]
        self._errors: dict[int, types.Chunk] = {}
        self._consensus: dict[int, types.Consensus] = {}

    def add(self, chunk: types.Chunk) -> None:
        if chunk.error is not None:
            self._errors[chunk.query] = chunk
        elif chunk.consensus is not None:
            self._consensus[chunk.query] = chunk.consensus
        else:
            self._samples[chunk.query].setdefault(chunk.sample, []).append(chunk)

    def finish(self) -> list[types.Outcome]:
        return [
            types.Outcome(
                samples=tuple(self._generation(chunks) for _, chunks in sorted(samples.items())),
                consensus=self._consensus.get(query),
                error=self._errors[query].error if query in self._errors else None,
            )
            for query, samples in enumerate(self._samples)
        ]

    @staticmethod
    def _generation(chunks: list[types.Chunk]) -> types.Generation:
        result = chunks[-1].result
        if result is None:
            raise from_code(13, "the stream ended before the result of a sample")
        return types.Generation(
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
            logprobs=tuple(logprobs for chunk in chunks for logprobs in chunk.logprobs),
            result=result,
        )


def document(message: document_pb2.Document, affinity: str) -> types.Document:
    def time(unix_ms: int) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(unix_ms / 1000, datetime.timezone.utc)

    return types.Document(
        id=message.id,
        affinity=affinity,
        name=message.display_name,
        num_tokens=message.num_tokens,
        cache_bytes=message.cache_bytes,
        created=time(message.created_unix_ms),
        expires=time(message.expires_unix_ms),
        owner=message.owner,
    )


def _stack(message: model_pb2.StackInfo) -> types.Stack:
    return types.Stack(
        message.hidden_size,
        message.num_layers,
        message.num_heads,
        message.num_kv_heads,
        message.head_dim,
        message.intermediate_size,
    )


def model_info(message: model_pb2.GetModelInfoResponse) -> types.ModelInfo:
    return types.ModelInfo(
        name=message.name,
        server_version=message.server_version,
        device=message.device,
        num_parameters=message.num_parameters,
        vocab_size=message.vocab_size,
        max_context_tokens=message.max_context_tokens,
        meta_context_tokens=message.meta_context_tokens,
        levels=tuple(
            types.Level(
                level.chunk_size,
                level.converter_width,
                _SPANS.get(level.encoder_span, "unknown"),
                _stack(level.encoder),
                _stack(level.decoder),
            )
            for level in message.levels
        ),
        modes=tuple(_MODES.get(mode, "unknown") for mode in message.modes),
        default_mode=_MODES.get(message.default_mode, "unknown"),
        default_max_tokens=message.default_max_tokens,
        bos_token_id=message.bos_token_id if message.HasField("bos_token_id") else None,
        eos_token_ids=tuple(message.eos_token_ids),
        tokenizer_sha256=message.tokenizer_sha256,
        page_tokens=message.cache.page_tokens,
        page_bytes=message.cache.page_bytes,
        num_pages=message.cache.num_pages,
    )


def cost(message: model_pb2.EstimateCostResponse) -> types.Cost:
    return types.Cost(
        prompt_tokens=message.prompt_tokens,
        max_tokens=message.max_tokens,
        pages=message.pages,
        cache_bytes=message.cache_bytes,
        transformer_cache_bytes=message.transformer_cache_bytes,
        fits=message.fits,
        fits_now=message.fits_now,
        expected_wait_ms=message.expected_wait_ms,
    )


def health(message: formats.HealthCheckResponse) -> types.HealthStatus:
    statuses = {1: types.HealthStatus.SERVING, 2: types.HealthStatus.NOT_SERVING}
    return statuses.get(message.status, types.HealthStatus.UNKNOWN)


def consensus_of(outcome: types.Outcome) -> types.Consensus:
    if outcome.consensus is None:
        raise from_code(13, "the stream ended before its result")
    return outcome.consensus
