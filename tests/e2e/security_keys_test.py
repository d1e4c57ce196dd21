"""API keys: who gets in, how much of it, and files that change."""

import json
import pathlib
import signal
import subprocess
import tempfile
import unittest

import grpc
import health_pb2
import health_pb2_grpc
from google.protobuf import descriptor_pb2
from photon.v1 import admin_pb2, admin_pb2_grpc, document_pb2, document_pb2_grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

import programs
from programs import PATIENCE_S, SLOW, STORY
from security_support import bearer, create_key, eventually

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
OPEN_SERVICES = ("grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection")


def request(max_tokens=1, **parameters):
    return pb.GenerateRequest(
        prompt={"text": STORY},
        parameters={"max_tokens": max_tokens, "stop": {"ignore_eos": True}, **parameters},
    )


def length_delimited(message):
    """(field number, bytes) of the fields that have a length."""

    def varint(at):
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value, at

    at = 0
    while at < len(message):
        tag, at = varint(at)
        value, at = varint(at)
        if tag & 7 == 2:
            yield tag >> 3, message[at : at + value]
            at += value


def reflect(channel, field, text):
    """The server's answer to a reflection request with one string field."""
    call = channel.stream_stream(REFLECTION)
    query = bytes([field << 3 | 2, len(text)]) + text.encode()
    return next(call(iter([query]), timeout=PATIENCE_S))


def all_methods(channel):
    """'/service/Method' of every service, as reflection tells."""
    services = []
    for number, value in length_delimited(reflect(channel, 7, "*")):
        if number == 6:
            for _, service in length_delimited(value):
                services.append(dict(length_delimited(service))[1].decode())
    for service in services:
        for number, value in length_delimited(reflect(channel, 4, service)):
            if number != 4:
                continue
            for _, file in length_delimited(value):
                descriptor = descriptor_pb2.FileDescriptorProto.FromString(file)
                for found in descriptor.service:
                    if f"{descriptor.package}.{found.name}" == service:
                        for method in found.method:
                            yield service, f"/{service}/{method.name}"


class KeysTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.file = pathlib.Path(directory.name) / "keys"

    def start(self, *keys, flags=()):
        """A server with these lines as its file, and a channel to it."""
        self.file.write_text("".join(keys))
        server = programs.ServerProcess("--api-keys", str(self.file), *flags)
        self.addCleanup(server.stop)
        channel = grpc.insecure_channel(server.address)
        self.addCleanup(channel.close)
        return server, channel

    def assertRefused(self, code, call):
        with self.assertRaises(grpc.RpcError) as caught:
            list(call)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        return caught.exception

    def test_every_method_of_every_service_but_health_needs_a_key(self):
        key, line = create_key("alice")
        _, channel = self.start(line, flags=("--reflection", "on"))
        methods = [name for service, name in all_methods(channel) if service not in OPEN_SERVICES]
        for expected in (
            "/photon.v1.GenerationService/Generate",
            "/photon.v1.GenerationService/GenerateBatch",
            "/photon.v1.DocumentService/CreateDocument",
            "/photon.v1.ModelService/GetModelInfo",
            "/photon.v1.AdminService/Drain",
            "/inference.GRPCInferenceService/ModelInfer",
            "/inference.GRPCInferenceService/ModelStreamInfer",
        ):
            self.assertIn(expected, methods)
        details = set()
        for method in methods:
            # Any method can be called so: what differs is how many messages may follow.
            call = channel.stream_stream(method)
            for metadata in (
                None,
                bearer(""),
                bearer(key[:-1]),
                bearer(key.upper()),
                (("authorization", f"Basic {key}"),),
                (("authorization", key),),
                bearer(key) + bearer("other"),
            ):
                with self.subTest(method=method, metadata=metadata):
                    refused = self.assertRefused(
                        grpc.StatusCode.UNAUTHENTICATED,
                        call(iter([b""]), metadata=metadata, timeout=PATIENCE_S),
                    )
                    details.add(refused.details())
        self.assertEqual(len(details), 1, "what is wrong with a key is not told")

    def test_a_key_opens_what_is_not_for_administration(self):
        key, line = create_key("alice")
        _, channel = self.start(line)
        models = model_pb2_grpc.ModelServiceStub(channel)
        info = models.GetModelInfo(
            model_pb2.GetModelInfoRequest(), metadata=bearer(key), timeout=PATIENCE_S
        )
        self.assertTrue(info.name)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        self.assertTrue(
            list(stub.Generate(request(), metadata=bearer(key), timeout=PATIENCE_S))[-1].result
        )

    def test_health_needs_no_key(self):
        _, channel = self.start()
        status = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
        )
        self.assertEqual(status.status, health_pb2.HealthCheckResponse.SERVING)

    def test_methods_that_do_not_exist_are_told_so(self):
        key, line = create_key("alice")
        _, channel = self.start(line)
        for metadata in (None, bearer(key)):
            self.assertRefused(
                grpc.StatusCode.UNIMPLEMENTED,
                channel.stream_stream("/photon.v1.Nobody/Nothing")(
                    iter([b""]), metadata=metadata, timeout=PATIENCE_S
                ),
            )

    def test_reflection_is_off_where_keys_are_needed(self):
        _, channel = self.start()
        with self.assertRaises(grpc.RpcError) as caught:
            reflect(channel, 7, "*")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_the_request_rate_is_limited_and_the_wait_is_told(self):
        key, line = create_key("alice", "--requests-per-minute", "2")
        other_key, other_line = create_key("bob")
        _, channel = self.start(line, other_line)
        info = model_pb2_grpc.ModelServiceStub(channel).GetModelInfo
        empty = model_pb2.GetModelInfoRequest()
        for _ in range(2):
            info(empty, metadata=bearer(key), timeout=PATIENCE_S)
        with self.assertRaises(grpc.RpcError) as caught:
            info(empty, metadata=bearer(key), timeout=PATIENCE_S)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        trailers = dict(caught.exception.trailing_metadata())
        self.assertLessEqual(int(trailers["grpc-retry-pushback-ms"]), 30_000)
        self.assertGreater(int(trailers["grpc-retry-pushback-ms"]), 0)
        info(empty, metadata=bearer(other_key), timeout=PATIENCE_S)

    def test_concurrent_requests_are_limited(self):
        key, line = create_key("alice", "--max-concurrent-requests", "1")
        _, channel = self.start(line, flags=SLOW)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        running = stub.Generate(request(900), metadata=bearer(key), timeout=PATIENCE_S)
        next(running)
        self.assertRefused(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            stub.Generate(request(), metadata=bearer(key), timeout=PATIENCE_S),
        )
        list(running)
        # The server learns that the stream is over when its client does, or just after.
        for _ in range(1000):
            try:
                list(stub.Generate(request(), metadata=bearer(key), timeout=PATIENCE_S))
                return
            except grpc.RpcError as error:
                self.assertEqual(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.fail("the place is not given back")

    def test_tokens_are_charged_as_they_are_used(self):
        key, line = create_key("alice", "--tokens-per-minute", "20")
        _, channel = self.start(line)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        list(stub.Generate(request(100), metadata=bearer(key), timeout=PATIENCE_S))
        refused = self.assertRefused(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            stub.Generate(request(), metadata=bearer(key), timeout=PATIENCE_S),
        )
        self.assertIn("tokens per minute", refused.details())
        self.assertGreater(int(dict(refused.trailing_metadata())["grpc-retry-pushback-ms"]), 60_000)

    def test_a_priority_above_the_keys_is_denied(self):
        key, line = create_key("alice")
        high_key, high_line = create_key("bob", "--max-priority", "high")
        _, channel = self.start(line, high_line)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        refused = self.assertRefused(
            grpc.StatusCode.PERMISSION_DENIED,
            stub.Generate(
                request(priority=pb.PRIORITY_HIGH), metadata=bearer(key), timeout=PATIENCE_S
            ),
        )
        self.assertIn("parameters.priority", refused.details())
        list(
            stub.Generate(
                request(priority=pb.PRIORITY_HIGH), metadata=bearer(high_key), timeout=PATIENCE_S
            )
        )

    def test_a_file_that_changes_is_read_again(self):
        key, line = create_key("alice")
        new_key, new_line = create_key("bob")
        server, channel = self.start(line)
        self.assertEqual(self.outcome(channel, new_key), grpc.StatusCode.UNAUTHENTICATED)
        self.file.write_text(new_line)
        eventually(lambda: self.outcome(channel, new_key) is None)
        self.assertEqual(self.outcome(channel, key), grpc.StatusCode.UNAUTHENTICATED)

    def test_a_broken_file_keeps_the_old_keys_and_is_reported_line_by_line(self):
        key, line = create_key("alice")
        server, channel = self.start(line)
        self.file.write_text('nonsense\n{"name": "bob"}\n')
        eventually(lambda: "line 2: sha256: is missing" in server.log)
        self.assertIn("line 1: ", server.log)
        self.assertIsNone(self.outcome(channel, key))

    def test_sighup_reads_the_file_at_once(self):
        key, line = create_key("alice")
        server, channel = self.start(line, flags=("--reload-interval", "3600"))
        new_key, new_line = create_key("bob")
        self.file.write_text(new_line)
        server.signal(signal.SIGHUP)
        eventually(lambda: self.outcome(channel, new_key) is None)

    def test_a_server_does_not_start_with_a_broken_file(self):
        self.file.write_text("nonsense\n{}\n")
        process = subprocess.run(
            [programs.SERVER, "--model", programs.MODEL, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
            + ["--api-keys", str(self.file)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        self.assertEqual(process.returncode, 2, process.stderr)
        self.assertIn("line 1: ", process.stderr)
        self.assertIn("line 2: name: is missing", process.stderr)

    def test_tenants_follow_names_not_keys(self):
        key, line = create_key("alice")
        second_key, second_line = create_key("alice")
        other_key, other_line = create_key("bob")
        _, channel = self.start(line, second_line, other_line)
        stub = document_pb2_grpc.DocumentServiceStub(channel)
        messages = [
            document_pb2.CreateDocumentRequest(settings={"ttl_s": 60}),
            document_pb2.CreateDocumentRequest(text=STORY),
        ]
        created = stub.CreateDocument(iter(messages), metadata=bearer(key), timeout=PATIENCE_S)
        get = document_pb2.GetDocumentRequest(document_id=created.document.id)
        stub.GetDocument(get, metadata=bearer(second_key), timeout=PATIENCE_S)
        with self.assertRaises(grpc.RpcError) as caught:
            stub.GetDocument(get, metadata=bearer(other_key), timeout=PATIENCE_S)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_keys_stand_in_the_file_as_hashes_only(self):
        key, line = create_key("alice", "--admin", "--max-priority", "low")
        self.assertEqual(
            {**json.loads(line), "sha256": ""},
            {"name": "alice", "sha256": "", "max_priority": "low", "admin": True},
        )
        self.assertNotIn(key.removeprefix("photon_"), line)
        server, channel = self.start(line)
        self.outcome(channel, key)
        server.stop()
        self.assertNotIn(key.removeprefix("photon_"), server.log)

    def outcome(self, channel, key):
        """The code of a call with this key; None: it succeeds."""
        try:
            model_pb2_grpc.ModelServiceStub(channel).GetModelInfo(
                model_pb2.GetModelInfoRequest(), metadata=bearer(key), timeout=PATIENCE_S
            )
            return None
        except grpc.RpcError as error:
            return error.code()


class AdminTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        file = pathlib.Path(directory.name) / "keys"
        self.key, line = create_key("alice")
        self.admin_key, admin_line = create_key("root", "--admin")
        file.write_text(line + admin_line)
        self.server = programs.ServerProcess("--api-keys", str(file), *SLOW)
        self.addCleanup(self.server.stop)
        self.channel = grpc.insecure_channel(self.server.address)
        self.addCleanup(self.channel.close)
        self.admin = admin_pb2_grpc.AdminServiceStub(self.channel)
        self.generation = generation_pb2_grpc.GenerationServiceStub(self.channel)

    def test_administration_needs_a_key_for_it(self):
        for method, message in (
            (self.admin.Drain, admin_pb2.DrainRequest()),
            (self.admin.AbortRequest, admin_pb2.AbortRequestRequest(request_id="x")),
            (self.admin.GetStats, admin_pb2.GetStatsRequest()),
        ):
            with self.assertRaises(grpc.RpcError) as caught:
                method(message, metadata=bearer(self.key), timeout=PATIENCE_S)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.PERMISSION_DENIED)

    def test_a_request_is_aborted_by_its_id(self):
        metadata = bearer(self.key) + (("x-request-id", "story-1"),)
        stream = self.generation.Generate(request(900), metadata=metadata, timeout=PATIENCE_S)
        next(stream)
        abort = admin_pb2.AbortRequestRequest(request_id="story-1")
        answer = self.admin.AbortRequest(
            abort, metadata=bearer(self.admin_key), timeout=PATIENCE_S
        )
        self.assertEqual(answer.num_aborted, 1)
        with self.assertRaises(grpc.RpcError) as caught:
            list(stream)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.CANCELLED)
        eventually(lambda: self.stats().pages.in_use == 0)
        with self.assertRaises(grpc.RpcError) as caught:
            self.admin.AbortRequest(abort, metadata=bearer(self.admin_key), timeout=PATIENCE_S)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def stats(self):
        return self.admin.GetStats(
            admin_pb2.GetStatsRequest(), metadata=bearer(self.admin_key), timeout=PATIENCE_S
        )

    def test_stats_add_up(self):
        list(self.generation.Generate(request(20), metadata=bearer(self.key), timeout=PATIENCE_S))
        with self.assertRaises(grpc.RpcError):
            list(self.generation.Generate(request(20), timeout=PATIENCE_S))
        # They are as of the last step, which may still be under way when its tokens are read.
        eventually(lambda: self.stats().num_generated_tokens == 20)
        stats = self.stats()
        pages = stats.pages
        self.assertEqual(pages.free + pages.in_use + pages.cached + pages.pinned, pages.total)
        self.assertGreater(stats.num_prompt_tokens, 0)
        self.assertEqual(stats.num_connections, 1)
        self.assertEqual(stats.num_requests_refused["unknown_key"], 1)

    def test_a_drain_ends_the_server_when_its_streams_have_ended(self):
        stream = self.generation.Generate(
            request(200), metadata=bearer(self.key), timeout=PATIENCE_S
        )
        next(stream)
        self.admin.Drain(
            admin_pb2.DrainRequest(), metadata=bearer(self.admin_key), timeout=PATIENCE_S
        )
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.generation.Generate(request(), metadata=bearer(self.key), timeout=PATIENCE_S))
        # It finds nobody, or crosses what tells the client to go away.
        self.assertIn(
            caught.exception.code(), (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        )
        self.assertEqual(list(stream)[-1].result.finish_reason, pb.FINISH_REASON_LENGTH)
        self.assertEqual(self.server.wait(), 0)


class OpenServerTest(unittest.TestCase):
    def test_administration_is_open_on_loopback_without_keys(self):
        with programs.server() as server, programs.channel_to(server) as channel:
            stats = admin_pb2_grpc.AdminServiceStub(channel).GetStats(
                admin_pb2.GetStatsRequest(), timeout=PATIENCE_S
            )
            self.assertGreater(stats.pages.total, 0)

    def test_administration_is_off_elsewhere_without_keys(self):
        with programs.server("--insecure", listen="0.0.0.0:0") as server:
            with programs.channel_to(server) as channel:
                with self.assertRaises(grpc.RpcError) as caught:
                    admin_pb2_grpc.AdminServiceStub(channel).GetStats(
                        admin_pb2.GetStatsRequest(), timeout=PATIENCE_S
                    )
                self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)


class KeysCommandTest(unittest.TestCase):
    def run_keys(self, *arguments):
        return subprocess.run(
            [programs.SERVER, "keys", *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def test_names_and_limits_that_make_no_sense_are_wrong_usage(self):
        for arguments in (
            [],
            ["create"],
            ["create", "white space"],
            ["create", "alice", "--requests-per-minute", "0"],
            ["create", "alice", "--max-priority", "urgent"],
        ):
            with self.subTest(arguments=arguments):
                result = self.run_keys(*arguments)
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertFalse(result.stdout)

    def test_a_file_can_be_checked(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(create_key("alice")[1] + create_key("bob")[1])
            file.flush()
            result = self.run_keys("check", file.name)
            self.assertEqual((result.returncode, result.stdout), (0, "2 keys\n"))
            file.write("nonsense\n")
            file.flush()
            result = self.run_keys("check", file.name)
            self.assertEqual(result.returncode, 1)
            self.assertIn("line 3: ", result.stderr)


if __name__ == "__main__":
    unittest.main()
