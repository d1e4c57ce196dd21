"""Replicas come and go under load: what Envoy and the servers do about it, request by request."""

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


def table(rows):
    lines = [f"{'':24}{'sent':>8}{'finished':>10}{'retried':>9}{'lost':>6}"]
    lines += ["{:24}{:8}{:10}{:9}{:6}".format(*row) for row in rows]
    return "\n".join(lines)


def drain(server, noticed):
    """The exit code of a replica that is told to drain. A long stream holds it until `noticed()`, as in a cluster
    a pause does: until whoever balances has heard that it drains."""
    request = pb.GenerateRequest(parameters={"max_tokens": 2000, "stop": {"ignore_eos": True}})
    with grpc.insecure_channel(server.address) as channel:
        stream = generation_pb2_grpc.GenerationServiceStub(channel).Generate(request)
        next(stream)
        server.signal(signal.SIGTERM)
        replicas.eventually(noticed)
        stream.cancel()
        return server.wait()


def failover(clients, max_tokens, between):
    """Kills a replica under load, then drains another, then starts both again. Calls `between(load)` for load
    to run between these events.

    Returns (the load, {request id: line of Envoy's log}, the address of the killed replica, [row of the table]).
    """
    with replicas.replicas(3, *FLAGS) as servers, replicas.envoy(servers.servers) as envoy:
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
            replicas.eventually(lambda: killed not in envoy.healthy()["replicas"])
            mark("one killed")
            leaving = servers[1].address
            drained = drain(servers[1], lambda: leaving not in envoy.healthy()["replicas"])
            between(load)
            mark("another drained")
            servers.restart(0)
            servers.restart(1)
            replicas.eventually(lambda: len(envoy.healthy()["replicas"]) == 3)
            between(load)
        finally:
            load.stop()
        mark("both back")
        assert drained == 0, "the replica that was drained did not end well"
        ids = {request.request_id for request in load.requests}
        log = {}
        replicas.eventually(
            lambda: log.update({line["id"]: line for line in envoy.access_log()}) or ids <= set(log)
        )
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
        def until_some_more_finished(load):
            enough = load.finished() + 24
            replicas.eventually(lambda: load.finished() >= enough)

        load, log, killed, rows = failover(8, [16, 48, 160], until_some_more_finished)
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
                        "retryableStatusCodes": ["UNAVAILABLE"],
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

                replicas.eventually(both_had_some)

                def refuses():
                    for _ in range(10):
                        self.assertTrue(generate()[-1].HasField("result"))
                    return True

                self.assertEqual(drain(servers[0], refuses), 0)


if __name__ == "__main__":
    unittest.main()
