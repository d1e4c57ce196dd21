"""One server follows another on the same sockets, as under systemd."""

import json
import socket
import threading
import unittest
import urllib.request

import grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc

import programs
from programs import PATIENCE_S, SLOW, STORY

# Of new requests alone: gRPC never repeats one whose answer has begun.
RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "photon.v1.GenerationService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "1s",
                "maxBackoff": "20s",
                "backoffMultiplier": 2,
                # CANCELLED: gRPC's answer to a call that comes when a server has just begun to end.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}


def request(max_tokens):
    return pb.GenerateRequest(
        prompt={"text": STORY},
        parameters={"max_tokens": max_tokens, "stop": {"ignore_eos": True}},
    )


def listening_socket():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    return listener


class RestartTest(unittest.TestCase):
    def setUp(self):
        self.sockets = [self.enterContext(listening_socket()) for _ in range(2)]
        self.address = "127.0.0.1:%d" % self.sockets[0].getsockname()[1]
        self.url = "http://127.0.0.1:%d" % self.sockets[1].getsockname()[1]

    def serve(self, *flags):
        server = programs.ServerProcess(
            "--drain-timeout", str(PATIENCE_S), *SLOW, *flags, sockets=self.sockets
        )
        self.addCleanup(server.stop)
        return server

    def channel(self):
        return grpc.insecure_channel(
            self.address,
            options=[
                ("grpc.service_config", json.dumps(RETRIES)),
                # Each channel has a connection of its own.
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    def test_no_request_is_lost_when_a_server_follows_another(self):
        first = self.serve()
        stop = threading.Event()
        replies = []
        failures = []

        def load():
            with self.channel() as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                while not stop.is_set():
                    try:
                        replies.append(list(stub.Generate(request(64), timeout=PATIENCE_S))[-1])
                    except grpc.RpcError as error:
                        failures.append(error)

        clients = [threading.Thread(target=load) for _ in range(4)]
        for client in clients:
            client.start()
        with self.channel() as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            stream = stub.Generate(request(800), timeout=PATIENCE_S)
            messages = [next(stream)]
            second = self.serve()
            first.signal()
            messages.extend(stream)
        self.assertEqual(messages[-1].result.finish_reason, pb.FINISH_REASON_LENGTH)
        self.assertEqual(messages[-1].result.usage.generated_tokens, 800)
        self.assertEqual(first.wait(), 0)
        count = len(replies)
        with self.channel() as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            replies.append(list(stub.Generate(request(8), timeout=PATIENCE_S))[-1])
        stop.set()
        for client in clients:
            client.join()
        self.assertEqual(failures, [])
        self.assertGreater(len(replies), count)
        for reply in replies:
            self.assertEqual(reply.result.finish_reason, pb.FINISH_REASON_LENGTH)
        second.stop()

    def test_clients_that_hold_a_connection_move_to_the_new_server(self):
        first = self.serve()
        with self.channel() as busy, grpc.insecure_channel(
            self.address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as held:
            stub = generation_pb2_grpc.GenerationServiceStub(held)
            list(stub.Generate(request(8), timeout=PATIENCE_S))
            # Keeps the old server alive until it is cancelled.
            long = request(900)
            long.parameters.n = 64
            stream = generation_pb2_grpc.GenerationServiceStub(busy).Generate(
                long, timeout=PATIENCE_S
            )
            next(stream)
            second = self.serve()
            told = threading.Event()
            held.subscribe(lambda state: state == grpc.ChannelConnectivity.IDLE and told.set())
            first.signal()
            self.assertTrue(told.wait(PATIENCE_S))
            # No retries here: this one is not refused.
            reply = list(stub.Generate(request(8), timeout=PATIENCE_S))[-1]
            self.assertEqual(reply.result.finish_reason, pb.FINISH_REASON_LENGTH)
            self.assertTrue(first.is_running)
            stream.cancel()
        self.assertEqual(first.wait(), 0)
        second.stop()

    def test_connections_wait_for_a_server_that_comes_later(self):
        self.serve().stop()
        with self.channel() as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            stream = stub.Generate(request(8), timeout=PATIENCE_S)
            self.serve()
            self.assertEqual(list(stream)[-1].result.usage.generated_tokens, 8)

    def test_the_http_port_is_handed_over_too(self):
        first = self.serve()
        second = self.serve()
        first.stop()
        for _ in range(8):
            with urllib.request.urlopen(self.url + "/readyz", timeout=PATIENCE_S) as response:
                self.assertEqual(response.status, 200)
        second.stop()

    def test_sockets_that_were_not_handed_over_are_usage_errors(self):
        for address in ("fd:grpc", "fd:3"):
            with self.subTest(address=address), self.assertRaises(RuntimeError) as refused:
                programs.ServerProcess(listen=address)
            self.assertIn(f"{address}: no sockets were handed to this process", str(refused.exception))


if __name__ == "__main__":
    unittest.main()
