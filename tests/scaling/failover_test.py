"""Replicas come and go under load: what Envoy and the servers do about it, request by request."""

import contextlib
import json
import signal
import sys
import unittest

import affinity
import grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc

import replicas
from load import Load

FLAGS = ("--threads", "1", "--drain-timeout", str(replicas.PATIENCE_S))
# As in deploy/kubernetes, longer than two of Envoy's health checks.
PAUSE_S = "10"


def table(rows):
    lines = [f"{'':24}{'sent':>8}{'finished':>10}{'retried':>9}{'lost':>6}"]
    lines += ["{:24}{:8}{:10}{:9}{:6}".format(*row) for row in rows]
    return "\n".join(lines)


@contextlib.contextmanager
def held(server):
    """A long stream keeps a server from ending, however long it drains."""
    request = pb.GenerateRequest(parameters={"max_tokens": 2000, "stop": {"ignore_eos": True}})
    with grpc.insecure_channel(server.address) as channel:
        stream = generation_pb2_grpc.GenerationServiceStub(channel).Generate(request)
        next(stream)
        yield
        stream.cancel()


def failover(clients, max_tokens, between, hold=contextlib.nullcontext):
    """Kills a replica under load, then drains another, then starts both again. Calls `between(load)` for load
    to run between these events. `hold(server)`: around the drain.

    Returns (the load, {request id: line of Envoy's log}, the address of the killed replica, [row of the table]).
    """
    with replicas.replicas(3, *FLAGS, "--drain-pause", PAUSE_S) as servers, replicas.envoy(
        servers.servers
    ) as envoy:
        load = Load(envoy.address, clients, max_tokens)
        rows, marks = [], [0]

        def mark(name):
            marks.append(len(load.requests))
            rows.append(name)

        try:
            between(load)
            mark("three replicas")
            killed = servers[0].address
            servers[0].signal(signal.SIGKILL)
            servers[0].wait()
            between(load)
            envoy.await_gone(killed)
            mark("one killed")
            with hold(servers[1]):
                servers[1].signal(signal.SIGTERM)
                envoy.await_gone(servers[1].address)
            drained = servers[1].wait()
            between(load)
            mark("another drained")
            servers.restart(0)
            servers.restart(1)
            envoy.await_replicas(3)
            between(load)
        finally:
            load.stop()
        mark("both back")
        assert drained == 0, "the replica that was drained did not end well"
        log = {r.request_id: envoy.await_request(r.request_id) for r in load.requests}
        parts = [load.requests[begin:end] for begin, end in zip(marks, marks[1:])]
        return load, log, killed, [
            (
                name,
                len(part),
                sum(request.finished for request in part),
                sum(log[request.request_id]["attempts"] > 1 for request in part),
                sum(not request.finished for request in part),
            )
            for name, part in zip([*rows, "all"], [*parts, load.requests])
        ]


@unittest.skipIf(replicas.missing(), replicas.missing())
class FailoverTest(unittest.TestCase):
    def test_nothing_is_lost_but_the_streams_of_a_killed_replica(self):
        # The pause alone does it where Envoy is not kept from asking in time, as here it may be.
        load, log, killed, rows = failover(
            8, [16, 48, 160], lambda load: load.await_finished(24), hold=held
        )
        print(table(rows), file=sys.stderr)
        for request in load.requests:
            if request.finished:
                continue
            # The answer had begun, and came from the replica that was killed: whoever got a part of an answer
            # learns that the rest is missing.
            self.assertEqual(log[request.request_id]["replica"], killed, log[request.request_id])
            self.assertTrue(request.began or log[request.request_id]["bytes"] > 0, request)
            # Envoy resets the stream, which gRPC reports so.
            self.assertIn(request.error.name, ("INTERNAL", "UNAVAILABLE"))
        replicas_used = {line["replica"] for line in log.values()}
        self.assertEqual(len(replicas_used), 3)

    def test_stock_clients_that_balance_themselves_try_a_refused_call_elsewhere(self):
        """With gRPC's round robin and retry policy, and no Envoy."""
        config = {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [
                {
                    "name": [{"service": "photon.v1.GenerationService"}],
                    "retryPolicy": {
                        "maxAttempts": 5,
                        "initialBackoff": "0.05s",
                        "maxBackoff": "1s",
                        "backoffMultiplier": 2,
                        # A call that crosses the GOAWAY is cancelled (docs/lifecycle.md).
                        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                    },
                }
            ],
        }
        options = [("grpc.service_config", json.dumps(config))]
        request = pb.GenerateRequest(parameters={"max_tokens": 1})
        with replicas.replicas(2, *FLAGS) as servers:
            target = "ipv4:" + ",".join(server.address for server in servers.servers)
            with grpc.insecure_channel(target, options=options) as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)

                def generate():
                    return list(stub.Generate(request, timeout=replicas.PATIENCE_S))

                def both_had_some():
                    generate()
                    return all(affinity.prompt_tokens([server])[0] for server in servers.servers)

                replicas.until(both_had_some)

                with held(servers[0]):
                    servers[0].signal(signal.SIGTERM)
                    for _ in range(10):
                        self.assertTrue(generate()[-1].HasField("result"))
                self.assertEqual(servers[0].wait(), 0)


if __name__ == "__main__":
    unittest.main()
