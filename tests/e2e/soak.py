"""Many clients of every kind at once, well and badly behaved, for as long as asked.

    PHOTON_SERVER_PROGRAM=... python3 tests/e2e/soak.py --clients 500 --seconds 600 [-- SERVER FLAGS]

Ends with an error if a client saw what it should not see, if the same request got two answers, if
pages, sequences or documents are left behind, if the server's log has an error, or, in runs of two
minutes and more, if the server's memory grew after its first third. `ctest -R e2e.soak` runs it for
a short time, with the environment that it needs.
"""

import argparse
import asyncio
import collections
import json
import random
import re
import sys
import time
import urllib.request

import grpc
from inference import grpc_predict_v2_pb2 as kserve
from inference import grpc_predict_v2_pb2_grpc
from photon.v1 import document_pb2, document_pb2_grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc, integration_pb2

import programs

PROMPTS = (
    "Once upon a time",
    "Once upon a time there was a little girl who lived near a large wood",
    "One day the old man went to the market",
    "The cat",
    "",
)
# Longer than any queue here.
TIMEOUT_S = 900
# A server that is full says so, and that is fine.
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
# In the last two thirds of a long run.
MAX_GROWTH = 1.05
MAX_GROWTH_BYTES = 24 << 20


class Unexpected(Exception):
    pass


def expect(condition, what):
    if not condition:
        raise Unexpected(what)


