"""What computes: replicas on the processor, a CUDA module that tests bring along, and their failures."""

import concurrent.futures
import contextlib
import os
import re
import subprocess
import unittest
import urllib.error
import urllib.request

import grpc
import health_pb2
import health_pb2_grpc
from photon.v1 import document_pb2, document_pb2_grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

import programs
from programs import MODEL, PATIENCE_S, STORY

FAULTY = os.environ["FAULTY_PLUGIN"]
OTHER_VERSION = os.environ["OTHER_VERSION_PLUGIN"]
EMPTY = os.environ["EMPTY_PLUGIN"]

SMALL = ("--kv-memory", "64MiB", "--max-rows", "4")


@contextlib.contextmanager
def environment(**variables):
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def request(seed=1, max_tokens=100, text=STORY):
    return pb.GenerateRequest(
        prompt={"text": text},
        parameters={
            "max_tokens": max_tokens,
            "sampling": {"seed": seed, "temperature": 0.8},
            "stop": {"ignore_eos": True},
        },
    )


def metrics(server):
    text = urllib.request.urlopen(server.http_url + "metrics", timeout=PATIENCE_S).read().decode()
    return {
        match.group(1): float(match.group(2))
        for match in re.finditer(r"^(photon_\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
    }


def start_that_fails(*flags, **variables):
    """Exit code and log of a server that does not start."""
    process = subprocess.run(
        [programs.SERVER, "--model", MODEL, "--listen", "127.0.0.1:0", "--http-listen", "off", *flags],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, **variables},
    )
    return process.returncode, process.stderr


class ReplicasTest(unittest.TestCase):
    """Two replicas on the processor behind one server."""

    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess("--device", "cpu,cpu", "--threads", "1", *SMALL)
        cls.addClassCleanup(cls.server.stop)
        cls.channel = grpc.insecure_channel(cls.server.address)
        cls.addClassCleanup(cls.channel.close)
        cls.stub = generation_pb2_grpc.GenerationServiceStub(cls.channel)

    def tokens(self, *args, **settings):
        messages = list(self.stub.Generate(request(*args, **settings), timeout=PATIENCE_S))
        return [token for message in messages for token in message.token_ids]

    def test_tokens_are_the_same_wherever_a_sequence_runs(self):
        alone = {seed: self.tokens(seed) for seed in range(4)}
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            crowd = list(pool.map(lambda i: (i % 4, self.tokens(i % 4)), range(24)))
        for seed, tokens in crowd:
            self.assertEqual(tokens, alone[seed])
        # They were more than one replica has rows for, and what both have computed stays cached.
        cached = [
            value
            for key, value in metrics(self.server).items()
            if key.startswith("photon_device_latent_pages{") and 'state="cached"' in key
        ]
        self.assertEqual(len(cached), 2)
        self.assertGreater(min(cached), 0)

    def test_pages_add_up_over_the_replicas(self):
        self.tokens()
        values = metrics(self.server)
        states = [value for key, value in values.items() if key.startswith("photon_latent_pages{")]
        total = int(re.search(r'num_pages="(\d+)"', " ".join(values)).group(1))
        self.assertEqual(sum(states), total)
        pools = re.findall(r"engine cpu.*?: (\d+) cache pages", self.server.log)
        self.assertEqual(len(pools), 2)
        self.assertEqual(sum(map(int, pools)), total)

    def test_a_document_is_answered_where_it_is(self):
        documents = document_pb2_grpc.DocumentServiceStub(self.channel)
        models = model_pb2_grpc.ModelServiceStub(self.channel)
        meta = models.GetModelInfo(model_pb2.GetModelInfoRequest()).meta_context_tokens
        for tale in (STORY * 30, (STORY + " and a dog") * 20):
            upload = [
                document_pb2.CreateDocumentRequest(settings={}),
                document_pb2.CreateDocumentRequest(text=tale),
            ]
            document = documents.CreateDocument(iter(upload), timeout=PATIENCE_S).document
            ask = document_pb2.AskRequest(
                document_id=document.id,
                questions=[{"text": " Then"}],
                parameters=request(max_tokens=5).parameters,
            )
            answer = list(documents.Ask(ask, timeout=PATIENCE_S))[-1].output.result
            self.assertGreater(answer.usage.cached_tokens, document.num_tokens - 2 * meta)


