"""Stock grpcio clients that keep asking, and what became of each request."""

import dataclasses
import itertools
import threading
import uuid

import grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc

from programs import PATIENCE_S


@dataclasses.dataclass
class Sent:
    """A request that was sent."""

    request_id: str
    began: bool = False  # something of the answer came
    finished: bool = False  # its result came, and all of its tokens
    error: grpc.StatusCode | None = None


class Load:
    """Clients, each with a connection and one request at a time, until stopped."""

    def __init__(self, address, clients, max_tokens):
        self.requests = []
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._lengths = itertools.cycle(max_tokens)
        self._threads = [
            threading.Thread(target=self._run, args=(address, client)) for client in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self):
        """Lets the requests that run finish."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def await_finished(self, more):
        """Until that many more requests than now have finished."""
        with self._changed:
            enough = self._finished() + more
            happened = self._changed.wait_for(lambda: self._finished() >= enough, PATIENCE_S)
            assert happened, "requests do not finish"

    def _finished(self):
        return sum(request.finished for request in self.requests)

    def _run(self, address, client):
        # A connection of its own: grpcio shares connections of equal channels.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, options=options) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            for number in itertools.count():
                if self._stop.is_set():
                    return
                with self._changed:
                    sent = Sent(uuid.uuid4().hex)
                    self.requests.append(sent)
                    max_tokens = next(self._lengths)
                self._send(stub, sent, f"Story {client}.{number}: once", max_tokens)
                with self._changed:
                    self._changed.notify_all()

    @staticmethod
    def _send(stub, sent, prompt, max_tokens):
        request = pb.GenerateRequest(
            prompt={"text": prompt},
            parameters={"max_tokens": max_tokens, "stop": {"ignore_eos": True}},
        )
        metadata = [("x-request-id", sent.request_id)]
        tokens = 0
        try:
            for message in stub.Generate(request, metadata=metadata, timeout=PATIENCE_S):
                sent.began = True
                tokens += len(message.token_ids)
            sent.finished = message.result.finish_reason == pb.FINISH_REASON_LENGTH and (
                tokens == max_tokens
            )
        except grpc.RpcError as error:
            sent.error = error.code()