class Client:
    """One client with a connection of its own, which does one thing after another."""

    def __init__(self, server, number, shared):
        self.random = random.Random(number)
        self.server = server
        self.shared = shared
        self.model = shared["model"]
        self.connect()

    def connect(self):
        options = (("grpc.use_local_subchannel_pool", 1),)
        self.channel = grpc.aio.insecure_channel(self.server.address, options=options)
        self.generation = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self.documents = document_pb2_grpc.DocumentServiceStub(self.channel)
        self.inference = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def parameters(self, **more):
        draw = self.random
        return {
            "max_tokens": draw.choice((1, 5, 16, 30, 60)),
            "mode": draw.choice((0, 1, 2, 3)),
            "sampling": {
                "seed": draw.randrange(4),
                "temperature": draw.choice((0.0, 0.7, 1.0)),
                "top_p": draw.choice((0.9, 1.0)),
            },
            **more,
        }

    def request(self, **more):
        return pb.GenerateRequest(
            prompt={"text": self.random.choice(PROMPTS)}, parameters=self.parameters(**more)
        )

    def remember(self, request, text, result):
        """The same request has the same answer, unless RecGen was computed again."""
        if result.usage.reencoded_tokens == 0:
            key = request.SerializeToString(deterministic=True)
            expect(self.shared["answers"].setdefault(key, text) == text, "two answers to a request")

    # --- What clients do. Each returns what it was, for the count. ---

    async def generate(self, delay=0.0):
        request = self.request()
        text, result = "", None
        async for message in self.generation.Generate(request, timeout=TIMEOUT_S):
            expect(result is None, "a message after the result")
            text += message.text
            if message.HasField("result"):
                result = message.result
            if delay:
                await asyncio.sleep(delay)
        expect(result is not None, "no result")
        expect(result.usage.generated_tokens <= request.parameters.max_tokens, "too many tokens")
        self.remember(request, text, result)
        return "generate"

    async def read_slowly(self):
        await self.generate(delay=0.1)
        return "read_slowly"

    async def vote(self):
        vote = integration_pb2.MajorityVote(
            answer_source=integration_pb2.ANSWER_SOURCE_REGULAR_EXPRESSION,
            regular_expression=r"\b(he|she|they)\b",
        )
        request = self.request(n=5, integration={"majority_vote": vote})
        answers = 0
        async for message in self.generation.Generate(request, timeout=TIMEOUT_S):
            answers += message.HasField("integration")
        expect(answers == 1, "not one answer of the vote")
        return "vote"

    async def batch(self):
        prompts = [{"text": prompt} for prompt in self.random.sample(PROMPTS, 3)]
        prompts.insert(1, {"token_ids": {"ids": [10**6]}})
        request = pb.GenerateBatchRequest(prompts=prompts, parameters=self.parameters(n=2))
        results, errors = 0, []
        async for message in self.generation.GenerateBatch(request, timeout=TIMEOUT_S):
            results += message.output.HasField("result")
            if message.HasField("error"):
                errors.append(message.prompt_index)
        expect((results, errors) == (6, [1]), f"batch: {results} results, errors {errors}")
        return "batch"

    async def ask_document(self):
        tenant = (("authorization", f"Bearer tenant-{id(self)}"),)
        settings = {"metadata": tenant, "timeout": TIMEOUT_S}
        parts = [
            document_pb2.CreateDocumentRequest(settings={"display_name": "soak", "ttl_s": 3600}),
            document_pb2.CreateDocumentRequest(
                text=" ".join(self.random.choice(PROMPTS) for _ in range(20)) + "."
            ),
        ]
        created = await self.documents.CreateDocument(iter(parts), **settings)
        document = created.document.id
        try:
            request = document_pb2.AskRequest(
                document_id=document,
                questions=[{"text": " Who?"}, {"text": " Where?"}],
                parameters=self.parameters(n=2),
            )
            results = 0
            async for message in self.documents.Ask(request, **settings):
                results += message.output.HasField("result")
            expect(results == 4, f"ask: {results} results")
        finally:
            await self.documents.DeleteDocument(
                document_pb2.DeleteDocumentRequest(document_id=document), **settings
            )
        return "ask_document"

    def inference_request(self, name=""):
        request = kserve.ModelInferRequest(model_name=self.model, id=name)
        prompt = self.random.choice(PROMPTS).encode()
        request.inputs.add(
            name="text_input", datatype="BYTES", shape=[1], contents={"bytes_contents": [prompt]}
        )
        request.parameters["max_tokens"].int64_param = self.random.choice((1, 10, 40))
        request.parameters["seed"].int64_param = self.random.randrange(4)
        return request

    async def infer(self):
        response = await self.inference.ModelInfer(self.inference_request("a"), timeout=TIMEOUT_S)
        expect(response.id == "a" and response.outputs[0].name == "text_output", "infer")
        return "infer"

    async def infer_streams(self):
        open_ids = {"0", "1", "2", "bad"}
        requests = [self.inference_request(name) for name in sorted(open_ids)]
        requests[-1].parameters["top_p"].double_param = 7
        call = self.inference.ModelStreamInfer(iter(requests), timeout=TIMEOUT_S)
        async for message in call:
            response = message.infer_response
            full = response.parameters["status_code"].string_param == "RESOURCE_EXHAUSTED"
            expect(
                full or bool(message.error_message) == (response.id == "bad"),
                f"stream: {message.error_message}",
            )
            if response.parameters["triton_final_response"].bool_param:
                open_ids.remove(response.id)
        expect(not open_ids, f"no last response of {open_ids}")
        return "infer_streams"

    async def cancel(self):
        call = self.generation.Generate(self.request(n=2), timeout=TIMEOUT_S)
        if self.random.random() < 0.7:
            await call.read()
        call.cancel()
        return "cancel"

    async def run_out_of_time(self):
        timeout = self.random.choice((0.02, 0.2, 2))
        try:
            async for _ in self.generation.Generate(self.request(), timeout=timeout):
                pass
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
        return "run_out_of_time"

    async def ask_nonsense(self):
        for request in (
            pb.GenerateRequest(parameters={"sampling": {"top_p": 2}}),
            pb.GenerateRequest(prompt={"token_ids": {"ids": [-1]}}),
            pb.GenerateRequest(parameters={"max_tokens": 10**6}),
        ):
            try:
                await self.generation.Generate(request, timeout=TIMEOUT_S).read()
                raise Unexpected("nonsense was answered")
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.INVALID_ARGUMENT:
                    raise
        return "ask_nonsense"

    async def vanish(self):
        """Closes the connection in the middle of what it carries."""
        calls = [self.generation.Generate(self.request(), timeout=TIMEOUT_S) for _ in range(3)]
        reading = asyncio.ensure_future(calls[0].read())
        await asyncio.wait([reading], timeout=0.2)
        await self.channel.close()
        await asyncio.gather(reading, return_exceptions=True)
        self.connect()
        return "vanish"

    async def http(self, body, reader_of_stream):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.shared["http_port"])
        try:
            content = json.dumps(body).encode()
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(content), content)
            )
            await writer.drain()
            return await reader_of_stream(reader)
        finally:
            writer.transport.abort()

    def completion(self, **more):
        return {
            "model": self.model,
            "prompt": self.random.choice(PROMPTS),
            "max_tokens": self.random.choice((1, 10, 40)),
            **more,
        }

    async def stream_over_http(self):
        answer = await self.http(self.completion(stream=True), lambda reader: reader.read())
        full = answer.startswith(b"HTTP/1.1 429")
        expect(full or (answer.startswith(b"HTTP/1.1 200") and b"data: [DONE]" in answer), answer)
        return "full" if full else "stream_over_http"

    async def leave_over_http(self):
        await self.http(self.completion(stream=True, n=2), lambda reader: reader.read(300))
        return "leave_over_http"

    async def nonsense_over_http(self):
        body = self.completion(top_p="x") if self.random.random() < 0.5 else []
        answer = await self.http(body, lambda reader: reader.read())
        expect(answer.startswith(b"HTTP/1.1 400"), answer)
        return "nonsense_over_http"

    async def run(self, until, outcomes):
        actions = (
            *[self.generate] * 4,
            *[self.stream_over_http] * 2,
            *[self.infer, self.infer_streams, self.batch, self.vote, self.ask_document],
            *[self.read_slowly, self.cancel, self.run_out_of_time, self.vanish],
            *[self.ask_nonsense, self.leave_over_http, self.nonsense_over_http],
        )
        while time.monotonic() < until:
            action = self.random.choice(actions)
            try:
                outcomes[await action()] += 1
            except grpc.aio.AioRpcError as error:
                if error.code() == FULL:
                    outcomes["full"] += 1
                    await asyncio.sleep(1)
                    continue
                outcomes[f"UNEXPECTED {action.__name__}: {error.code()} {error.details()}"] += 1
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    break  # there is no server any more
            except (Unexpected, OSError, asyncio.IncompleteReadError) as error:
                outcomes[f"UNEXPECTED {action.__name__}: {error!r}"] += 1
        await self.channel.close()


