"""Health and metrics through the packages that their protocols' own projects publish."""

import unittest
import urllib.request

import grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc

import programs
from programs import PATIENCE_S, STORY
from security_support import eventually

try:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from prometheus_client.parser import text_string_to_metric_families
except ImportError:
    raise unittest.SkipTest("no stock clients: run scripts/install_test_clients")


class StockClientsTest(unittest.TestCase):
    def setUp(self):
        self.server = programs.ServerProcess()
        self.addCleanup(self.server.stop)

    def families(self):
        url = self.server.http_url + "metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            text = response.read().decode()
        return {family.name: family for family in text_string_to_metric_families(text)}

    def test_grpcio_health_checking_watches_the_server_drain(self):
        with programs.channel_to(self.server) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            serving = health_pb2.HealthCheckResponse.SERVING
            for service in ("", "inference.GRPCInferenceService", "photon.v1.GenerationService"):
                request = health_pb2.HealthCheckRequest(service=service)
                self.assertEqual(health.Check(request, timeout=PATIENCE_S).status, serving)
            watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            self.assertEqual(next(watch).status, serving)
            self.server.signal()
            self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.NOT_SERVING)
            with self.assertRaises(grpc.RpcError) as caught:
                next(watch)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(self.server.wait(), 0)

    def test_prometheus_client_reads_the_metrics(self):
        with programs.channel_to(self.server) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            request = pb.GenerateRequest(
                prompt={"text": STORY},
                parameters={"max_tokens": 9, "stop": {"ignore_eos": True}},
            )
            list(stub.Generate(request, timeout=PATIENCE_S))

        def ended():
            samples = self.families()["photon_requests"].samples
            return sum(s.value for s in samples if s.labels.get("finish_reason") == "length")

        eventually(lambda: ended() == 1)
        families = self.families()
        self.assertEqual(families["photon_generation_tokens"].type, "counter")
        self.assertEqual(families["photon_generation_tokens"].samples[0].value, 9)
        pages = {s.labels["state"]: s.value for s in families["photon_latent_pages"].samples}
        self.assertEqual(pages["in_use"], 0)
        first_token = families["photon_time_to_first_token_seconds"]
        self.assertEqual(first_token.type, "histogram")
        self.assertIn(
            1, [s.value for s in first_token.samples if s.name.endswith("_count")]
        )


if __name__ == "__main__":
    unittest.main()
