"""Metrics as promtool and a real Prometheus see them, which scrapes a real server."""

import json
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

import grpc
from photon.v1 import generation_pb2, generation_pb2_grpc

import programs
from programs import PATIENCE_S

DEPLOY = pathlib.Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = ("recording.rules.yml", "alerts.rules.yml")

# Labels beside the model's, and le. Nothing that grows with clients.
LABELS = {
    "photon_build_info": {"version"},
    "photon_cache_config_info": {"page_tokens", "num_pages"},
    "photon_model_reloads_total": {"outcome"},
    "photon_latent_pages": {"state"},
    "photon_device_num_requests_running": {"device"},
    "photon_device_latent_pages": {"device", "state"},
    "photon_requests_total": {"finish_reason"},
    "photon_admission_rejections_total": {"reason"},
}
GAUGES = {
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_ratio",
    "latent_pages",
    "cache_config_info",
}
COUNTERS = {
    "prompt_tokens_total",
    "prompt_tokens_cached_total",
    "generation_tokens_total",
    "wasted_slots_total",
    "requests_total",
    "admission_rejections_total",
    "preemptions_total",
}
HISTOGRAMS = {
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "step_duration_seconds",
    "step_rows",
}


def fetch(url):
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return response.read().decode()


def need(program):
    if shutil.which(program) is None:
        raise unittest.SkipTest(f"{program} is not installed: scripts/install_deps --checks")


class MetricsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess()
        cls.addClassCleanup(cls.server.stop)
        cls.channel = grpc.insecure_channel(cls.server.address)
        cls.addClassCleanup(cls.channel.close)
        cls.stub = generation_pb2_grpc.GenerationServiceStub(cls.channel)
        cls.metrics_url = cls.server.http_url.rstrip("/") + "/metrics"

    def generate(self, max_tokens):
        request = generation_pb2.GenerateRequest()
        request.prompt.text = programs.STORY
        request.parameters.max_tokens = max_tokens
        request.parameters.stop.ignore_eos = True
        for _ in self.stub.Generate(request, timeout=PATIENCE_S):
            pass

    def sample(self, name):
        for line in fetch(self.metrics_url).splitlines():
            if line.startswith(name):
                return float(line.rsplit(" ", 1)[1])
        self.fail(f"no {name}")

    def test_every_promised_name_is_there_with_its_type(self):
        lines = set(fetch(self.metrics_url).splitlines())
        for kind, names in (("gauge", GAUGES), ("counter", COUNTERS), ("histogram", HISTOGRAMS)):
            for name in names:
                self.assertIn(f"# TYPE photon_{name} {kind}", lines)

    def test_labels_do_not_grow_with_clients(self):
        for line in fetch(self.metrics_url).splitlines():
            if not line.startswith("photon_"):
                continue
            name, labels = line.split("{", 1)
            found = {label.split("=")[0] for label in labels.split("}")[0].split(",")} - {"le"}
            self.assertEqual(found - {"model_name"}, LABELS.get(name, set()), line)
            self.assertIn("model_name", found, line)

    def test_a_request_is_counted_once_everywhere(self):
        labels = '{model_name="%s"' % pathlib.Path(programs.MODEL).name
        names = [
            "photon_requests_total" + labels + ',finish_reason="length"}',
            "photon_time_to_first_token_seconds_count" + labels,
            "photon_inter_token_latency_seconds_count" + labels,
            "photon_e2e_request_latency_seconds_count" + labels,
        ]
        before = [self.sample(name) for name in names]
        self.generate(40)
        after = [self.sample(name) for name in names]
        self.assertEqual([b - a for a, b in zip(before, after)], [1, 1, 39, 1])

    def test_promtool_finds_no_fault_with_the_text(self):
        need("promtool")
        check = subprocess.run(
            ["promtool", "check", "metrics"],
            input=fetch(self.metrics_url),
            capture_output=True,
            text=True,
        )
        self.assertEqual((check.returncode, check.stderr), (0, ""), check.stdout)

    def test_rules_load_and_alerts_fire_when_they_should(self):
        need("promtool")
        for arguments in (("check", "rules", *RULES), ("test", "rules", "alerts.test.yml")):
            check = subprocess.run(
                ["promtool", *arguments], cwd=DEPLOY, capture_output=True, text=True
            )
            self.assertEqual(check.returncode, 0, check.stdout + check.stderr)

    def test_a_prometheus_scrapes_the_server_and_evaluates_the_rules(self):
        need("prometheus")
        self.generate(8)
        with tempfile.TemporaryDirectory() as folder:
            config = pathlib.Path(folder) / "prometheus.yml"
            target = urllib.parse.urlparse(self.server.http_url).netloc
            settings = {
                "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
                "rule_files": [str(DEPLOY / name) for name in RULES],
                "scrape_configs": [
                    {"job_name": "photon", "static_configs": [{"targets": [target]}]}
                ],
            }
            config.write_text(json.dumps(settings))  # JSON is YAML
            with socket.create_server(("127.0.0.1", 0)) as free:
                address = "127.0.0.1:%d" % free.getsockname()[1]
            with open(pathlib.Path(folder) / "log", "w+") as log:
                prometheus = subprocess.Popen(
                    [
                        "prometheus",
                        f"--config.file={config}",
                        f"--storage.tsdb.path={folder}/data",
                        f"--web.listen-address={address}",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
                try:
                    self.check_prometheus(prometheus, f"http://{address}/api/v1")
                finally:
                    prometheus.terminate()
                    prometheus.wait(PATIENCE_S)

    def check_prometheus(self, prometheus, api):
        def ask(path):
            try:
                return json.loads(fetch(api + path))["data"]
            except urllib.error.URLError:
                return None  # it does not listen yet

        def eventually(condition, path):
            give_up = time.monotonic() + PATIENCE_S
            while time.monotonic() < give_up:
                answer = ask(path)
                if answer is not None and condition(answer):
                    return answer
                try:
                    prometheus.wait(0.1)
                    self.fail("prometheus ended")
                except subprocess.TimeoutExpired:
                    pass
            self.fail(f"{path}: {answer}")

        tokens = urllib.parse.quote("photon_generation_tokens_total > 0")
        eventually(lambda data: data["result"], "/query?query=" + tokens)
        eventually(
            lambda data: all(target["health"] == "up" for target in data["activeTargets"]),
            "/targets",
        )
        data = eventually(
            lambda data: all(
                rule["health"] == "ok" for group in data["groups"] for rule in group["rules"]
            ),
            "/rules",
        )
        rules = [rule for group in data["groups"] for rule in group["rules"]]
        self.assertEqual(sum(rule["type"] == "alerting" for rule in rules), 7)
        self.assertFalse([rule["name"] for rule in rules if rule.get("state") == "firing"])


if __name__ == "__main__":
    unittest.main()
