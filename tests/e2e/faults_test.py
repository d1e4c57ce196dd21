"""Faults on the way between clients and the server: whatever happens there, pages come back and others are served."""

import contextlib
import os
import re
import select
import signal
import socket
import struct
import subprocess
import threading
import unittest

import grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc

import programs
from programs import PATIENCE_S, SLOW, STORY
from security_support import eventually

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4

# What the server is told to be patient for, where a test waits for the end of its patience.
IMPATIENT = ("--keepalive-interval", "1", "--keepalive-timeout", "1")


def frame(kind, payload=b"", flags=0, stream=0):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name, value):
    """A header in HPACK without compression."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


GENERATE_HEADERS = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/photon.v1.GenerationService/Generate"),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)


def message(request):
    content = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(content)) + content


def long_request(max_tokens=1500):
    return pb.GenerateRequest(
        prompt={"text": STORY},
        parameters={"max_tokens": max_tokens, "stop": {"ignore_eos": True}},
    )


def connect(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def reset(connection):
    """Closes as a machine that has forgotten the connection does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def send_all_and_read_to_the_end(connection, parts):
    """What the server answers until it closes, which it must do once nothing more comes."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        for part in parts:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(65536):
            answer += data
    return answer


class SilentProxy:
    """Carries bytes both ways until it falls silent; then it keeps its sockets, and carries nothing."""

    def __init__(self, address):
        self._target = address
        self._silent = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._stop, stopped = socket.socketpair()
        self._sockets += [self._stop, stopped]
        self._thread = threading.Thread(target=self._run, args=(stopped,))
        self._thread.start()

    @property
    def address(self):
        return "127.0.0.1:%d" % self._listener.getsockname()[1]

    def fall_silent(self):
        self._silent.set()

    def close(self):
        self._stop.send(b"x")
        self._thread.join()
        for each in self._sockets:
            each.close()

    def _run(self, stopped):
        other = {}
        while True:
            readable, _, _ = select.select([self._listener, stopped, *other], [], [])
            if stopped in readable:
                return
            for source in readable:
                if source is self._listener:
                    near, _ = source.accept()
                    far = connect(self._target)
                    other[near], other[far] = far, near
                    self._sockets += [near, far]
                    continue
                data = source.recv(65536)
                if not data:
                    del other[source]
                elif not self._silent.is_set():
                    other[source].sendall(data)


class FaultsTest(unittest.TestCase):
    def start(self, *flags):
        server = programs.ServerProcess(*flags)
        self.addCleanup(server.stop)
        return server

    def assertServes(self, server):
        """Pages are back, and whoever comes next is served, on both ports."""
        eventually(lambda: programs.stats(server).pages.in_use == 0)
        stats = programs.stats(server)
        self.assertEqual((stats.num_running, stats.num_waiting), (0, 0))
        with programs.channel_to(server) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            request = pb.GenerateRequest(prompt={"text": STORY}, parameters={"max_tokens": 4})
            *_, last = stub.Generate(request, timeout=PATIENCE_S)
            self.assertTrue(last.HasField("result"))
        port = int(re.search(r":(\d+)/", server.http_url).group(1))
        with connect(f"127.0.0.1:{port}") as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            self.assertTrue(connection.recv(100).startswith(b"HTTP/1.1 200"))

    def http_stream(self, server):
        """A connection that has asked for a long completion, and has its first bytes."""
        port = int(re.search(r":(\d+)/", server.http_url).group(1))
        connection = connect(f"127.0.0.1:{port}")
        body = b'{"model": "%s", "prompt": "Once", "max_tokens": 1500, "stream": true, "ignore_eos": true}' % (
            os.path.basename(programs.MODEL.rstrip("/")).encode()
        )
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        self.assertTrue(connection.recv(100).startswith(b"HTTP/1.1 200"))
        return connection

    @contextlib.contextmanager
    def command_line_client(self, server):
        """`photon generate` in the middle of a long stream."""
        command = [programs.CLI, "generate", "--server", server.address, "--ignore-eos"]
        client = subprocess.Popen(
            [*command, "--max-tokens", "1500", STORY], stdout=subprocess.PIPE
        )
        try:
            self.assertTrue(client.stdout.read(1))
            yield client
        finally:
            client.kill()
            client.wait()
            client.stdout.close()

    def test_a_client_that_is_killed_frees_its_pages(self):
        server = self.start(*SLOW)
        with self.command_line_client(server) as client:
            client.kill()
            client.wait()
            self.assertServes(server)

    def test_a_client_that_is_stopped_loses_its_connection(self):
        server = self.start(*SLOW, *IMPATIENT)
        with self.command_line_client(server) as client:
            client.send_signal(signal.SIGSTOP)
            self.assertServes(server)
            client.send_signal(signal.SIGCONT)
            self.assertNotEqual(client.wait(PATIENCE_S), 0, "its stream went on")

    def test_a_network_that_falls_silent_frees_its_pages(self):
        server = self.start(*SLOW, *IMPATIENT)
        proxy = SilentProxy(server.address)
        self.addCleanup(proxy.close)
        with grpc.insecure_channel(proxy.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            stream = stub.Generate(long_request())
            next(stream)
            proxy.fall_silent()
            self.assertServes(server)
            stream.cancel()

    def test_http_clients_that_vanish_free_their_pages(self):
        server = self.start(*SLOW)
        for leave in (reset, socket.socket.close):
            with self.subTest(leave=leave.__name__):
                leave(self.http_stream(server))
                self.assertServes(server)

    def test_a_flood_of_resets_leaves_the_server_serving(self):
        server = self.start()
        http = "127.0.0.1:" + re.search(r":(\d+)/", server.http_url).group(1)
        begin = PREFACE + frame(SETTINGS) + frame(HEADERS, GENERATE_HEADERS, END_HEADERS, 1)
        for i in range(1000):
            connection = connect(server.address)
            connection.sendall(begin[: i % (len(begin) + 1)])
            reset(connection)
            connection = connect(http)
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"[: i % 40])
            reset(connection)
        self.assertServes(server)
        eventually(lambda: programs.stats(server).num_connections == 1)

    def test_streams_that_are_reset_at_once_leave_the_server_serving(self):
        server = self.start()
        with connect(server.address) as connection:
            connection.sendall(PREFACE + frame(SETTINGS))
            try:
                for stream in range(1, 8001, 2):
                    connection.sendall(
                        frame(HEADERS, GENERATE_HEADERS, END_HEADERS, stream)
                        + frame(DATA, message(long_request()), END_STREAM, stream)
                        + frame(RST_STREAM, struct.pack(">I", 8), 0, stream)
                    )
            except OSError:
                pass  # the server has had enough of it
            self.assertServes(server)

    def test_what_is_cut_anywhere_is_closed(self):
        server = self.start("--handshake-timeout", "1")
        whole = (
            PREFACE
            + frame(SETTINGS)
            + frame(HEADERS, GENERATE_HEADERS, END_HEADERS, 1)
            + frame(DATA, message(long_request(max_tokens=8)), END_STREAM, 1)
        )
        for length in range(0, len(whole), 3):
            with connect(server.address) as connection:
                send_all_and_read_to_the_end(connection, [whole[:length]])
        self.assertServes(server)

    def test_frames_that_break_the_protocol_end_their_connection(self):
        server = self.start()
        begin = PREFACE + frame(SETTINGS)
        headers = frame(HEADERS, GENERATE_HEADERS, END_HEADERS, 1)
        for name, sent in (
            ("nonsense", os.urandom(4096)),
            ("http/1", b"GET / HTTP/1.1\r\n\r\n"),
            ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(505)),
            ("huge frame", begin + b"\xff\xff\xff" + frame(DATA)[3:]),
            ("data without headers", begin + frame(DATA, b"x", 0, 1)),
            ("even stream", begin + frame(HEADERS, GENERATE_HEADERS, END_HEADERS, 2)),
            ("continuation alone", begin + frame(CONTINUATION, b"", END_HEADERS, 1)),
            ("broken hpack", begin + frame(HEADERS, b"\xff" * 64, END_HEADERS, 1)),
            ("window overflow", begin + frame(WINDOW_UPDATE, b"\x7f\xff\xff\xff") * 3),
            ("short ping", begin + frame(PING, b"123")),
            ("headers without end", begin + frame(HEADERS, GENERATE_HEADERS, 0, 1) + headers),
        ):
            with self.subTest(name=name), connect(server.address) as connection:
                send_all_and_read_to_the_end(connection, [sent])
        self.assertServes(server)

    def test_a_message_that_is_not_what_it_says_ends_its_call(self):
        server = self.start("--max-message-bytes", "4096")
        begin = PREFACE + frame(SETTINGS) + frame(HEADERS, GENERATE_HEADERS, END_HEADERS, 1)
        for name, sent in (
            ("longer than it says", b"\0" + struct.pack(">I", 2) + b"12345"),
            ("longer than allowed", b"\0" + struct.pack(">I", 2**31 - 1) + b"1"),
            ("compressed with nothing", b"\1" + struct.pack(">I", 3) + b"123"),
            ("no message", b""),
            ("not protobuf", b"\0" + struct.pack(">I", 4) + b"\xff\xff\xff\xff"),
        ):
            with self.subTest(name=name), connect(server.address) as connection:
                sent = begin + frame(DATA, sent, END_STREAM, 1)
                send_all_and_read_to_the_end(connection, [sent])
        self.assertServes(server)

    def test_headers_that_never_end_are_cut_off(self):
        server = self.start("--http-max-header-bytes", "4096", "--max-metadata-bytes", "8192")
        http = "127.0.0.1:" + re.search(r":(\d+)/", server.http_url).group(1)
        headers = [b"x-%d: %s\r\n" % (i, b"y" * 1000) for i in range(4000)]
        with connect(http) as connection:
            answer = send_all_and_read_to_the_end(connection, [b"GET / HTTP/1.1\r\n", *headers])
            # A reset may overtake it.
            self.assertTrue(answer == b"" or answer.startswith(b"HTTP/1.1 431"), answer)
        begin = PREFACE + frame(SETTINGS) + frame(HEADERS, GENERATE_HEADERS, 0, 1)
        headers = [literal(b"x-%d" % i, b"y" * 120) * 50 for i in range(4000)]
        with connect(server.address) as connection:
            frames = [frame(CONTINUATION, header, 0, 1) for header in headers]
            send_all_and_read_to_the_end(connection, [begin, *frames])
        self.assertServes(server)


if __name__ == "__main__":
    unittest.main()
