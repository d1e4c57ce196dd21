"""Spans of requests, as a collector gets them: read with OpenTelemetry's own messages."""

import base64
import http.server
import json
import socket
import threading
import time
import unittest
import urllib.request

import grpc
from photon.v1 import document_pb2, document_pb2_grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc

import programs
from programs import PATIENCE_S

try:
    from google.protobuf import json_format
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
except ImportError:
    raise unittest.SkipTest("no opentelemetry-proto package: run scripts/install_test_clients")

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SECRET = "the quick brown fox"


def hex_to_base64(body):
    """OTLP writes ids in hexadecimal, protobuf's JSON in base64."""
    for resource in body["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for key in ("traceId", "spanId", "parentSpanId"):
                    if key in span:
                        span[key] = base64.b64encode(bytes.fromhex(span[key])).decode()
    return body


class Collector:
    """Takes what is posted to /v1/traces."""

    def __init__(self):
        self.requests = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.requests.append((self.path, self.headers["content-type"], body))
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = "http://127.0.0.1:%d" % self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def request(max_tokens, **parameters):
    return pb.GenerateRequest(
        prompt={"text": SECRET},
        parameters={"max_tokens": max_tokens, "stop": {"ignore_eos": True}, **parameters},
    )


def attributes(span):
    values = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind)
        values[attribute.key] = (
            [item.string_value for item in value.values] if kind == "array_value" else value
        )
    return values


class TracesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        collector = Collector()
        cls.addClassCleanup(collector.close)
        server = programs.ServerProcess("--otlp-endpoint", collector.endpoint, "--name", "tale")
        cls.addClassCleanup(server.stop)
        cls.before = time.time_ns()
        with grpc.insecure_channel(server.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)

            def generate(message, flags, request_id):
                traceparent = ("traceparent", f"00-{TRACE}-{PARENT}-{flags}")
                metadata = [("x-request-id", request_id)] + ([traceparent] if flags else [])
                try:
                    return list(stub.Generate(message, timeout=PATIENCE_S, metadata=metadata))
                except grpc.RpcError as error:
                    return error

            generate(request(5), "01", "sampled")
            generate(request(5), "00", "not sampled")
            generate(request(5), None, "of no trace")
            generate(request(5, sampling={"top_p": 2}), "01", "refused")
            documents = document_pb2_grpc.DocumentServiceStub(channel)
            upload = [
                document_pb2.CreateDocumentRequest(settings={}),
                document_pb2.CreateDocumentRequest(text=30 * programs.STORY),
            ]
            documents.CreateDocument(
                iter(upload), timeout=PATIENCE_S, metadata=[("x-request-id", "upload")]
            )
        completion = urllib.request.Request(
            server.http_url + "v1/completions",
            json.dumps({"model": "tale", "prompt": SECRET, "max_tokens": 3}).encode(),
            {
                "content-type": "application/json",
                "x-request-id": "completion",
                "traceparent": f"00-{TRACE}-{PARENT}-01",
            },
        )
        urllib.request.urlopen(completion, timeout=PATIENCE_S).close()
        # What has not been sent yet is sent when the server ends.
        server.stop()
        cls.after = time.time_ns()
        cls.requests = collector.requests
        cls.messages = [
            json_format.ParseDict(hex_to_base64(json.loads(body)), ExportTraceServiceRequest())
            for _, _, body in collector.requests
        ]
        cls.spans = {
            attributes(span)["photon.request_id"]: span
            for message in cls.messages
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }

    def test_requests_have_a_span_each_unless_their_trace_is_not_sampled(self):
        self.assertEqual(
            sorted(self.spans), ["completion", "of no trace", "refused", "sampled", "upload"]
        )

    def test_bodies_go_where_otlp_has_them_and_name_the_server(self):
        for path, content_type, _ in self.requests:
            self.assertEqual((path, content_type), ("/v1/traces", "application/json"))
        for message in self.messages:
            for resource in message.resource_spans:
                self.assertEqual(attributes(resource.resource)["service.name"], "photon-server")

    def test_a_span_is_a_child_of_the_clients(self):
        span = self.spans["sampled"]
        self.assertEqual(span.trace_id.hex(), TRACE)
        self.assertEqual(span.parent_span_id.hex(), PARENT)
        self.assertEqual(len(span.span_id), 8)
        self.assertEqual(span.kind, Span.SPAN_KIND_SERVER)
        self.assertEqual(span.name, "photon.v1.GenerationService/Generate")
        root = self.spans["of no trace"]
        self.assertEqual(len(root.trace_id), 16)
        self.assertNotEqual(root.trace_id.hex(), TRACE)
        self.assertEqual(root.parent_span_id, b"")

    def test_a_span_says_what_was_used(self):
        values = attributes(self.spans["sampled"])
        self.assertEqual(values["rpc.system"], "grpc")
        self.assertEqual(values["rpc.service"], "photon.v1.GenerationService")
        self.assertEqual(values["rpc.method"], "Generate")
        self.assertEqual(values["rpc.grpc.status_code"], 0)
        self.assertEqual(values["gen_ai.request.model"], "tale")
        self.assertEqual(values["gen_ai.usage.output_tokens"], 5)
        self.assertGreater(values["gen_ai.usage.input_tokens"], 1)
        self.assertEqual(values["gen_ai.response.finish_reasons"], ["length"])
        values = attributes(self.spans["completion"])
        self.assertEqual(values["http.request.method"], "POST")
        self.assertEqual(values["url.path"], "/v1/completions")
        self.assertEqual(values["http.response.status_code"], 200)
        self.assertEqual(values["gen_ai.usage.output_tokens"], 3)

    def test_events_are_in_their_order(self):
        for request_id, names in (
            ("sampled", ["admitted", "first_token"]),
            ("upload", ["admitted"]),
            ("refused", []),
        ):
            span = self.spans[request_id]
            self.assertEqual([event.name for event in span.events], names)
            times = [
                self.before,
                span.start_time_unix_nano,
                *(event.time_unix_nano for event in span.events),
                span.end_time_unix_nano,
                self.after,
            ]
            self.assertEqual(times, sorted(times))

    def test_what_a_client_did_wrong_is_no_error_of_the_server(self):
        span = self.spans["refused"]
        self.assertEqual(
            attributes(span)["rpc.grpc.status_code"], grpc.StatusCode.INVALID_ARGUMENT.value[0]
        )
        self.assertEqual(span.status.code, Status.STATUS_CODE_UNSET)

    def test_what_was_asked_is_not_in_it(self):
        for _, _, body in self.requests:
            self.assertNotIn(SECRET.encode(), body)


class AbsentCollectorTest(unittest.TestCase):
    def assertHarmless(self, endpoint, mention):
        with programs.server("--otlp-endpoint", endpoint) as server:
            with programs.channel_to(server) as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                for _ in range(20):
                    result = list(stub.Generate(request(5), timeout=PATIENCE_S))[-1].result
                    self.assertEqual(result.usage.generated_tokens, 5)
        self.assertIn(mention, server.log)

    def test_a_collector_that_is_not_there_harms_nobody(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and never listens
            port = taken.getsockname()[1]
            self.assertHarmless(f"http://127.0.0.1:{port}", f"127.0.0.1:{port} does not take spans")

    def test_a_collector_that_never_answers_does_not_hold_up_the_end(self):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            self.assertHarmless(f"http://127.0.0.1:{port}", f"127.0.0.1:{port} does not take spans")

    def test_an_endpoint_that_is_none_is_a_usage_error(self):
        for endpoint in ("collector:4318", "https://collector:4318", "http://"):
            with self.subTest(endpoint=endpoint), self.assertRaises(RuntimeError) as refused:
                programs.ServerProcess("--otlp-endpoint", endpoint)
            self.assertIn(f"--otlp-endpoint: expected http://HOST:PORT", str(refused.exception))


if __name__ == "__main__":
    unittest.main()