def metric(server, name):
    with urllib.request.urlopen(server.http_url + "metrics", timeout=60) as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))


async def watch_memory(server, samples):
    while True:
        samples.append(
            await asyncio.to_thread(metric, server, "process_resident_memory_bytes")
        )
        await asyncio.sleep(1)


async def run_clients(server, arguments, outcomes, memory):
    with programs.channel_to(server) as channel:
        stub = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(channel)
        model = stub.RepositoryIndex(kserve.RepositoryIndexRequest()).models[0].name
    port = int(re.search(r":(\d+)/", server.http_url).group(1))
    shared = {"answers": {}, "model": model, "http_port": port}
    until = time.monotonic() + arguments.seconds
    clients = [Client(server, i, shared) for i in range(arguments.clients)]
    watcher = asyncio.create_task(watch_memory(server, memory))
    await asyncio.gather(*(client.run(until, outcomes) for client in clients))
    watcher.cancel()


def problems_of(server, outcomes, memory, seconds):
    problems = [what for what in outcomes if what.startswith("UNEXPECTED")]
    give_up = time.monotonic() + programs.PATIENCE_S
    while True:  # the last cancellations are on their way
        stats = programs.stats(server)
        left = {
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "pages in use": stats.pages.in_use,
            "documents": stats.num_documents_pinned,
        }
        if not any(left.values()) or time.monotonic() > give_up:
            break
        time.sleep(0.1)
    problems += [f"{count} {what} left" for what, count in left.items() if count]
    if not memory or not all(memory):
        problems.append("the server does not say how much memory it has")
    third = len(memory) // 3
    if seconds >= 120:
        before, after = max(memory[: 2 * third][third // 2 :]), max(memory[2 * third :])
        if after > before * MAX_GROWTH + MAX_GROWTH_BYTES:
            problems.append(f"memory grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("flags", nargs="*", help="flags of the server, after --")
    arguments = parser.parse_args()

    outcomes, memory, problems = collections.Counter(), [], []
    # A cache that is soon full: memory that is only then taken for the first time is no leak.
    server = programs.ServerProcess("--kv-memory", "64MiB", *arguments.flags)
    try:
        asyncio.run(run_clients(server, arguments, outcomes, memory))
        problems += problems_of(server, outcomes, memory, arguments.seconds)
    finally:
        try:
            server.stop()
        except RuntimeError as error:  # has the whole log
            problems.append(str(error).splitlines()[0])
    problems += [line for line in server.log.splitlines() if re.search(" (error|critical) ", line)]
    for what, count in sorted(outcomes.items()):
        print(f"{count:8} {what[:300]}")
    tenth = max(len(memory) // 10, 1)
    print("resident MiB:", " ".join(f"{value / 2**20:.0f}" for value in memory[::tenth]))
    for problem in problems:
        print("PROBLEM:", problem[:2000])
    print("failed" if problems else "passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
