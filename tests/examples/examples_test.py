"""Every example, as it stands, against a real server."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import unittest

import programs
from programs import PATIENCE_S

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CLIENTS = ROOT / "build/test-clients/bin"


class ExamplesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess()
        cls.addClassCleanup(cls.server.stop)
        cls.environment = {
            **os.environ,
            "PHOTON_SERVER": cls.server.address,
            "PHOTON_HTTP": cls.server.http_url.rstrip("/"),
        }

    def run_example(self, *command):
        """What it prints."""
        result = subprocess.run(
            [str(part) for part in command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout

    def need(self, program):
        if not (CLIENTS / program).exists() and "CI" not in os.environ:
            self.skipTest("run scripts/install_test_clients")
        return CLIENTS / program

    def test_cpp(self):
        printed = self.run_example(os.environ["PHOTON_EXAMPLE_ASK_DOCUMENT"])
        self.assertRegex(printed, r"(?s)there was a fox.*\(\d+ tokens\)\n\.\.\. The fox said:.*\.\.\. In the end,")

    def test_python_stories(self):
        printed = self.run_example(sys.executable, EXAMPLES / "python/stories.py")
        self.assertRegex(printed, r"demo: [\d,]{10} parameters")
        self.assertGreaterEqual(len(re.findall("^- ", printed, re.MULTILINE)), 4)
        self.assertRegex(printed, r"samples voted: '")
        self.assertIn("parameters.sampling.top_p: expected (0, 1]", printed)

    def test_python_readme(self):
        text = (ROOT / "client/python/README.md").read_text()
        code = re.search("```python\n(.*?)```", text, re.DOTALL).group(1)
        self.assertIn("127.0.0.1:50051", code)
        code = code.replace("127.0.0.1:50051", self.server.address)
        self.assertRegex(self.run_example(sys.executable, "-c", code), r"FinishReason\.\w+ \d+\n$")

    def test_python_many_questions(self):
        printed = self.run_example(sys.executable, EXAMPLES / "python/many_questions.py")
        self.assertGreaterEqual(printed.count("... "), 7)
        self.assertRegex(printed, r"[1-9]\d* tokens of the document were not computed again")

    def test_python_plain_grpcio(self):
        printed = self.run_example(sys.executable, EXAMPLES / "python/plain_grpcio.py")
        self.assertRegex(printed, r"\(5 \+ \d+ tokens\)")

    def test_curl(self):
        printed = self.run_example(EXAMPLES / "curl/completions.sh").splitlines()
        self.assertEqual(json.loads(printed[0])["data"][0]["id"], "demo")
        self.assertEqual(len(json.loads(printed[1])["choices"]), 2)
        self.assertIn("data: [DONE]", printed)
        self.assertEqual(json.loads(printed[-1])["error"]["param"], "top_p")

    def test_openai(self):
        python = self.need("python3")
        printed = self.run_example(python, EXAMPLES / "openai/completions.py")
        self.assertEqual([line[:3] for line in printed.splitlines()[-4:]], ["0: ", "1: ", "2: ", "3: "])

    def test_tritonclient(self):
        python = self.need("python3")
        found = subprocess.run(
            [python, "-c", "import tritonclient.grpc"], capture_output=True, check=False
        )
        if found.returncode != 0:
            self.skipTest("no tritonclient among the test clients")
        printed = self.run_example(python, EXAMPLES / "tritonclient/infer.py").splitlines()
        for line in printed[:2]:
            self.assertRegex(line, r"\((length|stop_token)\)$")
        self.assertTrue("".join(printed[2:]))

    def test_grpcurls_commands_by_another_client_of_reflection(self):
        """The same requests with `buf curl`: it, too, knows the services by reflection alone."""
        buf = self.need("buf")
        text = (EXAMPLES / "grpcurl/commands.sh").read_text()
        commands = re.findall(r"^grpcurl -plaintext (.*)$", text, re.MULTILINE)
        self.assertGreater(len(commands), 10)
        for command in commands:
            with self.subTest(command=command):
                words = shlex.split(command)
                server = words.index("$server")
                options, (target, *_) = words[:server], words[server + 1 :]
                if target == "list":
                    continue
                printed = self.run_example(
                    *(buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *options),
                    f"http://{self.server.address}/{target}",
                )
                self.assertTrue(printed.startswith("{"), printed)
        listed = self.run_example(
            *(buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--list-methods"),
            f"http://{self.server.address}",
        )
        for service in ("Generation", "Document", "Model", "Admin"):
            self.assertIn(f"photon.v1.{service}Service/", listed)


if __name__ == "__main__":
    unittest.main()