class PluginTest(unittest.TestCase):
    """A module in the place of the CUDA engine's, opened by the real program."""

    def test_auto_takes_every_gpu(self):
        with programs.server("--device", "auto", "--cuda-plugin", FAULTY, *SMALL) as server:
            self.assertIn("engine cuda:0 (cpu", server.log)
            self.assertIn("engine cuda:1 (cpu", server.log)
            with programs.channel_to(server) as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                result = list(stub.Generate(request(), timeout=PATIENCE_S))[-1].result
                self.assertEqual(result.finish_reason, pb.FINISH_REASON_LENGTH)

    def test_auto_falls_back_where_there_is_no_gpu_and_says_so(self):
        with environment(FAULTY_PLUGIN_DEVICES="0"):
            with programs.server("--device", "auto", "--cuda-plugin", FAULTY, *SMALL) as server:
                self.assertIn("device auto: cuda: no CUDA-capable device", server.log)
                self.assertIn("the processor computes", server.log)
                self.assertIn("engine cpu", server.log)

    def test_cuda_without_a_gpu_exits_1(self):
        code, log = start_that_fails(
            "--device", "cuda", "--cuda-plugin", FAULTY, FAULTY_PLUGIN_DEVICES="0"
        )
        self.assertEqual(code, 1, log)
        self.assertIn("no CUDA-capable device", log)

    def test_a_gpu_without_memory_is_named_with_what_was_needed_and_free(self):
        code, log = start_that_fails(
            "--device", "cuda", "--cuda-plugin", FAULTY, *SMALL, FAULTY_PLUGIN_FULL_DEVICE="1"
        )
        self.assertEqual(code, 1, log)
        self.assertIn("device cuda:1: weights: 1.20 GiB needed, 0.75 GiB free", log)

    def test_modules_that_are_none_exit_1_and_are_named(self):
        for module, reason in (
            ("/nowhere/plugin.so", "No such file"),
            (OTHER_VERSION, "has version"),
            (EMPTY, "is no engine of this program"),
        ):
            with self.subTest(module=module):
                code, log = start_that_fails("--device", "cuda:0", "--cuda-plugin", module)
                self.assertEqual(code, 1, log)
                self.assertIn(module, log)
                self.assertIn(reason, log)

    def test_a_device_that_is_lost_ends_streams_and_server(self):
        with environment(FAULTY_PLUGIN_LOST_DEVICE="1", FAULTY_PLUGIN_LOST_STEP="4"):
            server = programs.ServerProcess(
                "--device", "cuda", "--cuda-plugin", FAULTY, "--name", "lost", *SMALL
            )
        with programs.channel_to(server) as channel:
            health = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
            )
            self.assertEqual(next(health).status, health_pb2.HealthCheckResponse.SERVING)
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            # The first two streams are on different devices: both end with the one that is lost.
            streams = [stub.Generate(request(i, 900), timeout=PATIENCE_S) for i in range(2)]
            for stream in streams:
                with self.assertRaises(grpc.RpcError) as ended:
                    list(stream)
                self.assertEqual(ended.exception.code(), grpc.StatusCode.UNAVAILABLE)
            self.assertEqual(next(health).status, health_pb2.HealthCheckResponse.NOT_SERVING)
        self.assertEqual(server.wait(), 1)
        self.assertRegex(server.log, r"the engine failed: .*cuda:1 .*unspecified launch failure")

    def test_a_step_that_never_ends_ends_streams_and_server(self):
        # Its first step is of a probe.
        with environment(FAULTY_PLUGIN_STUCK_STEP="4"):
            server = programs.ServerProcess(
                "--device", "cuda:0", "--cuda-plugin", FAULTY, *SMALL,
                "--max-step-age", "5", "--step-timeout", "20", "--drain-timeout", str(PATIENCE_S),
            )
        with programs.channel_to(server) as channel:
            health = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
            )
            self.assertEqual(next(health).status, health_pb2.HealthCheckResponse.SERVING)
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            stream = stub.Generate(request(max_tokens=900), timeout=PATIENCE_S)
            self.assertTrue(next(stream).token_ids)
            self.assertEqual(next(health).status, health_pb2.HealthCheckResponse.NOT_SERVING)
            with self.assertRaises(urllib.error.HTTPError) as unready:
                urllib.request.urlopen(server.http_url + "readyz", timeout=PATIENCE_S)
            self.assertEqual(unready.exception.code, 503)
            with self.assertRaises(grpc.RpcError) as ended:
                list(stream)
            self.assertEqual(ended.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(server.wait(), 1)
        self.assertIn("the engine is stuck: a step has taken", server.log)


class CommandLineTest(unittest.TestCase):
    def test_devices_that_make_no_sense_exit_2(self):
        for devices in ("gpu", "cpu,cuda:0", "cuda:0,cuda:0", "cuda:x", ""):
            with self.subTest(devices=devices):
                code, log = start_that_fails("--device=" + devices)
                self.assertEqual(code, 2, log)
                self.assertIn("--device", log)

    def test_threads_of_a_gpu_exit_2(self):
        code, log = start_that_fails("--device", "cuda", "--cuda-plugin", FAULTY, "--threads", "2")
        self.assertEqual(code, 2, log)
        self.assertIn("threads: has no effect on a GPU", log)

    def test_more_cache_than_the_machine_has_exits_1(self):
        code, log = start_that_fails("--device", "cpu", "--kv-memory", "900TiB")
        self.assertEqual(code, 1, log)
        self.assertIn("bytes are free once the weights are loaded", log)


if __name__ == "__main__":
    unittest.main()
