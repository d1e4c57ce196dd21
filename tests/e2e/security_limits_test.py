"""What a connection and a request may be, from stock and from hostile clients."""

import socket
import struct
import threading
import unittest

import grpc
import health_pb2
import health_pb2_grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

import programs
from programs import PATIENCE_S, SLOW, STORY
from security_support import eventually

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7


def frame(kind, payload=b"", flags=0, stream=0):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def frames(connection):
    """(kind, payload) of what the server sends, until it closes."""
    file = connection.makefile("rb")
    try:
        while header := file.read(9):
            if len(header) < 9:
                return
            yield header[3], file.read(int.from_bytes(header[:3], "big"))
    except ConnectionResetError:
        return


def connect(server):
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def check(channel):
    return health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
    )


def long_request():
    return pb.GenerateRequest(
        prompt={"text": STORY},
        parameters={"max_tokens": 900, "stop": {"ignore_eos": True}},
    )


class LimitsTest(unittest.TestCase):
    def start(self, *flags):
        server = programs.ServerProcess(*flags)
        self.addCleanup(server.stop)
        return server

    def channel(self, server, *options, **arguments):
        options = (("grpc.use_local_subchannel_pool", 1), *options)
        channel = grpc.insecure_channel(server.address, options, **arguments)
        self.addCleanup(channel.close)
        return channel

    def assertCode(self, code, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())

    def test_messages_above_the_limit_are_refused(self):
        channel = self.channel(self.start("--max-message-bytes", "64KiB"))
        tokenize = model_pb2_grpc.ModelServiceStub(channel).Tokenize
        tokenize(model_pb2.TokenizeRequest(text="a" * 60_000), timeout=PATIENCE_S)
        self.assertCode(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            lambda: tokenize(model_pb2.TokenizeRequest(text="a" * 70_000), timeout=PATIENCE_S),
        )

    def test_packed_messages_are_refused_so_that_small_ones_stay_small(self):
        channel = self.channel(self.start(), compression=grpc.Compression.Gzip)
        tokenize = model_pb2_grpc.ModelServiceStub(channel).Tokenize
        # Three megabytes unpacked, and three thousand bytes on the way.
        bomb = model_pb2.TokenizeRequest(text="a" * 3_000_000)
        self.assertCode(
            grpc.StatusCode.UNIMPLEMENTED, lambda: tokenize(bomb, timeout=PATIENCE_S)
        )

    def test_metadata_above_the_limit_is_refused(self):
        server = self.start("--max-metadata-bytes", "8KiB")
        other = self.channel(server)
        check(other)
        channel = self.channel(server)
        stub = health_pb2_grpc.HealthStub(channel)
        empty = health_pb2.HealthCheckRequest()
        stub.Check(empty, metadata=(("x", "a" * 7000),), timeout=PATIENCE_S)
        self.assertCode(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            lambda: stub.Check(empty, metadata=(("x", "a" * 9000),), timeout=PATIENCE_S),
        )
        # gRPC may end the connection that it came on, and no other.
        check(other)

    def test_calls_beyond_the_streams_of_a_connection_wait_their_turn(self):
        server = self.start("--max-streams", "2", *SLOW)
        channel = self.channel(server)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        streams = [stub.Generate(long_request(), timeout=PATIENCE_S) for _ in range(2)]
        for stream in streams:
            next(stream)
        with self.assertRaises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=0.2)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        check(self.channel(server))
        streams[0].cancel()
        check(channel)
        streams[1].cancel()

    def test_connections_beyond_the_limit_are_closed_until_others_end(self):
        server = self.start("--max-connections", "2")
        channel = self.channel(server)
        check(channel)
        silent = connect(server)
        self.addCleanup(silent.close)
        self.assertTrue(next(frames(silent)), "the server's settings")
        with connect(server) as refused:
            self.assertEqual(list(frames(refused)), [])
        check(channel)
        silent.close()

        def let_in():
            with connect(server) as connection:
                return next(frames(connection), None) is not None

        eventually(let_in)

    def test_one_address_cannot_take_all_connections(self):
        server = self.start("--max-connections-per-address", "1")
        check(self.channel(server))
        with connect(server) as refused:
            self.assertEqual(list(frames(refused)), [])

    def test_ten_thousand_connections_leave_the_server_serving(self):
        server = self.start("--max-connections", "64")
        channel = self.channel(server)
        check(channel)
        held = []
        for i in range(10_000):
            connection = connect(server)
            if i < 200:
                held.append(connection)
            else:
                connection.close()
        check(channel)
        for connection in held:
            connection.close()
        eventually(lambda: self.answers(server))

    def answers(self, server):
        with grpc.insecure_channel(
            server.address, (("grpc.use_local_subchannel_pool", 1),)
        ) as channel:
            try:
                check(channel)
                return True
            except grpc.RpcError:
                return False

    def test_clients_that_say_nothing_lose_their_connection(self):
        server = self.start("--handshake-timeout", "1")
        with connect(server) as silent:
            list(frames(silent))  # ends
        with connect(server) as slow:
            slow.sendall(PREFACE[:10])
            list(frames(slow))

    def test_clients_that_ping_too_often_lose_their_connection(self):
        server = self.start()
        with connect(server) as connection:
            connection.sendall(PREFACE + frame(SETTINGS))
            try:
                for _ in range(50):
                    connection.sendall(frame(PING, b"01234567"))
            except OSError:
                pass
            goaways = [payload for kind, payload in frames(connection) if kind == GOAWAY]
        self.assertTrue(goaways)
        self.assertIn(b"too_many_pings", goaways[-1])

    def test_what_is_not_http2_is_closed(self):
        server = self.start()
        for nonsense in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\0" * 1000):
            with self.subTest(nonsense=nonsense[:10]), connect(server) as connection:
                connection.sendall(nonsense)
                connection.shutdown(socket.SHUT_WR)
                list(frames(connection))
        check(self.channel(server))

    def test_connections_without_calls_are_closed_after_the_idle_time(self):
        server = self.start("--max-connection-idle", "1")
        with connect(server) as connection:
            connection.sendall(PREFACE + frame(SETTINGS))
            self.assertIn(GOAWAY, [kind for kind, _ in frames(connection)])

    def test_old_connections_are_replaced_while_their_calls_end(self):
        server = self.start("--max-connection-age", "1", *SLOW)
        channel = self.channel(server)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        states = []
        replaced = threading.Event()

        def see(state):
            states.append(state)
            if state == grpc.ChannelConnectivity.IDLE:
                replaced.set()

        channel.subscribe(see, try_to_connect=True)
        streams = [stub.Generate(long_request(), timeout=PATIENCE_S) for _ in range(4)]
        self.assertTrue(replaced.wait(PATIENCE_S), states)
        check(channel)
        for stream in streams:
            self.assertEqual(list(stream)[-1].result.usage.generated_tokens, 900)

    def test_calls_that_outlive_the_grace_of_an_old_connection_end(self):
        server = self.start(
            "--max-connection-age", "1", "--max-connection-age-grace", "1", *SLOW
        )
        channel = self.channel(server)
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
        )
        self.assertCode(grpc.StatusCode.UNAVAILABLE, lambda: list(watch))
        check(channel)

    def test_plaintext_elsewhere_than_on_loopback_must_be_asked_for(self):
        import subprocess

        for flags in (["--listen", "0.0.0.0:0"], ["--listen", "[::]:0"]):
            process = subprocess.run(
                [programs.SERVER, "--model", programs.MODEL, *flags],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            self.assertEqual(process.returncode, 2)
            self.assertIn("--insecure", process.stderr)


if __name__ == "__main__":
    unittest.main()
