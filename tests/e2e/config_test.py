"""Settings from flags, the environment and a file."""

import os
import pathlib
import subprocess
import tempfile
import tomllib
import unittest

import programs
from programs import MODEL, PATIENCE_S

REFERENCE = pathlib.Path(__file__).parents[2] / "docs" / "configuration.md"


def run(*flags, **environment):
    return subprocess.run(
        [programs.SERVER, *flags],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, **environment},
    )


class ConfigTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def write(self, name, text):
        path = self.directory / name
        path.write_text(text)
        return str(path)

    def test_what_is_printed_has_all_settings_and_their_origins(self):
        path = self.write("photon.toml", f'model = "{MODEL}"\nmax-rows = 5\nthreads = 1\n')
        process = run("--config", path, "--max-queue", "7", "--print-config",
                      PHOTON_MAX_ROWS="6", PHOTON_KV_MEMORY="25%")
        self.assertEqual(process.returncode, 0, process.stderr)
        settings = tomllib.loads(process.stdout)
        self.assertEqual(settings["model"], MODEL)
        self.assertEqual(settings["max-rows"], 6)
        self.assertEqual(settings["max-queue"], 7)
        self.assertEqual(settings["kv-memory"], "25%")
        self.assertEqual(settings["drain-timeout"], 30)
        self.assertIs(settings["insecure"], False)
        for line in (
            f"threads = 1  # {path}:3",
            "max-rows = 6  # PHOTON_MAX_ROWS",
            "max-queue = 7  # --max-queue",
            "max-streams = 1024  # default",
        ):
            self.assertIn(line, process.stdout.splitlines())

    def test_what_is_printed_is_a_file_of_settings(self):
        first = run("--model", MODEL, "--insecure", "--log-level", "Error", "--max-message-bytes",
                    "8MiB", "--print-config")
        self.assertEqual(first.returncode, 0, first.stderr)
        again = run("--config", self.write("photon.toml", first.stdout), "--print-config")
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(tomllib.loads(again.stdout), tomllib.loads(first.stdout))

    def test_all_problems_are_told_at_once(self):
        path = self.write("photon.toml", 'max-row = 5\ncompute = "int8"\n')
        process = run("--config", path, "--model", MODEL, "--listen", "nowhere", "--http-listen",
                      "off", "--drain-timeout", "-1", PHOTON_HTTP_THREADS="3", PHOTON_MAX_QUEU="1")
        self.assertEqual(process.returncode, 2)
        self.assertEqual(process.stdout, "")
        problems = process.stderr.splitlines()
        for expected in (
            f"{path}:1: max-row: there is no such setting; did you mean max-rows?",
            f"{path}:2: compute: expected bf16 or f32, got int8",
            "PHOTON_MAX_QUEU: there is no such variable; did you mean PHOTON_MAX_QUEUE?",
            "listen: expected ADDRESS:PORT or unix:PATH, got nowhere",
            "drain_timeout: expected 0 ms or more, got -1000 ms",
            "PHOTON_HTTP_THREADS: has no effect: http-listen is off",
        ):
            self.assertIn(expected, problems)
        self.assertEqual(len(problems), 6, process.stderr)

    def test_settings_without_effect_are_named(self):
        for flags, problem in (
            (("--reload-interval", "5"), "--reload-interval: has no effect"),
            (("--max-connection-age-grace", "5"), "--max-connection-age-grace: has no effect"),
            (("--max-sequences", "5000"), "--max-sequences: has no effect: max-queue"),
            (("--default-document-ttl", "99999"), "--default-document-ttl: has no effect"),
        ):
            with self.subTest(flags=flags):
                process = run("--model", MODEL, *flags)
                self.assertEqual(process.returncode, 2)
                self.assertIn(problem, process.stderr)

    def test_what_is_in_files_of_keys_is_not_printed(self):
        keys = self.write("keys", "who knows")
        process = run("--model", MODEL, "--api-keys", keys, "--print-config",
                      PHOTON_API_KEY="photon_secret")
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertIn(keys, process.stdout)
        self.assertNotIn("who knows", process.stdout)
        self.assertNotIn("photon_secret", process.stdout)

    def test_a_server_runs_on_a_file_alone(self):
        path = self.write("photon.toml", 'threads = 1\nname = "tale"\n')
        with programs.server("--config", path) as server:
            self.assertIn("serving tale on", server.log)

    def test_a_server_runs_beside_a_kubernetes_service_of_its_name(self):
        links = {
            "PHOTON_SERVICE_HOST": "10.0.0.1",
            "PHOTON_SERVICE_PORT": "50051",
            "PHOTON_SERVICE_PORT_GRPC": "50051",
            "PHOTON_PORT": "tcp://10.0.0.1:50051",
            "PHOTON_PORT_50051_TCP": "tcp://10.0.0.1:50051",
            "PHOTON_PORT_50051_TCP_PROTO": "tcp",
        }
        self.assertEqual(run("--model", MODEL, "--print-config", **links).returncode, 0)

    def test_help_and_version_end_well(self):
        self.assertIn("--max-rows", run("--help").stdout)
        self.assertRegex(run("--version").stdout, r"^\d+\.\d+\.\d+\n$")

    def test_the_reference_is_up_to_date(self):
        process = run("--print-reference")
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertEqual(
            REFERENCE.read_text(), process.stdout,
            "docs/configuration.md is not what photon-server --print-reference says",
        )


if __name__ == "__main__":
    unittest.main()
