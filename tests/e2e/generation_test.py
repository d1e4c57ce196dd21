"""GenerationService as a stock grpcio client sees it."""

import concurrent.futures
import unittest

import grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

import programs
from programs import PATIENCE_S, STORY


def request(prompt=STORY, **parameters):
    sampling = parameters.pop("sampling", {"temperature": 0})
    parameters.setdefault("max_tokens", 40)
    content = {"text": prompt} if isinstance(prompt, str) else {"token_ids": {"ids": prompt}}
    return pb.GenerateRequest(prompt=content, parameters={"sampling": sampling, **parameters})


class Reply:
    """A stream read to its end."""

    def __init__(self, stream):
        self.messages = list(stream)
        self.text = "".join(message.text for message in self.messages)
        self.token_ids = [i for message in self.messages for i in message.token_ids]
        self.logprobs = [p for message in self.messages for p in message.logprobs]
        self.result = self.messages[-1].result


class GenerationTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess()
        cls.addClassCleanup(cls.server.stop)
        cls.channel = grpc.insecure_channel(cls.server.address)
        cls.addClassCleanup(cls.channel.close)
        cls.stub = generation_pb2_grpc.GenerationServiceStub(cls.channel)
        cls.models = model_pb2_grpc.ModelServiceStub(cls.channel)
        cls.info = cls.models.GetModelInfo(model_pb2.GetModelInfoRequest(), timeout=PATIENCE_S)

    def generate(self, *args, **parameters):
        return Reply(self.stub.Generate(request(*args, **parameters), timeout=PATIENCE_S))

    def assert_refused(self, mention, generate_request):
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.stub.Generate(generate_request, timeout=PATIENCE_S))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn(mention, caught.exception.details())

    def test_text_streams_in_pieces_and_ends_with_a_result(self):
        reply = self.generate(max_tokens=40, stop={"ignore_eos": True})
        self.assertGreater(len(reply.messages), 1)
        self.assertTrue(reply.text.strip())
        self.assertEqual(len(reply.token_ids), 40)
        self.assertEqual(reply.result.finish_reason, pb.FINISH_REASON_LENGTH)
        self.assertEqual(reply.result.usage.generated_tokens, 40)
        self.assertGreater(reply.result.usage.prompt_tokens, 5)
        self.assertGreater(reply.result.timings.steps, 0)
        self.assertGreater(reply.result.timings.decode_ms, 0)
        self.assertFalse(any(message.HasField("result") for message in reply.messages[:-1]))

    def test_the_pieces_of_text_are_the_detokenised_token_ids(self):
        reply = self.generate(max_tokens=60, stop={"ignore_eos": True})
        prompt = self.models.Tokenize(model_pb2.TokenizeRequest(text=STORY, add_bos=True)).token_ids
        whole = self.models.Detokenize(
            model_pb2.DetokenizeRequest(token_ids=[*prompt, *reply.token_ids])
        )
        self.assertEqual(whole.text, STORY + reply.text)

    def test_every_mode_generates_and_says_so(self):
        self.assertEqual(
            list(self.info.modes),
            [pb.GENERATION_MODE_EXACT, pb.GENERATION_MODE_HIERGEN, pb.GENERATION_MODE_RECGEN],
        )
        for mode in self.info.modes:
            with self.subTest(mode=pb.GenerationMode.Name(mode)):
                reply = self.generate(mode=mode, max_tokens=50, stop={"ignore_eos": True})
                self.assertEqual(reply.result.mode, mode)
                self.assertEqual(len(reply.token_ids), 50)

    def test_a_seed_draws_the_same_tokens_alone_and_in_a_crowd(self):
        def sample(seed):
            return self.generate(sampling={"temperature": 1, "seed": seed}).token_ids

        alone = [sample(seed) for seed in range(4)]
        self.assertNotEqual(alone[0], alone[1])
        with concurrent.futures.ThreadPoolExecutor(4) as crowd:
            self.assertEqual(list(crowd.map(sample, range(4))), alone)

    def test_a_drawn_seed_is_reported_and_repeats(self):
        first = self.generate(sampling={"temperature": 1})
        again = self.generate(sampling={"temperature": 1, "seed": first.result.seed})
        self.assertEqual(again.token_ids, first.token_ids)

    def test_token_ids_are_a_prompt_like_the_text_they_came_from(self):
        ids = self.models.Tokenize(model_pb2.TokenizeRequest(text=STORY, add_bos=True)).token_ids
        self.assertEqual(self.generate(list(ids)).token_ids, self.generate(STORY).token_ids)

    def test_prompts_of_any_length_modulo_the_meta_context_generate(self):
        ids = self.models.Tokenize(model_pb2.TokenizeRequest(text=STORY * 20, add_bos=True)).token_ids
        for length in range(1, self.info.meta_context_tokens + 2):
            with self.subTest(length=length):
                reply = self.generate(list(ids[:length]), max_tokens=3, stop={"ignore_eos": True})
                self.assertEqual(reply.result.usage.prompt_tokens, length)
                self.assertEqual(len(reply.token_ids), 3)

    def test_an_empty_prompt_starts_from_bos(self):
        for prompt in ("", []):
            reply = self.generate(prompt, max_tokens=5, stop={"ignore_eos": True})
            self.assertEqual(reply.result.usage.prompt_tokens, 1)
            self.assertEqual(len(reply.token_ids), 5)

    def test_a_stop_string_ends_the_text_before_it(self):
        whole = self.generate(max_tokens=60, stop={"ignore_eos": True}).text
        stop = whole[len(whole) // 3 : len(whole) // 3 + 5]
        reply = self.generate(max_tokens=60, stop={"ignore_eos": True, "strings": ["\0", stop]})
        self.assertEqual(reply.text, whole[: whole.index(stop)])
        self.assertEqual(reply.result.finish_reason, pb.FINISH_REASON_STOP_STRING)
        self.assertEqual(reply.result.stop_string, stop)

    def test_a_stop_token_ends_the_output(self):
        ids = self.generate(stop={"ignore_eos": True}).token_ids
        stop = ids[len(ids) // 2]
        reply = self.generate(stop={"ignore_eos": True, "token_ids": [stop]})
        self.assertEqual(reply.token_ids, ids[: ids.index(stop) + 1])
        self.assertEqual(reply.result.finish_reason, pb.FINISH_REASON_STOP_TOKEN)
        self.assertEqual(reply.result.stop_token_id, stop)

    def test_logprobs_come_with_each_token_the_most_probable_first(self):
        reply = self.generate(max_tokens=20, top_logprobs=3, stop={"ignore_eos": True})
        self.assertEqual(len(reply.logprobs), len(reply.token_ids))
        for token, logprobs in zip(reply.token_ids, reply.logprobs):
            self.assertLessEqual(logprobs.logprob, 0)
            self.assertEqual(logprobs.top[0].token_id, token)  # greedy
            self.assertEqual(
                [top.logprob for top in logprobs.top],
                sorted((top.logprob for top in logprobs.top), reverse=True),
            )

    def test_a_deadline_ends_the_stream(self):
        long = request(max_tokens=self.info.max_context_tokens - 50, stop={"ignore_eos": True})
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.stub.Generate(long, timeout=0.02))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)

    def test_bad_parameters_are_refused_by_name(self):
        for mention, parameters in {
            "temperature": {"sampling": {"temperature": -1}},
            "top_k": {"sampling": {"top_k": -1}},
            "top_p": {"sampling": {"top_p": 0}},
            "min_p": {"sampling": {"min_p": 1.5}},
            "max_tokens": {"max_tokens": 0},
            "top_logprobs": {"top_logprobs": 21},
            "mode": {"mode": 99},
            "strings": {"stop": {"strings": [""]}},
            "token_ids": {"stop": {"token_ids": [-1]}},
        }.items():
            with self.subTest(field=mention):
                self.assert_refused(mention, request(**parameters))

    def test_bad_prompts_are_refused(self):
        self.assert_refused("token_ids", request([self.info.vocab_size]))
        self.assert_refused("prompt", request([5] * (self.info.max_context_tokens + 1)))
        self.assert_refused("max_tokens", request(max_tokens=self.info.max_context_tokens))

    def test_a_prompt_that_is_not_utf8_is_refused(self):
        generate = self.channel.unary_stream("/photon.v1.GenerationService/Generate")
        not_utf8 = b"\x0a\x03\x0a\x01\xff"  # prompt { text: "\xff" }
        with self.assertRaises(grpc.RpcError) as caught:
            list(generate(not_utf8, timeout=PATIENCE_S))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("UTF-8", caught.exception.details())

    def test_the_request_id_comes_back(self):
        stream = self.stub.Generate(
            request(max_tokens=1), metadata=[("x-request-id", "story-1")], timeout=PATIENCE_S
        )
        self.assertEqual(dict(stream.initial_metadata())["x-request-id"], "story-1")
        list(stream)


if __name__ == "__main__":
    unittest.main()
