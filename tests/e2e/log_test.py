"""The log as programs read it: a JSON object a line."""

import json
import unittest
import urllib.error
import urllib.request

import grpc
from photon.v1 import generation_pb2, generation_pb2_grpc

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
        done = [line for line in self.requests if line["status"] == "OK"]
        self.assertEqual(len(done), 1)
        self.assertEqual(done[0]["method"], "Generate")
        self.assertEqual(done[0]["id"], 'my "first" id')
        self.assertEqual(done[0]["finish_reason"], "length")
        self.assertEqual(done[0]["generated_tokens"], 5)
        self.assertGreater(done[0]["prompt_tokens"], 1)
        for name in ("queue_ms", "prefill_ms", "decode_ms"):
            self.assertGreaterEqual(done[0][name], 0)

    def test_requests_that_are_refused_have_theirs(self):
        refused = {line["method"]: line for line in self.requests if line["status"] != "OK"}
        self.assertEqual(sorted(refused), ["Generate", "completions"])
        self.assertIn("top_p", refused["Generate"]["error"])

    def test_a_line_names_the_trace_that_the_client_named(self):
        traces = [(line["method"], line["status"], line.get("trace_id")) for line in self.requests]
        self.assertCountEqual(
            traces,
            [
                ("Generate", "OK", TRACE),
                ("Generate", "INVALID_ARGUMENT", None),
                ("completions", "NOT_FOUND", TRACE),
            ],
        )

    def test_what_was_asked_is_not_in_it(self):
        self.assertNotIn(SECRET, self.log)


if __name__ == "__main__":
    unittest.main()
