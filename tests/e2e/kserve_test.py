"""KServe's protocol, with the stock tritonclient package, unchanged."""

import json
import pathlib
import queue
import tempfile
import unittest

import grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc

import programs
from programs import PATIENCE_S, SLOW, STORY
from security_support import create_key, eventually

try:
    import numpy as np
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException
except ImportError:
    raise unittest.SkipTest("no tritonclient package: run scripts/install_test_clients")


def text_input(*prompts, column=False):
    data = np.array([prompt.encode() for prompt in prompts], dtype=np.object_)
    if column:
        data = data.reshape(-1, 1)
    tensor = triton.InferInput("text_input", data.shape, "BYTES")
    tensor.set_data_from_numpy(data)
    return tensor


def tensor(name, datatype, data):
    data = np.array(data, dtype=triton_dtype(datatype))
    result = triton.InferInput(name, data.shape, datatype)
    result.set_data_from_numpy(data)
    return result


def triton_dtype(datatype):
    return np.object_ if datatype == "BYTES" else triton.triton_to_np_dtype(datatype)


def texts(result, name="text_output"):
    return [text.decode() for text in result.as_numpy(name).flatten()]


class Stream:
    """A ModelStreamInfer of a client, whose answers wait in a queue."""

    def __init__(self, client, **settings):
        self._client = client
        self._answers = queue.Queue()
        client.start_stream(lambda result, error: self._answers.put((result, error)), **settings)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._client.stop_stream(cancel_requests=True)

    def next(self):
        result, error = self._answers.get(timeout=PATIENCE_S)
        if error is not None:
            raise error
        return result

    def until_final(self):
        while True:
            result = self.next()
            yield result
            if result.get_response().parameters["triton_final_response"].bool_param:
                return


class KServeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess()
        cls.addClassCleanup(cls.server.stop)
        cls.client = triton.InferenceServerClient(cls.server.address)
        cls.addClassCleanup(cls.client.close)
        cls.model = cls.client.get_model_repository_index().models[0].name

    def infer(self, *prompts, column=False, inputs=(), **settings):
        settings = {"client_timeout": PATIENCE_S, **settings}
        return self.client.infer(
            self.model, [text_input(*prompts, column=column), *inputs], **settings
        )

    def assertRefused(self, mention, *prompts, status="INVALID_ARGUMENT", **settings):
        with self.assertRaisesRegex(InferenceServerException, mention) as caught:
            self.infer(*prompts, **settings)
        self.assertEqual(caught.exception.status(), f"StatusCode.{status}")

    def native(self, prompt, max_tokens, **sampling):
        with programs.channel_to(self.server) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            request = pb.GenerateRequest(
                prompt={"text": prompt},
                parameters={"max_tokens": max_tokens, "sampling": sampling},
            )
            return list(stub.Generate(request, timeout=PATIENCE_S))

    def test_the_server_and_the_model_are_ready(self):
        self.assertTrue(self.client.is_server_live())
        self.assertTrue(self.client.is_server_ready())
        self.assertTrue(self.client.is_model_ready(self.model))
        self.assertTrue(self.client.is_model_ready(self.model, "1"))
        self.assertFalse(self.client.is_model_ready(self.model, "2"))
        self.assertFalse(self.client.is_model_ready("nobody"))

    def test_server_and_model_describe_themselves(self):
        self.assertEqual(self.client.get_server_metadata().name, "photon-server")
        metadata = self.client.get_model_metadata(self.model)
        self.assertEqual(metadata.versions, ["1"])
        self.assertEqual(
            [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs][0],
            ("text_input", "BYTES", [-1, 1]),
        )
        self.assertIn("text_output", [t.name for t in metadata.outputs])
        config = self.client.get_model_config(self.model).config
        self.assertTrue(config.model_transaction_policy.decoupled)
        self.assertGreater(config.max_batch_size, 1)
        self.assertEqual([i.name for i in config.input if not i.optional], ["text_input"])
        with self.assertRaisesRegex(InferenceServerException, "model_name: this server serves"):
            self.client.get_model_metadata("nobody")

    def test_statistics_count_what_was_inferred(self):
        def counts():
            return self.client.get_inference_statistics(self.model).model_stats[0]

        before = counts()
        self.infer(STORY, STORY, parameters={"max_tokens": 4})
        # They are published as of the last step begun.
        eventually(lambda: counts().inference_count >= before.inference_count + 2)
        self.assertGreater(counts().execution_count, before.execution_count)
        self.assertEqual(self.client.get_inference_statistics().model_stats[0].name, self.model)

    def test_models_are_not_loaded_by_clients(self):
        for call in (self.client.load_model, self.client.unload_model):
            with self.assertRaisesRegex(InferenceServerException, "operator") as caught:
                call(self.model)
            self.assertEqual(caught.exception.status(), "StatusCode.UNIMPLEMENTED")

    def test_an_inference_is_what_the_native_call_gives(self):
        native = self.native(STORY, 24, temperature=0.8, top_p=0.9, seed=7)
        result = self.infer(
            STORY,
            request_id="mine",
            parameters={"max_tokens": 24, "temperature": 0.8, "top_p": 0.9, "seed": 7},
        )
        response = result.get_response()
        self.assertEqual((response.id, response.model_version), ("mine", "1"))
        self.assertEqual(texts(result), ["".join(m.text for m in native)])
        self.assertEqual(texts(result, "finish_reason"), ["length"])
        self.assertEqual(result.as_numpy("generated_tokens").tolist(), [24])
        self.assertEqual(
            result.as_numpy("prompt_tokens").tolist(), [native[-1].result.usage.prompt_tokens]
        )
        self.assertEqual(
            result.as_numpy("output_ids").tolist(), [[i for m in native for i in m.token_ids]]
        )
        self.assertIsNone(result.as_numpy("output_log_probs"))

    def test_parameters_may_be_tensors_or_json(self):
        as_parameters = self.infer(
            STORY, parameters={"max_tokens": 20, "temperature": 0.7, "top_k": 40, "seed": 3}
        )
        as_tensors = self.infer(
            STORY,
            column=True,
            inputs=[
                tensor("max_tokens", "INT32", [[20]]),
                tensor("temperature", "FP32", [[0.7]]),
                tensor("top_k", "INT32", [[40]]),
                tensor("random_seed", "UINT64", [[3]]),
            ],
        )
        sampling = json.dumps({"max_tokens": 20, "temperature": 0.7, "top_k": 40, "seed": 3})
        as_json = self.infer(
            STORY,
            inputs=[
                tensor("sampling_parameters", "BYTES", [sampling.encode()]),
                tensor("exclude_input_in_output", "BOOL", [True]),
            ],
        )
        self.assertEqual(texts(as_tensors), texts(as_parameters))
        self.assertEqual(texts(as_json), texts(as_parameters))
        self.assertEqual(as_parameters.as_numpy("text_output").shape, (1,))
        self.assertEqual(as_tensors.as_numpy("text_output").shape, (1, 1))

    def test_stop_strings_end_the_text(self):
        whole = texts(self.infer(STORY, parameters={"max_tokens": 48, "temperature": 0.0}))[0]
        stop = whole[20:25]
        for inputs, parameters in (
            ([], {"stop": stop}),
            ([tensor("stop_words", "BYTES", [[b"xyzzy", stop.encode()]])], {}),
        ):
            parameters |= {"max_tokens": 48, "temperature": 0.0}
            result = self.infer(STORY, inputs=inputs, parameters=parameters)
            self.assertEqual(texts(result), [whole[: whole.index(stop)]])
            self.assertEqual(texts(result, "finish_reason"), ["stop_string"])

    def test_batches_and_samples_have_their_places(self):
        prompts = (STORY, "The old house", "One day")
        result = self.infer(
            *prompts,
            column=True,
            parameters={"max_tokens": 8, "n": 2, "seed": 5, "logprobs": True},
        )
        self.assertEqual(result.as_numpy("text_output").shape, (3, 2))
        ids = result.as_numpy("output_ids")
        self.assertEqual(ids.shape, (3, 2, result.as_numpy("generated_tokens").max()))
        logprobs = result.as_numpy("output_log_probs")
        self.assertEqual(logprobs.shape, ids.shape)
        self.assertTrue((logprobs <= 0).all())
        np.testing.assert_allclose(
            result.as_numpy("cum_log_probs"), logprobs.sum(axis=2), rtol=1e-4
        )
        alone = self.infer(prompts[0], parameters={"max_tokens": 8, "seed": 5})
        self.assertEqual(texts(alone)[0], texts(result)[0])

    def test_only_outputs_that_are_asked_for_come(self):
        result = self.infer(
            STORY,
            parameters={"max_tokens": 4},
            outputs=[triton.InferRequestedOutput("cum_log_probs")],
        )
        self.assertEqual([o.name for o in result.get_response().outputs], ["cum_log_probs"])
        self.assertLess(result.as_numpy("cum_log_probs")[0], 0)

    def test_an_empty_prompt_is_a_prompt(self):
        result = self.infer("", parameters={"max_tokens": 4})
        self.assertEqual(result.as_numpy("prompt_tokens").tolist(), [1])

    def test_async_infer_answers(self):
        answers = queue.Queue()
        self.client.async_infer(
            self.model,
            [text_input(STORY)],
            lambda result, error: answers.put((result, error)),
            parameters={"max_tokens": 4},
        )
        result, error = answers.get(timeout=PATIENCE_S)
        self.assertIsNone(error)
        self.assertEqual(result.as_numpy("generated_tokens").tolist(), [4])

    def test_what_is_wrong_is_named_with_its_limit(self):
        for mention, settings in (
            (r"top_p: expected \(0, 1\], got 1.5", {"parameters": {"top_p": 1.5}}),
            ("max_tokens: expected a whole number", {"parameters": {"max_tokens": "many"}}),
            ("max_tokens: expected at most", {"parameters": {"max_tokens": 100_000}}),
            ("bad_words: is not a tensor", {"inputs": [tensor("bad_words", "BYTES", [b"x"])]}),
            ("beam_width: is not a tensor", {"parameters": {"beam_width": 4}}),
            ("mode: expected", {"parameters": {"mode": "quick"}}),
            ("stream: ModelStreamInfer streams", {"parameters": {"stream": True}}),
            ("exclude_input_in_output: ", {"parameters": {"exclude_input_in_output": False}}),
            ("seed: is there twice", {"parameters": {"seed": 1, "random_seed": 2}}),
            ("sequence_id: ", {"sequence_id": 7, "sequence_start": True}),
            ("priority: expected a whole number in", {"priority": 9}),
            ("sampling_parameters: expected a JSON", {"parameters": {"sampling_parameters": "{"}}),
            ("outputs: expected some of", {"outputs": [triton.InferRequestedOutput("logits")]}),
            ("same for all", {"inputs": [tensor("top_k", "INT32", [[1], [2]])]}),
            ("shape .* at most", {"inputs": [tensor("top_k", "INT32", [1] * 5000)]}),
        ):
            with self.subTest(mention=mention):
                self.assertRefused(mention, STORY, **settings)
        self.assertRefused("model_version: ", STORY, status="NOT_FOUND", model_version="2")
        with self.assertRaisesRegex(InferenceServerException, "text_input: is missing"):
            self.client.infer(self.model, [])

    def test_a_timeout_ends_the_request(self):
        self.assertRefused(
            "deadline", STORY, status="DEADLINE_EXCEEDED", timeout=1, parameters={"max_tokens": 256}
        )

    def test_a_stream_says_what_the_whole_says(self):
        parameters = {"max_tokens": 24, "seed": 11}
        whole = self.infer(STORY, parameters=parameters)
        with Stream(self.client) as stream:
            self.client.async_stream_infer(
                self.model, [text_input(STORY)], request_id="a", parameters=parameters
            )
            results = list(stream.until_final())
        self.assertGreater(len(results), 2)
        self.assertEqual("".join(t for r in results for t in texts(r)), texts(whole)[0])
        self.assertEqual({r.get_response().id for r in results}, {"a"})
        self.assertEqual(texts(results[-1], "finish_reason"), ["length"])
        self.assertIsNone(results[0].as_numpy("finish_reason"))

    def test_a_stream_may_ask_for_the_whole(self):
        with Stream(self.client) as stream:
            self.client.async_stream_infer(
                self.model,
                [text_input(STORY), tensor("stream", "BOOL", [False])],
                parameters={"max_tokens": 24},
            )
            result = stream.next()
        self.assertEqual(result.as_numpy("generated_tokens").tolist(), [24])

    def test_requests_of_a_stream_run_beside_each_other(self):
        with Stream(self.client) as stream:
            for i in range(6):
                self.client.async_stream_infer(
                    self.model,
                    [text_input(STORY, "One day", column=True)],
                    request_id=str(i),
                    enable_empty_final_response=True,
                    parameters={"max_tokens": 16, "seed": i, "n": 2},
                )
            told, finals = {}, set()
            while len(finals) < 6:
                result = stream.next()
                response = result.get_response()
                place = (
                    response.id,
                    response.parameters["batch_index"].int64_param,
                    response.parameters["sample_index"].int64_param,
                )
                self.assertNotIn(response.id, finals, "a response after the last one")
                told[place] = told.get(place, "") + texts(result)[0]
                if response.parameters["triton_final_response"].bool_param:
                    finals.add(response.id)
        self.assertEqual(len(told), 6 * 2 * 2)
        whole = self.infer(
            STORY, "One day", column=True, parameters={"max_tokens": 16, "seed": 3, "n": 2}
        )
        self.assertEqual(
            texts(whole), [told["3", prompt, sample] for prompt in (0, 1) for sample in (0, 1)]
        )

    def test_a_bad_request_leaves_the_stream_to_others(self):
        with Stream(self.client) as stream:
            self.client.async_stream_infer(
                self.model, [text_input(STORY)], parameters={"max_tokens": 0}
            )
            with self.assertRaisesRegex(InferenceServerException, "max_tokens: expected"):
                stream.next()
            self.client.async_stream_infer(self.model, [text_input(STORY)], timeout=1)
            with self.assertRaisesRegex(InferenceServerException, "deadline"):
                list(stream.until_final())
            self.client.async_stream_infer(
                self.model, [text_input(STORY)], parameters={"max_tokens": 4}
            )
            self.assertEqual(texts(list(stream.until_final())[-1], "finish_reason"), ["length"])

    def test_typed_contents_are_as_good_as_raw_ones(self):
        messages = triton.service_pb2
        request = messages.ModelInferRequest(model_name=self.model, id="typed")
        request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents[
            :
        ] = [STORY.encode()]
        request.inputs.add(name="max_tokens", datatype="INT32", shape=[1]).contents.int_contents[
            :
        ] = [4]
        with programs.channel_to(self.server) as channel:
            stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel)
            response = stub.ModelInfer(request, timeout=PATIENCE_S)
            self.assertEqual(response.id, "typed")
            for change, mention in (
                (lambda r: r.inputs[1].shape.__setitem__(0, 2), "contents of 2 elements"),
                (lambda r: r.inputs[1].shape.__setitem__(0, -1), "expected a shape"),
                (lambda r: r.raw_input_contents.append(b""), "raw_input_contents: expected none"),
                (lambda r: r.raw_input_contents.extend([b"", b""]), "got both"),
                (lambda r: setattr(r.inputs[1], "datatype", "FP16"), "expected a datatype"),
                (
                    lambda r: r.inputs[0].contents.bytes_contents.__setitem__(0, b"\xff"),
                    r"text_input\[0\]: is not valid UTF-8",
                ),
            ):
                with self.subTest(mention=mention):
                    changed = messages.ModelInferRequest.FromString(request.SerializeToString())
                    change(changed)
                    with self.assertRaisesRegex(grpc.RpcError, mention) as caught:
                        stub.ModelInfer(changed, timeout=PATIENCE_S)
                    self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)


