"""The stock openai package, unchanged, against the HTTP port."""

import asyncio
import math
import tempfile
import threading
import unittest

import grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc

import programs
from programs import PATIENCE_S, SLOW, STORY
from security_support import create_key, eventually

try:
    import openai
except ImportError:
    raise unittest.SkipTest("no openai package: run scripts/install_test_clients")


def client_of(server, **settings):
    settings = {"api_key": "unused", "max_retries": 0, "timeout": PATIENCE_S, **settings}
    return openai.OpenAI(base_url=server.http_url + "v1", **settings)


def stats_of(client):
    return client.get("/stats", cast_to=object)


class OpenAiTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess()
        cls.addClassCleanup(cls.server.stop)
        cls.client = client_of(cls.server)
        cls.addClassCleanup(cls.client.close)
        cls.model = cls.client.models.list().data[0].id

    def complete(self, **settings):
        settings = {"model": self.model, "prompt": STORY, "max_tokens": 24, **settings}
        return self.client.completions.create(**settings)

    def test_models_are_listed_and_retrieved(self):
        self.assertEqual(self.client.models.retrieve(self.model).id, self.model)
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("gpt-4")

    def test_a_completion_is_what_grpc_gives(self):
        completion = self.complete(temperature=0.8, top_p=0.9, seed=7)
        with programs.channel_to(self.server) as channel:
            request = pb.GenerateRequest(
                prompt={"text": STORY},
                parameters={
                    "max_tokens": 24,
                    "sampling": {"temperature": 0.8, "top_p": 0.9, "seed": 7},
                },
            )
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            messages = list(stub.Generate(request, timeout=PATIENCE_S))
        self.assertEqual(completion.choices[0].text, "".join(m.text for m in messages))
        self.assertEqual(completion.choices[0].finish_reason, "length")
        usage = messages[-1].result.usage
        self.assertEqual(completion.usage.prompt_tokens, usage.prompt_tokens)
        self.assertEqual(completion.usage.completion_tokens, 24)
        self.assertEqual(completion.usage.total_tokens, usage.prompt_tokens + 24)

    def test_a_stream_says_what_the_whole_says(self):
        whole = self.complete(seed=5)
        stream = self.complete(seed=5, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        self.assertGreater(len(chunks), 2)
        text = "".join(c.text for chunk in chunks for c in chunk.choices)
        self.assertEqual(text, whole.choices[0].text)
        self.assertEqual(chunks[-1].usage.completion_tokens, 24)
        self.assertEqual(chunks[-1].choices, [])
        self.assertIsNone(chunks[0].usage)
        self.assertEqual(
            [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason],
            ["length"],
        )

    def test_n_samples_differ_and_come_again_with_their_seed(self):
        one = self.complete(n=3, seed=11)
        self.assertEqual([choice.index for choice in one.choices], [0, 1, 2])
        self.assertEqual(len({choice.text for choice in one.choices}), 3)
        two = self.complete(n=3, seed=11)
        self.assertEqual([c.text for c in one.choices], [c.text for c in two.choices])
        self.assertEqual(one.usage.completion_tokens, 3 * 24)

    def test_best_of_gives_the_most_probable_samples(self):
        def mean(choice):
            return math.fsum(choice.logprobs.token_logprobs) / len(choice.logprobs.tokens)

        everything = self.complete(n=5, seed=3, logprobs=0, extra_body={"ignore_eos": True})
        best = self.complete(n=2, best_of=5, seed=3, extra_body={"ignore_eos": True})
        ranked = sorted(everything.choices, key=mean, reverse=True)
        self.assertEqual([c.text for c in best.choices], [c.text for c in ranked[:2]])
        self.assertEqual(best.usage.completion_tokens, 5 * 24)

    def test_logprobs_have_openais_structure(self):
        choice = self.complete(logprobs=3, temperature=0).choices[0]
        logprobs = choice.logprobs
        self.assertEqual(len(logprobs.tokens), 24)
        self.assertEqual("".join(logprobs.tokens), choice.text)
        for i, token in enumerate(logprobs.tokens):
            top = logprobs.top_logprobs[i]
            self.assertLessEqual(3, len(top))
            # Greedy: the token drawn is the most probable one.
            self.assertEqual(logprobs.token_logprobs[i], max(top.values()))
            self.assertEqual(top[token], logprobs.token_logprobs[i])
            self.assertTrue(choice.text[logprobs.text_offset[i] :].startswith(token))
        self.assertEqual(len(self.complete(logprobs=0).choices[0].logprobs.top_logprobs[0]), 1)

    def test_echo_puts_the_prompt_first(self):
        plain = self.complete(seed=2)
        echoed = self.complete(seed=2, echo=True)
        self.assertEqual(echoed.choices[0].text, STORY + plain.choices[0].text)

    def test_stop_strings_end_the_text_before_them(self):
        text = self.complete(temperature=0, max_tokens=40).choices[0].text
        stop = text[10:14]
        for given in (stop, ["never to be seen", stop]):
            choice = self.complete(temperature=0, max_tokens=40, stop=given).choices[0]
            self.assertEqual(choice.finish_reason, "stop")
            self.assertEqual(choice.text, text[: text.index(stop)])
            stream = self.complete(temperature=0, max_tokens=40, stop=given, stream=True)
            self.assertEqual("".join(c.choices[0].text for c in stream), choice.text)

    def test_prompts_come_as_text_or_tokens_alone_or_in_lists(self):
        texts = ["Once upon a time", "The dog", "A boy"]
        together = self.complete(prompt=texts, temperature=0, n=2)
        self.assertEqual(len(together.choices), 6)
        for i, text in enumerate(texts):
            alone = self.complete(prompt=text, temperature=0).choices[0].text
            self.assertEqual(together.choices[2 * i].text, alone)
            self.assertEqual(together.choices[2 * i + 1].text, alone)
        tokens = self.complete(prompt=[1, 300, 301, 302], temperature=0)
        self.assertEqual(tokens.usage.prompt_tokens, 4)
        lists = self.complete(prompt=[[1, 300, 301, 302], [1, 400]], temperature=0)
        self.assertEqual(lists.choices[0].text, tokens.choices[0].text)
        self.assertEqual(lists.usage.prompt_tokens, 6)

    def test_own_parameters_pass_through_extra_body(self):
        for mode in ("exact", "hiergen", "recgen"):
            completion = self.complete(extra_body={"mode": mode, "top_k": 5, "min_p": 0.05})
            self.assertTrue(completion.choices[0].text)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(extra_body={"mode": "fastest"})
        self.assertEqual(caught.exception.param, "mode")

    def test_what_is_not_supported_is_refused_by_name(self):
        for name, value in (
            ("presence_penalty", 1.0),
            ("frequency_penalty", 0.5),
            ("logit_bias", {"50": 1}),
            ("suffix", " the end."),
        ):
            with self.subTest(name=name), self.assertRaises(openai.BadRequestError) as caught:
                self.complete(**{name: value})
            self.assertEqual(caught.exception.param, name)
        for neutral in ({"presence_penalty": 0}, {"logit_bias": {}}, {"suffix": ""}, {"user": "me"}):
            self.complete(max_tokens=1, **neutral)

    def test_limits_are_named(self):
        for settings, param in (
            ({"max_tokens": 10**6}, "max_tokens"),
            ({"top_p": 1.5}, "top_p"),
            ({"prompt": [[1], [10**6]]}, "prompt[1][0]"),
        ):
            with self.subTest(param=param), self.assertRaises(openai.BadRequestError) as caught:
                self.complete(**settings)
            self.assertEqual(caught.exception.param, param)

    def test_another_model_is_not_found(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.complete(model="gpt-4")
        self.assertEqual(caught.exception.param, "model")

    def test_chat_is_refused_clearly(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": "Hello"}]
            )
        self.assertIn("/v1/completions", str(caught.exception))

    def test_request_ids_are_echoed(self):
        response = self.client.completions.with_raw_response.create(
            model=self.model, prompt="a", max_tokens=1, extra_headers={"x-request-id": "my-id"}
        )
        self.assertEqual(response.headers["x-request-id"], "my-id")
        self.assertEqual(response.parse()._request_id, "my-id")

    def test_cached_prompt_tokens_are_reported(self):
        prompt = "One day a fox met a bear. " * 40
        self.complete(prompt=prompt, max_tokens=1)
        usage = self.complete(prompt=prompt, max_tokens=1).usage
        self.assertGreater(usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens // 2)

    def test_forty_streams_flow_side_by_side(self):
        async def read(client, i):
            stream = await client.completions.create(
                model=self.model, prompt=f"Story {i}:", max_tokens=16, seed=i, stream=True,
                extra_body={"ignore_eos": True},
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        async def read_all():
            async with openai.AsyncOpenAI(
                base_url=self.server.http_url + "v1", api_key="unused", timeout=PATIENCE_S
            ) as client:
                return await asyncio.gather(*(read(client, i) for i in range(40)))

        texts = asyncio.run(read_all())
        alone = self.complete(
            prompt="Story 17:", max_tokens=16, seed=17, extra_body={"ignore_eos": True}
        )
        self.assertEqual(texts[17], alone.choices[0].text)


class OpenAiLifecycleTest(unittest.TestCase):
    def test_a_stream_that_is_closed_is_cancelled(self):
        with programs.server(*SLOW) as server, client_of(server) as client:
            model = client.models.list().data[0].id
            stream = client.completions.create(
                model=model, prompt=STORY, max_tokens=1500, stream=True,
                extra_body={"ignore_eos": True},
            )
            next(iter(stream))
            stream.close()
            eventually(lambda: stats_of(client)["sequences"]["running"] == 0)
            self.assertLess(stats_of(client)["totals"]["generated_tokens"], 1500)

    def test_a_full_server_says_when_to_come_again(self):
        with programs.server("--max-rows", "1", "--max-queue", "1", *SLOW) as server:
            with client_of(server) as client:
                settings = {"model": client.models.list().data[0].id, "prompt": STORY}
                running = client.completions.create(max_tokens=1500, stream=True, **settings)
                next(iter(running))
                queued = threading.Thread(
                    target=lambda: client.completions.create(max_tokens=1, **settings)
                )
                queued.start()
                eventually(lambda: stats_of(client)["sequences"]["waiting"] == 1)
                with self.assertRaises(openai.RateLimitError) as caught:
                    client.completions.create(max_tokens=1, **settings)
                self.assertEqual(caught.exception.response.headers["retry-after"], "1")
                running.close()
                queued.join()

    def test_a_deadline_that_passes_is_a_gateway_timeout(self):
        with programs.server(*SLOW) as server, client_of(server) as client:
            with self.assertRaises(openai.APIStatusError) as caught:
                client.completions.create(
                    model=client.models.list().data[0].id, prompt=STORY, max_tokens=1500,
                    extra_body={"timeout_ms": 300, "ignore_eos": True},
                )
            self.assertEqual(caught.exception.status_code, 504)

    def test_streams_end_while_the_server_drains(self):
        with programs.server("--drain-timeout", str(PATIENCE_S), *SLOW) as server:
            with client_of(server) as client, client_of(server) as other:
                model = client.models.list().data[0].id
                stream = client.completions.create(
                    model=model, prompt=STORY, max_tokens=300, stream=True,
                    extra_body={"ignore_eos": True}, stream_options={"include_usage": True},
                )
                chunks = iter(stream)
                next(chunks)
                server.signal()

                def is_refused():
                    try:
                        other.completions.create(model=model, prompt="a", max_tokens=1)
                    except openai.InternalServerError as error:
                        return error.status_code == 503
                    except openai.APIConnectionError:
                        pass  # its idle connection was just being closed
                    return False

                eventually(is_refused)
                *_, last = chunks
                self.assertEqual(last.usage.completion_tokens, 300)
            self.assertEqual(server.wait(), 0)

    def test_keys_are_needed_where_there_are_some(self):
        key, line = create_key("alice", "--requests-per-minute", "3")
        with tempfile.NamedTemporaryFile("w") as keys:
            keys.write(line)
            keys.flush()
            self.check_keys(key, keys.name)

    def check_keys(self, key, path):
        with programs.server("--api-keys", path) as server:
            with client_of(server, api_key="wrong") as client:
                with self.assertRaises(openai.AuthenticationError):
                    client.models.list()
            with client_of(server, api_key=key) as client:
                for _ in range(3):
                    client.models.list()
                with self.assertRaises(openai.RateLimitError) as caught:
                    client.models.list()
                self.assertGreater(int(caught.exception.response.headers["retry-after"]), 0)


if __name__ == "__main__":
    unittest.main()
