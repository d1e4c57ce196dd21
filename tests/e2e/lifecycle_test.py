"""Cancellation, drain and refusals to start."""

import re
import subprocess
import unittest

import grpc
import health_pb2
import health_pb2_grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc

import programs
from programs import MODEL, PATIENCE_S, SLOW, STORY

MAX_TOKENS = 900


def long_request():
    return pb.GenerateRequest(
        prompt={"text": STORY},
        parameters={"max_tokens": MAX_TOKENS, "stop": {"ignore_eos": True}},
    )


class LifecycleTest(unittest.TestCase):
    def test_a_cancelled_request_leaves_the_batch(self):
        with programs.server("--max-rows", "1", *SLOW) as server:
            with programs.channel_to(server) as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                cancelled = stub.Generate(long_request(), timeout=PATIENCE_S)
                next(cancelled)
                cancelled.cancel()
                # The only row is free again: this request gets it.
                one_token = pb.GenerateRequest(
                    prompt={"text": STORY}, parameters={"max_tokens": 1}
                )
                self.assertEqual(
                    list(stub.Generate(one_token, timeout=PATIENCE_S))[-1].result.finish_reason,
                    pb.FINISH_REASON_LENGTH,
                )
            server.stop()
            generated = int(re.search(r"(\d+) generated tokens", server.log).group(1))
            self.assertLess(generated, MAX_TOKENS)

    def test_sigterm_lets_running_streams_finish_and_exits_0(self):
        with programs.server("--drain-timeout", str(PATIENCE_S), *SLOW) as server:
            with programs.channel_to(server) as channel:
                health = health_pb2_grpc.HealthStub(channel).Watch(
                    health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
                )
                self.assertEqual(next(health).status, health_pb2.HealthCheckResponse.SERVING)
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                stream = stub.Generate(long_request(), timeout=PATIENCE_S)
                messages = [next(stream)]
                server.signal()
                self.assertEqual(next(health).status, health_pb2.HealthCheckResponse.NOT_SERVING)
                with self.assertRaises(grpc.RpcError) as refused:
                    list(stub.Generate(long_request(), timeout=PATIENCE_S))
                # A call that crosses the GOAWAY is cancelled (docs/lifecycle.md).
                self.assertIn(
                    refused.exception.code(),
                    (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED),
                )
                messages.extend(stream)
                result = messages[-1].result
                self.assertEqual(result.finish_reason, pb.FINISH_REASON_LENGTH)
                self.assertEqual(result.usage.generated_tokens, MAX_TOKENS)
            self.assertEqual(server.wait(), 0)

    def test_what_does_not_end_within_the_drain_timeout_is_cut_off(self):
        with programs.server("--drain-timeout", "0", *SLOW) as server:
            with programs.channel_to(server) as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                stream = stub.Generate(long_request(), timeout=PATIENCE_S)
                messages = [next(stream)]
                server.signal()
                messages.extend(stream)
                self.assertEqual(messages[-1].result.finish_reason, pb.FINISH_REASON_DRAIN)
            self.assertEqual(server.wait(), 0)

    def test_requests_are_taken_during_the_drain_pause(self):
        with programs.server("--drain-pause", str(PATIENCE_S), "--threads", "1") as server:
            with programs.channel_to(server) as channel:
                health = health_pb2_grpc.HealthStub(channel).Watch(
                    health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
                )
                self.assertEqual(next(health).status, health_pb2.HealthCheckResponse.SERVING)
                server.signal()
                self.assertEqual(next(health).status, health_pb2.HealthCheckResponse.NOT_SERVING)
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                last = list(stub.Generate(long_request(), timeout=PATIENCE_S))[-1]
                self.assertEqual(last.result.usage.generated_tokens, MAX_TOKENS)
            server.signal()
            self.assertEqual(server.wait(), 1)

    def test_a_server_ends_by_itself_after_the_drain_pause(self):
        with programs.server("--drain-pause", "0.2", "--threads", "1") as server:
            server.signal()
            self.assertEqual(server.wait(), 0)

    def test_a_second_signal_ends_the_server_at_once(self):
        with programs.server("--drain-timeout", str(PATIENCE_S), *SLOW) as server:
            with programs.channel_to(server) as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                health = health_pb2_grpc.HealthStub(channel).Watch(
                    health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
                )
                self.assertEqual(next(health).status, health_pb2.HealthCheckResponse.SERVING)
                stream = stub.Generate(long_request(), timeout=PATIENCE_S)
                next(stream)
                server.signal()
                self.assertEqual(next(health).status, health_pb2.HealthCheckResponse.NOT_SERVING)
                server.signal()
                self.assertEqual(server.wait(), 1)
                with self.assertRaises(grpc.RpcError):
                    list(stream)
            self.assertIn("a second signal", server.log)

    def test_a_command_line_that_makes_no_sense_exits_2(self):
        for flags in ([], ["--model", MODEL, "--nonsense", "1"], ["--model", MODEL, "--listen", "0.0.0.0:0"]):
            with self.subTest(flags=flags):
                process = subprocess.run(
                    [programs.SERVER, *flags],
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE_S,
                )
                self.assertEqual(process.returncode, 2, process.stderr)
                self.assertTrue(process.stderr)

    def test_a_missing_checkpoint_exits_1_and_is_named(self):
        process = subprocess.run(
            [programs.SERVER, "--model", "/nowhere/at/all"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        self.assertEqual(process.returncode, 1)
        self.assertIn("/nowhere/at/all", process.stderr)


if __name__ == "__main__":
    unittest.main()