class KServeLimitsTest(unittest.TestCase):
    """Servers with settings of their own."""

    def start(self, *flags):
        server = programs.ServerProcess(*flags)
        self.addCleanup(server.stop)
        client = triton.InferenceServerClient(server.address)
        self.addCleanup(client.close)
        return server, client

    def keys_file(self, line):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = pathlib.Path(directory.name, "keys")
        path.write_text(line)
        return str(path)

    def test_a_stream_that_is_left_frees_its_pages(self):
        server, client = self.start(*SLOW)
        model = client.get_model_repository_index().models[0].name
        with Stream(client) as stream:
            for _ in range(3):
                client.async_stream_infer(
                    model, [text_input(STORY)], parameters={"max_tokens": 1000}
                )
            stream.next()
        eventually(lambda: programs.stats(server).pages.in_use == 0)

    def test_a_cancelled_inference_frees_its_pages(self):
        server, client = self.start(*SLOW)
        model = client.get_model_repository_index().models[0].name
        context = client.async_infer(
            model,
            [text_input(STORY)],
            lambda result, error: None,
            parameters={"max_tokens": 1000},
        )
        eventually(lambda: programs.stats(server).pages.in_use > 0)
        context.cancel()
        eventually(lambda: programs.stats(server).pages.in_use == 0)

    def test_a_response_that_is_too_large_has_to_be_streamed(self):
        _, client = self.start("--max-message-bytes", "2048")
        model = client.get_model_repository_index().models[0].name
        parameters = {"max_tokens": 600, "ignore_eos": True}
        with self.assertRaisesRegex(InferenceServerException, "more than 2048 bytes"):
            client.infer(model, [text_input(STORY)], parameters=parameters)
        with Stream(client) as stream:
            client.async_stream_infer(model, [text_input(STORY)], parameters=parameters)
            self.assertGreater(len(list(stream.until_final())), 2)

    def test_each_request_of_a_stream_counts_for_its_key(self):
        key, line = create_key("alice", "--requests-per-minute", "3")
        keys = self.keys_file(line)
        _, client = self.start("--api-keys", keys)
        headers = {"authorization": f"Bearer {key}"}
        model = client.get_model_repository_index(headers=headers).models[0].name
        with self.assertRaises(InferenceServerException) as caught:
            client.get_server_metadata()
        self.assertEqual(caught.exception.status(), "StatusCode.UNAUTHENTICATED")
        with Stream(client, headers=headers) as stream:
            # The index was the first, the stream and its first request are the second.
            for _ in range(2):
                client.async_stream_infer(
                    model, [text_input(STORY)], parameters={"max_tokens": 2}
                )
                list(stream.until_final())
            client.async_stream_infer(model, [text_input(STORY)])
            with self.assertRaisesRegex(InferenceServerException, "requests"):
                list(stream.until_final())

    def test_priorities_are_those_of_the_key(self):
        key, line = create_key("alice", "--max-priority", "low")
        keys = self.keys_file(line)
        _, client = self.start("--api-keys", keys)
        headers = {"authorization": f"Bearer {key}"}
        model = client.get_model_repository_index(headers=headers).models[0].name
        for priority, allowed in ((1, False), (3, True)):
            settings = {"priority": priority, "parameters": {"max_tokens": 2}, "headers": headers}
            if allowed:
                client.infer(model, [text_input(STORY)], **settings)
            else:
                with self.assertRaises(InferenceServerException) as caught:
                    client.infer(model, [text_input(STORY)], **settings)
                self.assertEqual(caught.exception.status(), "StatusCode.PERMISSION_DENIED")


if __name__ == "__main__":
    unittest.main()
