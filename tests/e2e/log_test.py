"""The log as programs read it: a JSON object a line."""

import json
import unittest
import urllib.error
import urllib.request

import grpc
from inference import grpc_predict_v2_pb2 as kserve
from inference import grpc_predict_v2_pb2_grpc
from photon.v1 import document_pb2, document_pb2_grpc, generation_pb2, generation_pb2_grpc

import programs
from programs import PATIENCE_S

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SECRET = "the quick brown fox"


class LogTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        server = programs.ServerProcess("--log-format", "json")
        cls.addClassCleanup(server.stop)
        with grpc.insecure_channel(server.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            request = generation_pb2.GenerateRequest()
            request.prompt.text = SECRET
            request.parameters.max_tokens = 5
            request.parameters.stop.ignore_eos = True
            trace = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")
            metadata = (("x-request-id", 'my "first" id'), trace)
            for _ in stub.Generate(request, timeout=PATIENCE_S, metadata=metadata):
                pass
            request.parameters.sampling.top_p = 2
            try:
                next(stub.Generate(request, timeout=PATIENCE_S))
            except grpc.RpcError:
                pass
            upload = [
                document_pb2.CreateDocumentRequest(settings={}),
                document_pb2.CreateDocumentRequest(text=SECRET),
            ]
            documents = document_pb2_grpc.DocumentServiceStub(channel)
            documents.CreateDocument(iter(upload), timeout=PATIENCE_S, metadata=metadata)
            inference = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                inference.ModelInfer(
                    kserve.ModelInferRequest(model_name="none"),
                    timeout=PATIENCE_S,
                    metadata=metadata,
                )
            except grpc.RpcError:
                pass
        http = urllib.request.Request(
            server.http_url.partition('"')[0].rstrip("/") + "/v1/completions",
            json.dumps({"model": "none", "prompt": SECRET}).encode(),
            {"content-type": "application/json", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"},
        )
        try:
            urllib.request.urlopen(http, timeout=PATIENCE_S).close()
        except urllib.error.HTTPError as error:
            error.close()
        server.stop()
        cls.log = server.log
        cls.lines = [json.loads(line) for line in server.log.splitlines()]
        cls.requests = [line for line in cls.lines if line["event"] == "request"]

    def test_every_line_says_when_and_how_grave(self):
        for line in self.lines:
            self.assertRegex(line["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
            self.assertEqual(line["level"], "info")
            self.assertIn(line["event"], ("server", "request"))

    def test_a_request_has_one_line_with_what_became_of_it(self):
        lines = [line for line in self.requests if line["status"] == "OK"]
        self.assertEqual(len(lines), 2)
        done = {line["method"]: line for line in lines}
        self.assertEqual(sorted(done), ["CreateDocument", "Generate"])
        for line in lines:
            self.assertEqual(line["id"], 'my "first" id')
            self.assertGreater(line["prompt_tokens"], 1)
            for name in ("queue_ms", "prefill_ms", "decode_ms"):
                self.assertGreaterEqual(line[name], 0)
        self.assertEqual(done["Generate"]["finish_reason"], "length")
        self.assertEqual(done["Generate"]["generated_tokens"], 5)
        self.assertNotIn("finish_reason", done["CreateDocument"])
        self.assertEqual(done["CreateDocument"]["generated_tokens"], 0)

    def test_requests_that_are_refused_have_theirs(self):
        refused = {line["method"]: line for line in self.requests if line["status"] != "OK"}
        self.assertEqual(sorted(refused), ["Generate", "ModelInfer", "completions"])
        self.assertIn("top_p", refused["Generate"]["error"])

    def test_a_line_names_the_trace_that_the_client_named(self):
        traces = [(line["method"], line["status"], line.get("trace_id")) for line in self.requests]
        self.assertCountEqual(
            traces,
            [
                ("Generate", "OK", TRACE),
                ("Generate", "INVALID_ARGUMENT", None),
                ("CreateDocument", "OK", TRACE),
                ("ModelInfer", "NOT_FOUND", TRACE),
                ("completions", "NOT_FOUND", TRACE),
            ],
        )

    def test_what_was_asked_is_not_in_it(self):
        self.assertNotIn(SECRET, self.log)


if __name__ == "__main__":
    unittest.main()
