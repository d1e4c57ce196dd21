"""The HTTP port as curl and h2load see it."""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import programs
from programs import MODEL, PATIENCE_S, STORY
from security_support import Authority


def curl(*arguments, body=None):
    """(status, body)"""
    result = subprocess.run(
        ["curl", "-sS", "--max-time", str(PATIENCE_S), "-w", "\n%{http_code}", *arguments],
        input=body,
        capture_output=True,
        text=True,
        check=True,
    )
    body, status = result.stdout.rsplit("\n", 1)
    return int(status), body


def completion(**settings):
    return json.dumps({"model": pathlib.Path(MODEL).name, "prompt": STORY, **settings})


class HttpTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess()
        cls.addClassCleanup(cls.server.stop)
        cls.url = cls.server.http_url

    def post(self, body, *arguments):
        return curl(
            *("-H", "content-type: application/json", "--data-binary", "@-", *arguments),
            self.url + "v1/completions",
            body=body,
        )

    def test_probes_answer(self):
        self.assertEqual(curl(self.url + "healthz"), (200, "ok\n"))
        self.assertEqual(curl(self.url + "readyz"), (200, "ready\n"))

    def test_a_completion_by_hand(self):
        status, body = self.post(completion(max_tokens=8))
        self.assertEqual(status, 200, body)
        self.assertTrue(json.loads(body)["choices"][0]["text"])

    def test_a_stream_by_hand(self):
        status, body = self.post(completion(max_tokens=8, stream=True), "--no-buffer")
        self.assertEqual(status, 200, body)
        events = [event for event in body.split("\n\n") if event]
        self.assertTrue(all(event.startswith("data: ") for event in events))
        self.assertEqual(events[-1], "data: [DONE]")

    def test_a_large_body_is_asked_for_first(self):
        # curl sends Expect: 100-continue.
        prompt = "word " * 250_000
        status, body = self.post(completion(prompt=prompt, max_tokens=8), "-H", "Expect: 100-continue")
        self.assertEqual(status, 400, body)
        self.assertEqual(json.loads(body)["error"]["param"], "prompt")

    def test_giant_headers_are_refused(self):
        status, _ = curl("-H", "x-giant: " + "x" * 20_000, self.url + "healthz")
        self.assertEqual(status, 431)

    def test_the_page_is_there(self):
        status, body = curl(self.url)
        self.assertEqual(status, 200)
        self.assertIn("<title>PHOTON</title>", body)

    @unittest.skipUnless(shutil.which("h2load"), "no h2load: package nghttp2-client")
    def test_five_hundred_streams_at_a_time(self):
        with tempfile.NamedTemporaryFile("w") as body:
            body.write(completion(max_tokens=4, stream=True, ignore_eos=True))
            body.flush()
            result = subprocess.run(
                ["h2load", "--h1", "-n500", "-c500", "-t1", "-d", body.name]
                + ["-H", "content-type: application/json", self.url + "v1/completions"],
                capture_output=True,
                text=True,
                check=True,
                timeout=PATIENCE_S,
            )
        self.assertRegex(result.stdout, r"500 succeeded, 0 failed, 0 errored", result.stdout)
        self.assertRegex(result.stdout, r"status codes: 500 2xx", result.stdout)


class HttpTlsTest(unittest.TestCase):
    def test_the_certificate_is_that_of_the_grpc_port(self):
        with tempfile.TemporaryDirectory() as directory:
            authority = Authority(directory)
            certificate, key = authority.issue("server")
            flags = ("--tls-cert", str(certificate), "--tls-key", str(key))
            with programs.server(*flags) as server:
                self.assertTrue(server.http_url.startswith("https://"))
                trusting = ("--cacert", str(authority.certificate))
                self.assertEqual(curl(*trusting, server.http_url + "readyz"), (200, "ready\n"))
                status, body = curl(
                    *trusting,
                    *("-H", "content-type: application/json"),
                    *("-d", completion(max_tokens=4, stream=True)),
                    server.http_url + "v1/completions",
                )
                self.assertEqual(status, 200)
                self.assertTrue(body.endswith("data: [DONE]\n\n"))
                with self.assertRaises(subprocess.CalledProcessError):
                    curl(server.http_url + "readyz")
                # Plaintext to a TLS port ends the connection and nothing else.
                with self.assertRaises(subprocess.CalledProcessError):
                    curl(server.http_url.replace("https", "http") + "readyz")
                self.assertEqual(curl(*trusting, server.http_url + "readyz")[0], 200)


class HttpFlagsTest(unittest.TestCase):
    def test_there_is_no_port_without_an_address(self):
        with programs.server(http_listen="off") as server:
            self.assertIsNone(server.http_url)

    def test_plaintext_off_loopback_has_to_be_allowed(self):
        process = subprocess.run(
            [programs.SERVER, "--model", MODEL, "--http-listen", "0.0.0.0:0"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        self.assertEqual(process.returncode, 2, process.stderr)
        self.assertTrue(re.search(r"http_listen: plaintext .* needs --insecure", process.stderr))


if __name__ == "__main__":
    unittest.main()
