"""A server over the CUDA engine, compiled to run on the CPU (tests/cuda_on_cpu): two of its devices, the demo checkpoint."""

import concurrent.futures
import os
import unittest

import grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc

import programs
from programs import PATIENCE_S, STORY

PLUGIN = os.environ["CUDA_ON_CPU_PLUGIN"]
SMALL = ("--compute", "f32", "--kv-memory", "8MiB", "--max-rows", "1")


def request(mode, text=STORY, **sampling):
    return pb.GenerateRequest(
        prompt={"text": text},
        parameters={
            "max_tokens": 24,
            "mode": mode,
            "sampling": {"temperature": 0, **sampling},
            "stop": {"ignore_eos": True},
        },
    )


def tokens(stub, message):
    responses = stub.Generate(message, timeout=PATIENCE_S)
    return [token for response in responses for token in response.token_ids]


class CudaEngineTest(unittest.TestCase):
    def stub_of(self, *flags):
        server = programs.ServerProcess(*flags)
        self.addCleanup(server.stop)
        channel = grpc.insecure_channel(server.address)
        self.addCleanup(channel.close)
        return server, generation_pb2_grpc.GenerationServiceStub(channel)

    def test_two_devices_write_what_the_cpu_engine_writes(self):
        _, cpu = self.stub_of("--device", "cpu", *SMALL)
        server, cuda = self.stub_of("--device", "cuda:0,cuda:1", "--cuda-plugin", PLUGIN, *SMALL)
        messages = [
            request(pb.GENERATION_MODE_EXACT),
            request(pb.GENERATION_MODE_HIERGEN),
            request(pb.GENERATION_MODE_RECGEN, text="The dog"),
            request(pb.GENERATION_MODE_EXACT, temperature=0.8, top_p=0.9, seed=7),
        ]
        with concurrent.futures.ThreadPoolExecutor(len(messages)) as pool:
            written = list(pool.map(lambda message: tokens(cuda, message), messages))
        for message, actual in zip(messages, written):
            with self.subTest(message=message):
                self.assertEqual(len(actual), 24)
                self.assertEqual(actual, tokens(cpu, message))
        self.assertEqual(server.log.count("CUDA on the CPU"), 2, server.log)
        for device in ("cuda:0", "cuda:1"):
            self.assertRegex(server.log, f"{device}: recorded 3 of 3 graphs, [0-9]+ MiB")
        self.assertEqual(programs.stats(server).pages.in_use, 0)


if __name__ == "__main__":
    unittest.main()
