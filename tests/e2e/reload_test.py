"""A model that is replaced while the server runs."""

import os
import pathlib
import resource
import shutil
import signal
import tempfile
import threading
import unittest

import grpc
from photon.v1 import admin_pb2, admin_pb2_grpc, generation_pb2_grpc, model_pb2, model_pb2_grpc
from photon.v1 import generation_pb2 as pb

import programs
from programs import MODEL, PATIENCE_S, SLOW, STORY

STAGES = [
    admin_pb2.RELOAD_STAGE_LOADING,
    admin_pb2.RELOAD_STAGE_PROBING,
    admin_pb2.RELOAD_STAGE_DRAINING,
    admin_pb2.RELOAD_STAGE_DONE,
]


def request(max_tokens):
    return pb.GenerateRequest(
        prompt={"text": STORY},
        parameters={
            "max_tokens": max_tokens,
            "stop": {"ignore_eos": True},
            "sampling": {"temperature": 0},
        },
    )


class ReloadTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.model = str(self.directory / "model")
        shutil.copytree(MODEL, self.model)

    def connect(self, server):
        channel = self.enterContext(programs.channel_to(server))
        self.generation = generation_pb2_grpc.GenerationServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        self.info = model_pb2_grpc.ModelServiceStub(channel)

    def serve(self, *flags):
        server = self.enterContext(programs.server(*flags, model=self.model))
        self.connect(server)
        return server

    def reload(self, directory=""):
        return self.admin.ReloadModel(
            admin_pb2.ReloadModelRequest(directory=directory), timeout=PATIENCE_S
        )

    def generation_number(self):
        return self.info.GetModelInfo(model_pb2.GetModelInfoRequest(), timeout=PATIENCE_S).generation

    def tokens(self, max_tokens):
        messages = list(self.generation.Generate(request(max_tokens), timeout=PATIENCE_S))
        return [token for message in messages for token in message.token_ids]

    def test_a_swap_under_load_loses_nothing(self):
        server = self.serve("--drain-timeout", str(PATIENCE_S), *SLOW)
        expected = self.tokens(64)
        stop = threading.Event()
        replies = []
        failures = []

        def load():
            while not stop.is_set():
                try:
                    replies.append(self.tokens(64))
                except grpc.RpcError as error:
                    failures.append(error)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        stream = self.generation.Generate(request(800), timeout=PATIENCE_S)
        messages = [next(stream)]
        for _ in range(2):
            stages = [message.stage for message in self.reload()]
            self.assertEqual(stages, STAGES)
        stop.set()
        for thread in threads:
            thread.join()
        messages.extend(stream)
        self.assertEqual(messages[-1].result.finish_reason, pb.FINISH_REASON_LENGTH)
        self.assertEqual(messages[-1].result.usage.generated_tokens, 800)
        self.assertEqual(failures, [])
        self.assertTrue(replies)
        # The same weights: the same greedy tokens, whichever of the three it was.
        self.assertTrue(all(reply == expected for reply in replies))
        self.assertEqual(self.generation_number(), 3)
        stats = self.admin.GetStats(admin_pb2.GetStatsRequest(), timeout=PATIENCE_S)
        self.assertEqual(stats.pages.in_use, 0)
        server.stop()

    def test_a_checkpoint_that_does_not_load_is_refused(self):
        self.serve("--threads", "1")
        expected = self.tokens(16)
        broken = self.directory / "broken"
        shutil.copytree(MODEL, broken)
        weights = next(broken.glob("*.safetensors"))
        with open(weights, "r+b") as file:
            file.truncate(os.path.getsize(weights) // 2)
        for directory in (str(broken), str(self.directory / "nowhere")):
            with self.subTest(directory=directory):
                with self.assertRaises(grpc.RpcError) as refused:
                    list(self.reload(directory))
                self.assertEqual(refused.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)
                self.assertIn(directory, refused.exception.details())
        self.assertEqual(self.generation_number(), 1)
        self.assertEqual(self.tokens(16), expected)

    def test_a_checkpoint_that_does_not_fit_in_memory_is_refused(self):
        server = self.serve("--threads", "1", "--kv-memory", "512MiB")
        expected = self.tokens(16)
        # What the process has, and not enough for a second cache beside it.
        status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
        used_kb = int(next(l for l in status.splitlines() if l.startswith("VmSize")).split()[1])
        limit = (used_kb << 10) + (256 << 20)
        resource.prlimit(server.pid, resource.RLIMIT_AS, (limit, limit))
        with self.assertRaises(grpc.RpcError) as refused:
            list(self.reload())
        self.assertEqual(refused.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertIn("memory", refused.exception.details())
        self.assertEqual(self.generation_number(), 1)
        self.assertEqual(self.tokens(16), expected)

    def test_sighup_loads_what_has_changed(self):
        server = self.serve("--threads", "1")
        server.signal(signal.SIGHUP)
        # As deployments do: the new one beside the old, then one rename.
        later = self.directory / "later"
        shutil.copytree(MODEL, later)
        os.rename(self.model, self.directory / "earlier")
        os.rename(later, self.model)
        server.signal(signal.SIGHUP)
        while self.generation_number() == 1:
            pass
        self.assertEqual(self.generation_number(), 2)
        self.assertEqual(len(self.tokens(16)), 16)


if __name__ == "__main__":
    unittest.main()
