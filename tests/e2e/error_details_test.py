"""Details of errors, as any client finds them in the trailing metadata."""

import unittest

import error_details_pb2
import grpc
import status_pb2
from photon.v1 import generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc

import programs
from programs import PATIENCE_S


def details_of(error):
    """The status, and its details by type."""
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    return status, {any_.type_url.rpartition("/")[2]: any_.value for any_ in status.details}


class ErrorDetailsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess("--max-queue", "4")
        cls.addClassCleanup(cls.server.stop)
        cls.channel = grpc.insecure_channel(cls.server.address)
        cls.addClassCleanup(cls.channel.close)
        cls.generation = generation_pb2_grpc.GenerationServiceStub(cls.channel)
        cls.models = model_pb2_grpc.ModelServiceStub(cls.channel)

    def test_a_bad_stream_request_names_every_field(self):
        request = generation_pb2.GenerateRequest()
        request.parameters.sampling.top_p = 2
        request.parameters.sampling.min_p = -1
        with self.assertRaises(grpc.RpcError) as caught:
            next(self.generation.Generate(request, timeout=PATIENCE_S))
        error = caught.exception
        status, details = details_of(error)
        self.assertEqual(status.code, grpc.StatusCode.INVALID_ARGUMENT.value[0])
        self.assertEqual(status.message, error.details())
        bad = error_details_pb2.BadRequest.FromString(details["google.rpc.BadRequest"])
        self.assertEqual(
            [violation.field for violation in bad.field_violations],
            ["parameters.sampling.top_p", "parameters.sampling.min_p"],
        )
        self.assertIn("got 2", bad.field_violations[0].description)
        info = error_details_pb2.ErrorInfo.FromString(details["google.rpc.ErrorInfo"])
        self.assertEqual((info.reason, info.domain), ("INVALID_ARGUMENT", "photon.v1"))
        self.assertNotIn("google.rpc.RetryInfo", details)

    def test_unary_methods_have_them_too(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.models.Detokenize(
                model_pb2.DetokenizeRequest(token_ids=[10**6]), timeout=PATIENCE_S
            )
        _, details = details_of(caught.exception)
        bad = error_details_pb2.BadRequest.FromString(details["google.rpc.BadRequest"])
        self.assertEqual(bad.field_violations[0].field, "token_ids[0]")

    def test_an_error_that_comes_alone_is_a_whole_answer(self):
        # Proxies and gRPC's own retries try a call elsewhere only if nothing came before its error.
        request = generation_pb2.GenerateRequest()
        request.parameters.max_tokens = 10**6
        metadata = [("x-request-id", "story-1")]
        refused = (
            lambda: list(self.generation.Generate(request, metadata=metadata, timeout=PATIENCE_S)),
            lambda: self.models.Detokenize(
                model_pb2.DetokenizeRequest(token_ids=[-1]), metadata=metadata, timeout=PATIENCE_S
            ),
        )
        for call in refused:
            with self.assertRaises(grpc.RpcError) as caught:
                call()
            self.assertEqual(list(caught.exception.initial_metadata()), [])
            self.assertEqual(
                dict(caught.exception.trailing_metadata())["x-request-id"], "story-1"
            )

    def test_who_finds_the_queue_full_learns_when_to_come_again(self):
        request = generation_pb2.GenerateRequest()
        request.parameters.max_tokens = 1000
        request.parameters.n = 4
        request.parameters.stop.ignore_eos = True
        calls = []
        error = None
        # However fast they are taken in, they soon come faster.
        while error is None:
            self.assertLess(len(calls), 1000)
            calls.append(self.generation.Generate(request, timeout=PATIENCE_S))
            error = next((call for call in calls if call.done() and call.code() is not None), None)
        self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        _, details = details_of(error)
        for call in calls:
            call.cancel()
        retry = error_details_pb2.RetryInfo.FromString(details["google.rpc.RetryInfo"])
        self.assertEqual(retry.retry_delay.ToMilliseconds(), 1000)


if __name__ == "__main__":
    unittest.main()
