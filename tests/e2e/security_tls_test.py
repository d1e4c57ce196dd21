"""TLS and mutual TLS, as stock clients see them."""

import pathlib
import shutil
import socket
import ssl
import subprocess
import tempfile
import unittest

import grpc
import health_pb2
import health_pb2_grpc
from photon.v1 import generation_pb2 as pb
from photon.v1 import generation_pb2_grpc

import programs
from programs import PATIENCE_S, SLOW, STORY
from security_support import Authority, bearer, create_key, eventually


def check(channel):
    """The code of a health check; None: it succeeds."""
    try:
        health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
        )
        return None
    except grpc.RpcError as error:
        return error.code()


class TlsTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.authority = Authority(self.directory)
        self.certificate = self.directory / "server.pem"
        self.key = self.directory / "server.key"
        self.install("first")

    def install(self, name):
        certificate, key = self.authority.issue(name)
        shutil.copy(certificate, self.certificate)
        shutil.copy(key, self.key)

    def start(self, *flags):
        server = programs.ServerProcess(
            *("--tls-cert", str(self.certificate), "--tls-key", str(self.key)), *flags
        )
        self.addCleanup(server.stop)
        return server

    def channel(self, server, authority=None, client=None):
        """Verifies the server by `authority`, and shows it `client`'s certificate."""
        certificate, key = client or (None, None)
        credentials = grpc.ssl_channel_credentials(
            (authority or self.authority).certificate.read_bytes(),
            key and key.read_bytes(),
            certificate and certificate.read_bytes(),
        )
        # Channels to one address would share a connection, whatever their credentials.
        options = (("grpc.use_local_subchannel_pool", 1),)
        channel = grpc.secure_channel(server.address, credentials, options)
        self.addCleanup(channel.close)
        return channel

    def name_on(self, server):
        """The name on the certificate that a new connection is shown."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        context.set_alpn_protocols(["h2"])
        host, port = server.address.split(":")
        with socket.create_connection((host, port), PATIENCE_S) as plain:
            with context.wrap_socket(plain, server_hostname=host) as connection:
                subject = dict(pair for (pair,) in connection.getpeercert()["subject"])
                return subject["commonName"]

    def test_those_who_trust_the_authority_connect_and_others_do_not(self):
        server = self.start()
        self.assertIsNone(check(self.channel(server)))
        other = Authority(self.directory, "other")
        self.assertEqual(check(self.channel(server, other)), grpc.StatusCode.UNAVAILABLE)

    def test_plaintext_is_refused(self):
        server = self.start()
        with programs.channel_to(server) as channel:
            self.assertEqual(check(channel), grpc.StatusCode.UNAVAILABLE)

    def test_protocols_before_tls_1_2_are_refused(self):
        server = self.start()
        host, port = server.address.split(":")
        for version, accepted in (
            (ssl.TLSVersion.TLSv1_3, True),
            (ssl.TLSVersion.TLSv1_2, True),
            (ssl.TLSVersion.TLSv1_1, False),
        ):
            with self.subTest(version=version):
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.load_verify_locations(self.authority.certificate)
                context.set_alpn_protocols(["h2"])
                # Without this the client itself would refuse.
                context.set_ciphers("ALL:@SECLEVEL=0")
                context.minimum_version = context.maximum_version = version
                with socket.create_connection((host, port), PATIENCE_S) as plain:
                    if accepted:
                        context.wrap_socket(plain, server_hostname=host).close()
                    else:
                        with self.assertRaises(OSError):
                            context.wrap_socket(plain, server_hostname=host)

    def test_a_new_certificate_is_used_and_streams_go_on(self):
        server = self.start(*SLOW)
        stub = generation_pb2_grpc.GenerationServiceStub(self.channel(server))
        stream = stub.Generate(
            pb.GenerateRequest(
                prompt={"text": STORY},
                parameters={"max_tokens": 900, "stop": {"ignore_eos": True}},
            ),
            timeout=PATIENCE_S,
        )
        next(stream)
        self.assertEqual(self.name_on(server), "first")
        self.install("second")
        eventually(lambda: self.name_on(server) == "second")
        self.assertEqual(list(stream)[-1].result.usage.generated_tokens, 900)

    def test_half_replaced_files_leave_the_old_certificate_in_use(self):
        server = self.start()
        certificate, key = self.authority.issue("second")
        shutil.copy(certificate, self.certificate)
        eventually(lambda: "is not the key of" in server.log)
        self.assertEqual(self.name_on(server), "first")
        self.assertIsNone(check(self.channel(server)))
        shutil.copy(key, self.key)
        eventually(lambda: self.name_on(server) == "second")

    def test_clients_need_a_certificate_of_the_authority(self):
        clients = Authority(self.directory, "clients")
        server = self.start("--tls-client-ca", str(clients.certificate))
        self.assertIsNone(check(self.channel(server, client=clients.issue("client"))))
        self.assertEqual(check(self.channel(server)), grpc.StatusCode.UNAVAILABLE)
        stranger = self.authority.issue("client")
        self.assertEqual(
            check(self.channel(server, client=stranger)), grpc.StatusCode.UNAVAILABLE
        )

    def test_a_new_client_authority_holds_for_new_connections(self):
        clients = Authority(self.directory, "clients")
        server = self.start("--tls-client-ca", str(clients.certificate))
        old_client = clients.issue("client")
        self.assertIsNone(check(self.channel(server, client=old_client)))
        renewed = Authority(self.directory, "renewed")
        new_client = renewed.issue("client")
        shutil.copy(renewed.certificate, clients.certificate)
        eventually(lambda: check(self.channel(server, client=new_client)) is None)
        self.assertEqual(
            check(self.channel(server, client=old_client)), grpc.StatusCode.UNAVAILABLE
        )

    def test_probes_find_health_and_nothing_else_on_a_plain_port(self):
        clients = Authority(self.directory, "clients")
        server = self.start(
            *("--tls-client-ca", str(clients.certificate), "--health-listen", "0.0.0.0:0")
        )
        with grpc.insecure_channel(server.health_address) as channel:
            self.assertIsNone(check(channel))
            with self.assertRaises(grpc.RpcError) as caught:
                list(
                    generation_pb2_grpc.GenerationServiceStub(channel).Generate(
                        pb.GenerateRequest(), timeout=PATIENCE_S
                    )
                )
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_tls_allows_addresses_other_than_loopback(self):
        server = programs.ServerProcess(
            *("--tls-cert", str(self.certificate), "--tls-key", str(self.key)),
            listen="0.0.0.0:0",
        )
        self.addCleanup(server.stop)
        self.assertIsNone(check(self.channel(server)))

    def test_a_server_does_not_start_without_sense_in_its_files(self):
        other_key = self.authority.issue("other")[1]
        for flags, problem in (
            (["--tls-cert", self.certificate], "one needs the other"),
            (["--tls-cert", self.certificate, "--tls-key", other_key], "is not the key of"),
            (["--tls-cert", self.certificate, "--tls-key", "/nowhere"], "/nowhere: "),
            (["--tls-client-ca", self.certificate], "tls_client_ca: needs"),
            (["--health-listen", "nowhere"], "health_listen: expected ADDRESS:PORT"),
        ):
            with self.subTest(flags=flags):
                process = subprocess.run(
                    [programs.SERVER, "--model", programs.MODEL, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", *flags],
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE_S,
                )
                self.assertEqual(process.returncode, 2, process.stderr)
                self.assertIn(problem, process.stderr)

    def test_the_command_line_client_speaks_tls_with_certificates_and_keys(self):
        clients = Authority(self.directory, "clients")
        certificate, key = clients.issue("client")
        api_key, line = create_key("alice")
        keys = self.directory / "keys"
        keys.write_text(line)
        server = self.start("--tls-client-ca", str(clients.certificate), "--api-keys", str(keys))
        key_file = self.directory / "key"
        key_file.write_text(api_key + "\n")

        def photon(*flags, **environment):
            return subprocess.run(
                [programs.CLI, "info", "--server", server.address, "--deadline", "20", *flags],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                env=environment,
            )

        tls = ("--tls-ca", self.authority.certificate)
        identity = ("--client-cert", certificate, "--client-key", key)
        with_file = photon(*tls, *identity, "--api-key-file", key_file)
        self.assertEqual(with_file.returncode, 0, with_file.stderr)
        with_variable = photon(*tls, *identity, PHOTON_API_KEY=api_key)
        self.assertEqual(with_variable.returncode, 0, with_variable.stderr)
        self.assertIn("UNAUTHENTICATED", photon(*tls, *identity).stderr)
        # In the environment of a pod, where the server's own certificate is named, too.
        pod = {
            "PHOTON_TLS_CERT": "/server.crt",
            "PHOTON_TLS_KEY": "/server.key",
            "PHOTON_TLS_CA": str(self.authority.certificate),
            "PHOTON_CLIENT_CERT": certificate,
            "PHOTON_CLIENT_KEY": key,
            "PHOTON_API_KEY": api_key,
        }
        in_pod = photon(**pod)
        self.assertEqual(in_pod.returncode, 0, in_pod.stderr)
        self.assertEqual(photon(*tls, "--api-key", api_key).returncode, 1)
        self.assertEqual(photon(*identity).returncode, 2, "a certificate needs an authority")
        # A key is not sent where others can read it, unless the address is this machine's.
        plain = photon("--server", "192.0.2.1:1", "--api-key", api_key)
        self.assertEqual(plain.returncode, 2, plain.stderr)


if __name__ == "__main__":
    unittest.main()
