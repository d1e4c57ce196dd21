"""photon_client against the real server."""

import inspect
import signal
import threading
import unittest

import photon_client
from photon_client import (
    AsyncClient,
    BestOf,
    Client,
    FinishReason,
    HealthStatus,
    InvalidArgumentError,
    JsonPointer,
    NotFoundError,
    RegularExpression,
    RetryPolicy,
    Vote,
)

import programs
from programs import PATIENCE_S, SLOW, STORY

TALE = (STORY + " who lived in a small house by the forest. ") * 20
GREEDY = {"temperature": 0, "ignore_eos": True}


class ClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess("--page-tokens", "64")
        cls.addClassCleanup(cls.server.stop)
        cls.client = Client(cls.server.address, timeout_s=PATIENCE_S)
        cls.addClassCleanup(cls.client.close)

    def test_a_stream_is_what_generate_returns(self):
        whole = self.client.generate(STORY, max_tokens=40, **GREEDY)
        chunks = list(self.client.stream(STORY, max_tokens=40, **GREEDY))
        self.assertGreater(len(chunks), 1)
        self.assertEqual("".join(chunk.text for chunk in chunks), whole.text)
        self.assertEqual(sum((chunk.token_ids for chunk in chunks), ()), whole.token_ids)
        self.assertEqual([chunk.result is not None for chunk in chunks][-2:], [False, True])
        self.assertEqual(whole.finish_reason, FinishReason.LENGTH)
        self.assertEqual(whole.usage.generated_tokens, 40)
        self.assertEqual(self.client.detokenize(whole.token_ids), whole.text.lstrip())

    def test_every_parameter_reaches_the_server(self):
        parameters = {
            "max_tokens": 30,
            "temperature": 0.8,
            "top_k": 50,
            "top_p": 0.9,
            "min_p": 0.01,
            "seed": 2**63 + 5,
            "stop": "zzzz",
            "stop_token_ids": [4095],
            "ignore_eos": True,
            "top_logprobs": 2,
            "mode": "hiergen",
            "priority": "low",
        }
        self.assertEqual(
            set(parameters) | {"logprobs"}, set(photon_client.Parameters.__annotations__)
        )
        first = self.client.generate(STORY, **parameters)
        self.assertEqual(self.client.generate(STORY, **parameters).text, first.text)
        self.assertEqual(first.result.seed, 2**63 + 5)
        self.assertEqual(first.result.mode, "hiergen")
        self.assertEqual({len(logprobs.top) for logprobs in first.logprobs}, {2})
        wrong = {
            "max_tokens": 0,
            "temperature": -1,
            "top_k": -1,
            "top_p": 2,
            "min_p": 2,
            "stop": "",
            "stop_token_ids": [-1],
            "top_logprobs": 21,
        }
        for name, value in wrong.items():
            with self.subTest(name=name), self.assertRaises(InvalidArgumentError) as caught:
                self.client.generate(STORY, **{name: value})
            (violation,) = caught.exception.field_violations
            self.assertIn({"stop": "strings", "stop_token_ids": "token_ids"}.get(name, name), violation.field)
        with self.assertRaises(ValueError):
            self.client.generate(STORY, mode="fast")
        with self.assertRaises(TypeError):
            self.client.generate(STORY, warmth=1)

    def test_a_stop_string_is_named(self):
        text = self.client.generate(STORY, max_tokens=40, **GREEDY).text
        stopped = self.client.generate(STORY, max_tokens=40, stop=text[5:9], **GREEDY)
        self.assertEqual(stopped.finish_reason, FinishReason.STOP_STRING)
        self.assertEqual(stopped.result.stop_string, text[5:9])
        self.assertNotIn(text[5:9], stopped.text)

    def test_samples_share_a_prompt_and_make_one_answer(self):
        outcome = self.client.samples(STORY, 4, max_tokens=20, seed=3, integrate=BestOf())
        self.assertEqual(len(outcome.samples), 4)
        self.assertGreater(len({sample.text for sample in outcome.samples}), 1)
        best = self.client.best_of(STORY, 4, max_tokens=20, seed=3)
        self.assertEqual(best.text, outcome.samples[best.sample].text)
        self.assertEqual(best, outcome.consensus)
        vote = self.client.vote(
            "1 2 3", 5, max_tokens=4, temperature=0, answer=RegularExpression("(?s)(.)")
        )
        self.assertEqual(sum(answer.votes for answer in vote.answers), vote.samples_finished)
        self.assertGreaterEqual(vote.answers[0].votes, 3)
        nothing = self.client.vote("1", 2, max_tokens=4, seed=1, answer=JsonPointer("/nothing"))
        self.assertIsNone(nothing.sample)

    def test_a_bad_prompt_fails_alone(self):
        good, bad, ids = self.client.batch([STORY, [10**6], [1, 300]], n=2, max_tokens=5, **GREEDY)
        self.assertEqual(good.text, self.client.generate(STORY, max_tokens=5, **GREEDY).text)
        self.assertEqual(len(ids.samples), 2)
        self.assertIsInstance(bad.error, InvalidArgumentError)
        with self.assertRaises(InvalidArgumentError):
            bad.text
        queries = {chunk.query for chunk in self.client.stream_batch([STORY, STORY], max_tokens=2)}
        self.assertEqual(queries, {0, 1})

    def test_a_document_is_read_once_and_asked_often(self):
        document = self.client.create_document(TALE, name="tale", ttl_s=600)
        self.assertEqual(document.name, "tale")
        self.assertAlmostEqual((document.expires - document.created).total_seconds(), 600, delta=1)
        answers = self.client.ask(document, [" Then", " She"], n=2, max_tokens=8, **GREEDY)
        for answer in answers:
            self.assertGreater(
                answer.samples[1].usage.cached_tokens,
                document.num_tokens - 2 * self.client.model_info().meta_context_tokens,
            )
        streamed = ["", ""]
        for chunk in self.client.stream_ask(
            document.reference, [" Then", " She"], max_tokens=8, **GREEDY
        ):
            streamed[chunk.query] += chunk.text
        self.assertEqual(streamed, [answer.text for answer in answers])
        (voted,) = self.client.ask(
            document.id, [" So"], n=3, max_tokens=4, integrate=Vote("whole_text"), **GREEDY
        )
        self.assertEqual(voted.consensus.text, voted.text)
        self.assertIn(document.id, [listed.id for listed in self.client.list_documents()])
        self.assertGreater(self.client.extend_document(document, 900).expires, document.expires)
        self.assertEqual(self.client.get_document(document.reference).affinity, document.affinity)
        self.client.delete_document(document)
        with self.assertRaises(NotFoundError):
            self.client.ask(document, [" Then"])
        ids = self.client.create_document(self.client.tokenize(TALE, add_bos=True))
        self.assertEqual(ids.num_tokens, document.num_tokens)

    def test_the_model_is_described(self):
        info = self.client.model_info()
        self.assertEqual(info.name, "demo")
        self.assertEqual(info.page_tokens, 64)
        chunk_sizes = [level.chunk_size for level in info.levels]
        self.assertEqual(info.meta_context_tokens, chunk_sizes[0] * chunk_sizes[1])
        cost = self.client.estimate_cost(STORY, max_tokens=10)
        self.assertEqual(cost, self.client.estimate_cost(prompt_tokens=cost.prompt_tokens, max_tokens=10))
        self.assertTrue(cost.fits)
        self.assertIs(self.client.health("photon.v1.DocumentService"), HealthStatus.SERVING)
        with self.assertRaises(NotFoundError):
            self.client.health("nothing.Like.It")

    def test_errors_say_what_and_whose(self):
        with self.assertRaises(InvalidArgumentError) as caught:
            self.client.generate(STORY, top_p=2, min_p=-1, request_id="story-7")
        error = caught.exception
        self.assertEqual(error.request_id, "story-7")
        self.assertEqual(error.code, "INVALID_ARGUMENT")
        self.assertTrue(error.refused_by_server)
        self.assertEqual(
            [violation.field for violation in error.field_violations],
            ["parameters.sampling.top_p", "parameters.sampling.min_p"],
        )

    def test_both_clients_have_the_same_methods(self):
        for name, method in inspect.getmembers(Client, inspect.isfunction):
            if name.startswith("_"):
                continue
            other = getattr(AsyncClient, name)
            self.assertEqual(
                str(inspect.signature(method)).replace("Stream", "AsyncStream"),
                str(inspect.signature(other)),
                name,
            )
            self.assertTrue(method.__doc__ and other.__doc__, name)

    def test_the_version_is_the_servers(self):
        self.assertEqual(photon_client.__version__, self.client.model_info().server_version)


