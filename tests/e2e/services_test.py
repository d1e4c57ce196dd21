"""Model, health and reflection services as a stock grpcio client sees them."""

import unittest

import grpc
import health_pb2
import health_pb2_grpc
from photon.v1 import model_pb2, model_pb2_grpc

import programs
from programs import PATIENCE_S

SERVICES = (
    "photon.v1.GenerationService",
    "photon.v1.DocumentService",
    "photon.v1.ModelService",
    "inference.GRPCInferenceService",
)


class ServicesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess()
        cls.addClassCleanup(cls.server.stop)
        cls.channel = grpc.insecure_channel(cls.server.address)
        cls.addClassCleanup(cls.channel.close)
        cls.models = model_pb2_grpc.ModelServiceStub(cls.channel)
        cls.health = health_pb2_grpc.HealthStub(cls.channel)

    def test_model_info_describes_the_checkpoint(self):
        info = self.models.GetModelInfo(model_pb2.GetModelInfoRequest(), timeout=PATIENCE_S)
        self.assertTrue(info.name)
        self.assertTrue(info.device.startswith("cpu"))
        self.assertGreater(info.num_parameters, 1_000_000)
        self.assertEqual(len(info.tokenizer_sha256), 64)
        tokens = 1
        for level in info.levels:
            tokens *= level.chunk_size
        self.assertEqual(info.meta_context_tokens, tokens)
        self.assertEqual(info.levels[-1].encoder_span, model_pb2.ENCODER_SPAN_GLOBAL)

    def test_text_survives_tokens_in_many_scripts(self):
        for text in ("The old house.", "naïve café", "Ελληνικά", "日本語", "🙂👩‍👩‍👧", "  two  spaces", "tab\tnl\n"):
            with self.subTest(text=text):
                ids = self.models.Tokenize(
                    model_pb2.TokenizeRequest(text=text), timeout=PATIENCE_S
                ).token_ids
                back = self.models.Detokenize(
                    model_pb2.DetokenizeRequest(token_ids=ids), timeout=PATIENCE_S
                ).text
                self.assertEqual(back, text)

    def test_unknown_token_ids_are_refused(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.models.Detokenize(
                model_pb2.DetokenizeRequest(token_ids=[10**6]), timeout=PATIENCE_S
            )
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)

    def test_each_service_is_serving(self):
        for service in ("", *SERVICES):
            with self.subTest(service=service):
                reply = self.health.Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S
                )
                self.assertEqual(reply.status, health_pb2.HealthCheckResponse.SERVING)

    def test_the_health_of_an_unknown_service_is_not_found(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=PATIENCE_S)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_reflection_lists_the_services(self):
        reflect = self.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        list_services = b"\x3a\x01*"  # ServerReflectionRequest { list_services: "*" }
        reply = next(reflect(iter([list_services]), timeout=PATIENCE_S))
        for service in (*SERVICES, "grpc.health.v1.Health"):
            self.assertIn(service.encode(), reply)


if __name__ == "__main__":
    unittest.main()
