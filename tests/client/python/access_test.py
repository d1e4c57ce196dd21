"""photon_client with keys and TLS; and when calls are tried again."""

import tempfile
import unittest
from pathlib import Path

import grpc

from photon_client import (
    AsyncClient,
    CancelledError,
    Client,
    ResourceExhaustedError,
    RetryPolicy,
    Tls,
    UnauthenticatedError,
    UnavailableError,
    errors,
)
from photon_client._retry import Attempts

import programs
import security_support
from programs import PATIENCE_S, STORY

ONCE = RetryPolicy(max_attempts=1)


class AccessTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.authority = security_support.Authority(directory.name)
        certificate, key = cls.authority.issue("server")
        cls.api_key, line = security_support.create_key("alice", "--requests-per-minute", "1")
        keys = Path(directory.name, "keys")
        keys.write_text(line)
        cls.server = programs.ServerProcess(
            *("--tls-cert", certificate, "--tls-key", key),
            *("--tls-client-ca", cls.authority.certificate, "--api-keys", keys),
        )
        cls.addClassCleanup(cls.server.stop)
        certificate, key = cls.authority.issue("client")
        cls.tls = Tls(cls.authority.certificate, certificate, key)

    def client(self, kind=Client, **settings):
        settings = {"tls": self.tls, "api_key": self.api_key, "retry": ONCE, **settings}
        return kind(self.server.address, timeout_s=PATIENCE_S, **settings)

    def test_a_key_and_a_certificate_open_the_door_at_the_keys_pace(self):
        with self.client() as client:
            self.assertEqual(client.model_info().name, "demo")
            with self.assertRaises(ResourceExhaustedError) as caught:
                client.model_info()
            self.assertGreater(caught.exception.retry_after_s, 0)

    def test_without_them_it_is_closed(self):
        with self.client(api_key=None) as client, self.assertRaises(UnauthenticatedError):
            client.generate(STORY)
        only_authority = Tls(self.authority.certificate.read_bytes())
        with self.client(tls=only_authority) as client, self.assertRaises(UnavailableError):
            client.generate(STORY)
        with self.assertRaises(ValueError):
            self.client(tls=Tls(certificate=b"alone"))


class AsyncAccessTest(unittest.IsolatedAsyncioTestCase):
    async def test_tls_and_key(self):
        with tempfile.TemporaryDirectory() as directory:
            authority = security_support.Authority(directory)
            certificate, key = authority.issue("server")
            api_key, line = security_support.create_key("alice")
            keys = Path(directory, "keys")
            keys.write_text(line)
            with programs.server(
                *("--tls-cert", certificate, "--tls-key", key, "--api-keys", keys)
            ) as server:
                tls = Tls(authority.certificate)
                async with AsyncClient(server.address, tls=tls, api_key=api_key) as client:
                    self.assertEqual((await client.model_info(timeout_s=PATIENCE_S)).name, "demo")
                async with AsyncClient(server.address, tls=tls) as client:
                    with self.assertRaises(UnauthenticatedError):
                        await client.model_info(timeout_s=PATIENCE_S)


class AttemptsTest(unittest.TestCase):
    def delays(self, error, policy=RetryPolicy(), timeout_s=None, repeatable=True):
        attempts = Attempts(policy, timeout_s, repeatable=repeatable)
        delays = []
        while (delay := attempts.delay_after(error)) is not None:
            delays.append(delay)
        return delays

    def test_waits_grow_up_to_a_limit(self):
        policy = RetryPolicy(max_attempts=6, initial_backoff_s=1, multiplier=2, max_backoff_s=5)
        delays = self.delays(UnavailableError("UNAVAILABLE", ""), policy)
        self.assertEqual(len(delays), 5)
        for delay, most in zip(delays, (1, 2, 4, 5, 5)):
            self.assertTrue(most / 2 <= delay <= most)

    def test_the_servers_wait_is_kept_or_the_call_is_given_up(self):
        full = ResourceExhaustedError("RESOURCE_EXHAUSTED", "", retry_after_s=7)
        self.assertTrue(all(7 <= delay < 8 for delay in self.delays(full)))
        self.assertEqual(self.delays(full, timeout_s=5), [])

    def test_what_may_have_happened_is_not_repeated_if_that_harms(self):
        lost = UnavailableError("UNAVAILABLE", "")
        refused = UnavailableError("UNAVAILABLE", "", refused_by_server=True)
        self.assertEqual(self.delays(lost, repeatable=False), [])
        self.assertEqual(len(self.delays(refused, repeatable=False)), 3)

    def test_a_call_that_crossed_the_end_of_a_connection_counts_as_unavailable(self):
        class Cancelled(grpc.RpcError):
            def __init__(self, details):
                self._details = details

            def code(self):
                return grpc.StatusCode.CANCELLED

            def details(self):
                return self._details

            def trailing_metadata(self):
                return ()

        crossed = errors.from_grpc(Cancelled("CANCELLED"), "id")
        self.assertIsInstance(crossed, UnavailableError)
        self.assertEqual(len(self.delays(crossed)), 3)
        self.assertEqual(self.delays(crossed, repeatable=False), [])
        for details in ("Locally cancelled by application!", "Channel closed!"):
            self.assertIsInstance(errors.from_grpc(Cancelled(details), "id"), CancelledError)

    def test_other_errors_stand(self):
        self.assertEqual(self.delays(UnauthenticatedError("UNAUTHENTICATED", "")), [])
        self.assertEqual(self.delays(ResourceExhaustedError("RESOURCE_EXHAUSTED", "")), [])


if __name__ == "__main__":
    unittest.main()