class FailureTest(unittest.TestCase):
    def test_a_stream_that_is_left_leaves_the_batch(self):
        with programs.server("--max-rows", "1", *SLOW) as server, Client(server.address) as client:
            with client.stream(STORY, max_tokens=900, ignore_eos=True) as stream:
                next(stream)
            # The only row is free again.
            client.generate(STORY, max_tokens=1, timeout_s=PATIENCE_S)

    def test_a_stream_may_be_cancelled_from_another_thread(self):
        with programs.server(*SLOW) as server, Client(server.address) as client:
            stream = client.stream(STORY, max_tokens=1900, ignore_eos=True, timeout_s=PATIENCE_S)
            next(stream)
            threading.Thread(target=stream.cancel).start()
            with self.assertRaises(photon_client.CancelledError):
                list(stream)

    def test_a_deadline_is_a_timeout(self):
        with programs.server(*SLOW) as server, Client(server.address) as client:
            with self.assertRaises(photon_client.DeadlineExceededError):
                client.generate(STORY, max_tokens=1900, ignore_eos=True, timeout_s=0.2)

    def test_a_call_waits_for_a_server_that_starts(self):
        address, _ = programs.own_addresses(0)
        retry = RetryPolicy(max_attempts=10**6, initial_backoff_s=0.05, multiplier=1)
        answers = []
        with Client(address, timeout_s=PATIENCE_S, retry=retry) as client:
            calls = (
                lambda: answers.append(client.generate(STORY, max_tokens=1).usage.generated_tokens),
                lambda: answers.append(len(list(client.stream(STORY, max_tokens=1)))),
            )
            threads = [threading.Thread(target=call) for call in calls]
            for thread in threads:
                thread.start()
            with programs.server(listen=address) as server:
                client.wait_until_serving(PATIENCE_S)
                for thread in threads:
                    thread.join()
                server.stop()
            self.assertEqual(len(answers), 2)
        with Client(address, retry=RetryPolicy(max_attempts=2, initial_backoff_s=0.01)) as client:
            with self.assertRaises(photon_client.UnavailableError) as caught:
                client.generate(STORY)
            self.assertFalse(caught.exception.refused_by_server)
            with self.assertRaises(photon_client.DeadlineExceededError):
                client.wait_until_serving(0.1)

    def test_a_stream_that_breaks_is_not_begun_again(self):
        address, _ = programs.own_addresses(1)
        with programs.server(*SLOW, listen=address) as server:
            with Client(address, timeout_s=PATIENCE_S) as client:
                stream = client.stream(STORY, max_tokens=1900, ignore_eos=True)
                next(stream)
                server.signal(signal.SIGKILL)
                server.wait()
                with programs.server(listen=address):
                    with self.assertRaises(photon_client.UnavailableError):
                        list(stream)

    def test_a_key_goes_in_plaintext_to_this_machine_only(self):
        with self.assertRaises(ValueError):
            Client("photon.example.com:50051", api_key="secret")
        for target in ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/run/photon", "dns:///localhost:1"):
            Client(target, api_key="secret").close()
        Client("photon.example.com:50051", api_key="secret", insecure=True).close()


if __name__ == "__main__":
    unittest.main()
