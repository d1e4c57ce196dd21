"""Samples, votes and batches as a stock grpcio client sees them."""

import collections
import unittest

import grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc, integration_pb2

import programs
from programs import PATIENCE_S, STORY

MAX_TOKENS = 24
WHOLE_TEXT = {"majority_vote": {"answer_source": integration_pb2.ANSWER_SOURCE_WHOLE_TEXT}}


def parameters(**fields):
    return pb.GenerationParameters(
        **{
            "max_tokens": MAX_TOKENS,
            "sampling": {"temperature": 0, "seed": 5},
            "stop": {"ignore_eos": True},
            **fields,
        }
    )


class Samples:
    """The messages of a query, by sample."""

    def __init__(self):
        self.token_ids = collections.defaultdict(list)
        self.text = collections.defaultdict(str)
        self.results = {}
        self.integration = None

    def add(self, message):
        assert self.integration is None
        if message.HasField("integration"):
            self.integration = message.integration
            return
        assert message.sample_index not in self.results
        self.token_ids[message.sample_index].extend(message.token_ids)
        self.text[message.sample_index] += message.text
        if message.HasField("result"):
            self.results[message.sample_index] = message.result


class SamplesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # Fewer rows than samples, so that a vote has something left to stop.
        cls.server = programs.ServerProcess("--max-rows", "4")
        cls.addClassCleanup(cls.server.stop)
        cls.channel = grpc.insecure_channel(cls.server.address)
        cls.addClassCleanup(cls.channel.close)
        cls.stub = generation_pb2_grpc.GenerationServiceStub(cls.channel)

    def generate(self, prompt=STORY, **fields):
        samples = Samples()
        request = pb.GenerateRequest(prompt={"text": prompt}, parameters=parameters(**fields))
        for message in self.stub.Generate(request, timeout=PATIENCE_S):
            samples.add(message)
        return samples

    def batch(self, prompts, **fields):
        request = pb.GenerateBatchRequest(prompts=prompts, parameters=parameters(**fields))
        samples = collections.defaultdict(Samples)
        errors = {}
        for message in self.stub.GenerateBatch(request, timeout=PATIENCE_S):
            if message.HasField("error"):
                errors[message.prompt_index] = message.error
            else:
                samples[message.prompt_index].add(message.output)
        return samples, errors

    def test_samples_are_tagged_and_differ(self):
        samples = self.generate(n=6, sampling={"temperature": 1, "seed": 5})
        self.assertEqual(sorted(samples.results), list(range(6)))
        for sample, ids in samples.token_ids.items():
            self.assertEqual(len(ids), MAX_TOKENS)
            self.assertEqual(samples.results[sample].usage.generated_tokens, MAX_TOKENS)
        self.assertGreater(len({tuple(ids) for ids in samples.token_ids.values()}), 1)

    def test_the_first_sample_is_the_one_that_comes_alone(self):
        sampling = {"temperature": 1, "seed": 11}
        alone = self.generate(sampling=sampling)
        many = self.generate(n=5, sampling=sampling)
        self.assertEqual(alone.token_ids[0], many.token_ids[0])

    def test_a_vote_on_which_all_agree_stops_early(self):
        samples = self.generate(n=24, integration=WHOLE_TEXT)
        vote = samples.integration
        self.assertEqual(vote.text, samples.text[vote.sample_index])
        self.assertEqual(vote.answer, vote.text.strip())
        self.assertEqual(len(vote.answers), 1)
        self.assertGreaterEqual(vote.samples_finished, 13)
        self.assertGreaterEqual(vote.samples_cancelled, 1)
        self.assertEqual(vote.samples_finished + vote.samples_cancelled, 24)
        self.assertEqual(
            vote.saved_tokens,
            24 * MAX_TOKENS - vote.generated_tokens,
        )
        reasons = collections.Counter(r.finish_reason for r in samples.results.values())
        self.assertEqual(reasons[pb.FINISH_REASON_CANCELLED], vote.samples_cancelled)

    def test_the_best_of_n_has_the_highest_mean_logprob(self):
        request = pb.GenerateRequest(
            prompt={"text": STORY},
            parameters=parameters(
                n=5,
                logprobs=True,
                sampling={"temperature": 1.5, "seed": 3},
                integration={"best_of_n": {}},
            ),
        )
        logprobs = collections.defaultdict(list)
        best = None
        for message in self.stub.Generate(request, timeout=PATIENCE_S):
            logprobs[message.sample_index].extend(p.logprob for p in message.logprobs)
            if message.HasField("integration"):
                best = message.integration
        means = {i: sum(values) / len(values) for i, values in logprobs.items() if values}
        self.assertEqual(best.sample_index, max(means, key=means.get))
        self.assertAlmostEqual(best.mean_logprob, max(means.values()), places=4)

    def test_a_bad_prompt_of_a_batch_fails_alone(self):
        prompts = [{"text": STORY}, {"token_ids": {"ids": [10**6]}}, {"text": "The old fox"}]
        samples, errors = self.batch(prompts, n=2)
        self.assertEqual(sorted(samples), [0, 2])
        self.assertEqual(list(errors), [1])
        self.assertEqual(errors[1].code, grpc.StatusCode.INVALID_ARGUMENT.value[0])
        self.assertIn("prompts[1].token_ids.ids[0]", errors[1].message)
        for prompt in (0, 2):
            self.assertEqual(sorted(samples[prompt].results), [0, 1])

    def test_a_prompt_says_the_same_alone_and_in_a_batch(self):
        samples, _ = self.batch([{"text": STORY}, {"text": "The old fox"}, {"text": STORY}])
        self.assertEqual(samples[0].token_ids[0], self.generate().token_ids[0])
        self.assertEqual(samples[1].token_ids[0], self.generate("The old fox").token_ids[0])
        self.assertEqual(samples[2].token_ids[0], samples[0].token_ids[0])  # greedy

    def test_each_prompt_of_a_batch_is_voted_on(self):
        samples, _ = self.batch(
            [{"text": STORY}, {"text": "The old fox"}], n=3, integration=WHOLE_TEXT
        )
        for prompt in (0, 1):
            self.assertEqual(samples[prompt].integration.answers[0].sample_index, 0)

    def test_too_much_at_once_is_refused_by_its_field(self):
        for mention, fields in {
            "parameters.n: expected 1 to 1024": {"n": 2000},
            "integration: expected majority_vote or best_of_n": {"integration": {}},
            "regular_expression": {
                "integration": {
                    "majority_vote": {
                        "answer_source": integration_pb2.ANSWER_SOURCE_REGULAR_EXPRESSION,
                        "regular_expression": "(",
                    }
                }
            },
            "json_pointer": {
                "integration": {
                    "majority_vote": {
                        "answer_source": integration_pb2.ANSWER_SOURCE_JSON_POINTER,
                        "json_pointer": "no slash",
                    }
                }
            },
            "priority": {"priority": 9},
        }.items():
            with self.subTest(field=mention):
                with self.assertRaises(grpc.RpcError) as caught:
                    self.batch([{"text": STORY}], **fields)
                self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
                self.assertIn(mention, caught.exception.details())
        with self.assertRaises(grpc.RpcError) as caught:
            self.batch([{"text": STORY}] * 500, n=3)
        self.assertIn("1500 sequences, expected at most 1024", caught.exception.details())


if __name__ == "__main__":
    unittest.main()
