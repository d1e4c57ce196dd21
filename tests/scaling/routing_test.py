"""Envoy with the configuration of deploy/envoy: what it sends where."""

import difflib
import json
import sys
import tempfile
import unittest
import urllib.error
import urllib.request

import affinity
import grpc
import photon_client
from photon.v1 import admin_pb2, admin_pb2_grpc, document_pb2, document_pb2_grpc
from photon_client import Client, NotFoundError, PhotonError, Tls

import programs
import replicas
import security_support
from programs import PATIENCE_S, STORY

WORK = {"contexts": 6, "questions": 5, "clients": 1}


@unittest.skipIf(replicas.missing(), replicas.missing())
class RoutingTest(unittest.TestCase):
    def test_replicas_find_as_much_in_their_caches_as_one_server(self):
        with programs.server("--threads", "1") as server:
            affinity.ask(server.address, **WORK)
            alone = affinity.hit_rate([server])
        with replicas.replicas(3, "--threads", "1") as servers:
            with replicas.envoy(servers.servers) as envoy:
                affinity.ask(envoy.address, **WORK)
                together = affinity.hit_rate(servers.servers)
                used = [affinity.prompt_tokens([server])[0] for server in servers.servers]
        print(f"one server {alone:.3f}, three behind Envoy {together:.3f}", file=sys.stderr)
        self.assertGreater(alone, 0.4)
        self.assertAlmostEqual(together, alone, delta=0.05 * alone)
        self.assertGreater(sum(tokens > 0 for tokens in used), 1)


@unittest.skipIf(replicas.missing(), replicas.missing())
class RoutesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.replicas = replicas.Replicas(2, "--threads", "1")
        cls.addClassCleanup(cls.replicas.stop)
        cls.envoy = replicas.Envoy(cls.replicas.servers)
        cls.addClassCleanup(cls.envoy.stop)
        cls.client = Client(cls.envoy.address, timeout_s=PATIENCE_S)
        cls.addClassCleanup(cls.client.close)

    def http(self, path, body=None):
        request = urllib.request.Request(
            f"http://{self.envoy.address}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.read().decode()

    def test_a_document_is_found_again_by_its_reference_alone(self):
        references = [
            self.client.create_document(affinity.story(number)).reference for number in range(8)
        ]
        for reference in references:
            self.client.ask(reference, [" Then"], max_tokens=1)
        for replica in self.replicas.servers:
            with Client(replica.address) as direct:
                self.assertLess(len(direct.list_documents()), len(references))
        with Client(self.envoy.address) as other:
            other.delete_document(references[0])
            with self.assertRaises(NotFoundError):
                other.get_document(references[0])

    def test_a_document_without_affinity_is_refused_rather_than_lost(self):
        with grpc.insecure_channel(self.envoy.address) as channel:
            stub = document_pb2_grpc.DocumentServiceStub(channel)
            with self.assertRaises(grpc.RpcError) as caught:
                stub.ListDocuments(document_pb2.ListDocumentsRequest(), timeout=PATIENCE_S)
        self.assertIn("x-photon-affinity", caught.exception.details())

    def test_requests_without_affinity_go_to_every_replica(self):
        before = [affinity.prompt_tokens([server])[0] for server in self.replicas.servers]

        def both_had_some():
            self.client.generate(STORY, max_tokens=1)
            after = [affinity.prompt_tokens([server])[0] for server in self.replicas.servers]
            return all(new > old for new, old in zip(after, before))

        replicas.until(both_had_some)

    def test_errors_and_request_ids_pass_through(self):
        with self.assertRaises(photon_client.InvalidArgumentError) as caught:
            self.client.generate(STORY, top_p=2, request_id="story-1")
        self.assertEqual(caught.exception.field_violations[0].field, "parameters.sampling.top_p")
        self.assertEqual(self.envoy.await_request("story-1")["attempts"], 1)

    def test_a_clients_deadline_holds(self):
        with self.assertRaises(photon_client.DeadlineExceededError):
            self.client.generate(STORY, max_tokens=1900, ignore_eos=True, timeout_s=0.3)

    def test_the_model_and_health_are_there_and_administration_is_not(self):
        self.assertEqual(self.client.model_info().name, "demo")
        self.assertIs(self.client.health(), photon_client.HealthStatus.SERVING)
        with grpc.insecure_channel(self.envoy.address) as channel:
            with self.assertRaises(grpc.RpcError) as caught:
                admin_pb2_grpc.AdminServiceStub(channel).Drain(
                    admin_pb2.DrainRequest(), timeout=PATIENCE_S
                )
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_the_http_port_is_behind_the_same_address(self):
        completion = {"model": "demo", "prompt": STORY, "max_tokens": 5}
        answer = json.loads(self.http("/v1/completions", completion))
        self.assertEqual(answer["usage"]["completion_tokens"], 5)
        self.assertIn("data: [DONE]", self.http("/v1/completions", {**completion, "stream": True}))
        with self.assertRaises(urllib.error.HTTPError) as caught:
            self.http("/metrics")
        caught.exception.close()
        self.assertEqual(caught.exception.code, 404)


@unittest.skipIf(replicas.missing(), replicas.missing())
class TlsTest(unittest.TestCase):
    def test_clients_and_replicas_speak_tls(self):
        with tempfile.TemporaryDirectory() as directory:
            inside = security_support.Authority(directory, "inside")
            outside = security_support.Authority(directory, "outside")
            certificate, key = inside.issue("replica")
            edge, client = outside.issue("edge"), inside.issue("envoy")
            flags = ("--tls-cert", certificate, "--tls-key", key)
            tls_files = {
                "server.crt": edge[0],
                "server.key": edge[1],
                "client.crt": client[0],
                "client.key": client[1],
                "replicas-ca.crt": inside.certificate,
            }
            with replicas.replicas(2, *flags, "--tls-client-ca", inside.certificate) as servers:
                with replicas.envoy(
                    servers.servers, "envoy-tls.yaml", tls_files=tls_files
                ) as envoy, Client(
                    envoy.address, tls=Tls(outside.certificate), timeout_s=PATIENCE_S
                ) as client:
                    self.assertEqual(client.model_info().name, "demo")
                    document = client.create_document(STORY)
                    self.assertTrue(client.ask(document, [" and"], max_tokens=4)[0].text)
                    with Client(envoy.address, retry=photon_client.RetryPolicy(1)) as plain:
                        with self.assertRaises(PhotonError):
                            plain.model_info(timeout_s=PATIENCE_S)

    def test_the_configuration_with_tls_is_the_other_one_and_tls(self):
        def lines(name):
            text = (replicas.DEPLOYED / name).read_text()
            return text[text.index("\nnode:") :].splitlines()

        changes = [
            line
            for line in difflib.ndiff(lines("envoy.yaml"), lines("envoy-tls.yaml"))
            if line.startswith("- ")
        ]
        self.assertEqual(len(changes), 1, changes)
        self.assertIn("0.0.0.0, port_value", changes[0])


if __name__ == "__main__":
    unittest.main()
