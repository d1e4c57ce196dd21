"""deploy/kubernetes: every overlay renders, fits the schemas, and sets up a server that starts."""

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest
import urllib.request

import tools
from tools import ROOT

KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())

# Kinds whose schemas are not packaged with the validator. Ours name what must be there, and of
# what type, and refuse fields of `spec` that we do not know: less than the clusters' own schemas.
CUSTOM_KINDS = {
    "ServiceMonitor": (
        "monitoring.coreos.com/v1",
        {"selector": dict, "endpoints": list},
        {"jobLabel": str},
    ),
    "PrometheusRule": ("monitoring.coreos.com/v1", {"groups": list}, {}),
    "ScaledObject": (
        "keda.sh/v1alpha1",
        {"scaleTargetRef": dict, "triggers": list},
        {"minReplicaCount": int, "maxReplicaCount": int, "pollingInterval": int, "advanced": dict},
    ),
    "InferencePool": (
        "inference.networking.k8s.io/v1",
        {"selector": dict, "targetPorts": list, "endpointPickerRef": dict},
        {},
    ),
    "HTTPRoute": ("gateway.networking.k8s.io/v1", {"parentRefs": list, "rules": list}, {}),
    "GRPCRoute": ("gateway.networking.k8s.io/v1", {"parentRefs": list, "rules": list}, {}),
}


def setUpModule():
    tools.need("kubectl", "kubernetes-validate", "yamllint")


def render(overlay):
    """The objects of an overlay."""
    import yaml

    result = tools.run(tools.TOOLS / "kubectl", "kustomize", KUBERNETES / "overlays" / overlay)
    if result.returncode != 0:
        raise AssertionError(result.stderr)
    return list(yaml.safe_load_all(result.stdout))


def find(objects, kind, name=None):
    return next(o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"]))


def pod_of(objects):
    return find(objects, "Deployment", "photon")["spec"]["template"]["spec"]


def patience_s(probe):
    return probe["periodSeconds"] * probe["failureThreshold"]


def envoys_health_checks():
    """Of the Envoy in front, which is the last to hear that a pod leaves."""
    import yaml

    configuration = yaml.safe_load((ROOT / "deploy/envoy/envoy.yaml").read_text())
    clusters = configuration["static_resources"]["clusters"]
    return [check for cluster in clusters for check in cluster["health_checks"]]


def settings_of(objects):
    """What the server's container has in its environment, by name."""
    container = pod_of(objects)["containers"][0]
    settings = {}
    for source in container.get("envFrom", []):
        settings.update(find(objects, "ConfigMap", source["configMapRef"]["name"])["data"])
    settings.update({variable["name"]: variable["value"] for variable in container["env"]})
    return settings


def for_each_overlay(test):
    """Runs `test(self, overlay, objects)` for all overlays."""

    @functools.wraps(test)
    def run(self):
        for overlay in OVERLAYS:
            with self.subTest(overlay=overlay):
                test(self, overlay, self.rendered[overlay])

    return run


class ManifestsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.rendered = {overlay: render(overlay) for overlay in OVERLAYS}

    def test_the_overlays_are_those_that_the_docs_name(self):
        self.assertEqual(OVERLAYS, ["cpu", "dev", "gpu", "gpu-mtls"])

    @for_each_overlay
    def test_every_object_fits_its_schema(self, overlay, objects):
        import kubernetes_validate

        for each in objects:
            kind = each["kind"]
            with self.subTest(kind=kind):
                if kind not in CUSTOM_KINDS:
                    # The newest schemas that the validator brings; unknown fields are errors.
                    kubernetes_validate.validate(
                        each, kubernetes_validate.latest_version(), strict=True
                    )
                    continue
                version, required, optional = CUSTOM_KINDS[kind]
                self.assertEqual(each["apiVersion"], version)
                self.assertLessEqual(required.keys(), each["spec"].keys())
                for field, value in each["spec"].items():
                    self.assertIsInstance(value, {**required, **optional}[field], field)

    def test_a_wrong_field_would_be_found(self):
        import kubernetes_validate

        deployment = json.loads(json.dumps(find(self.rendered["cpu"], "Deployment")))
        pod_of([deployment])["terminationGracePeriod"] = 75
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(
                deployment, kubernetes_validate.latest_version(), strict=True
            )

    def test_yamllint_finds_no_fault(self):
        rules = "{extends: default, rules: {document-start: disable, line-length: {max: 130}}}"
        result = tools.run(tools.TOOLS / "yamllint", "--strict", "-d", rules, KUBERNETES)
        self.assertEqual(result.returncode, 0, result.stdout)

    def test_what_is_generated_is_what_is_committed(self):
        with tempfile.TemporaryDirectory() as directory:
            copy = pathlib.Path(directory, "kubernetes")
            shutil.copytree(KUBERNETES, copy)
            result = tools.run(ROOT / "scripts/generate_manifests", tools.CLI, copy)
            self.assertEqual(result.returncode, 0, result.stderr)
            difference = tools.run("diff", "-r", KUBERNETES, copy)
            self.assertEqual(
                difference.stdout, "", "run scripts/generate_manifests and commit what it writes"
            )

    @for_each_overlay
    def test_every_setting_is_one_of_the_server(self, overlay, objects):
        known = tools.server_variables()
        settings = {name for name in settings_of(objects) if name.startswith("PHOTON_")}
        self.assertLessEqual(settings, known)

    @for_each_overlay
    def test_no_service_adds_variables_that_look_like_settings(self, overlay, objects):
        self.assertIs(pod_of(objects)["enableServiceLinks"], False)

    @for_each_overlay
    def test_pods_live_longer_than_their_drain(self, overlay, objects):
        settings = tools.in_force(settings_of(objects))
        drain = settings["drain-pause"] + settings["drain-timeout"]
        self.assertGreater(pod_of(objects)["terminationGracePeriodSeconds"], drain)

    @for_each_overlay
    def test_pods_serve_on_until_balancers_have_seen_that_they_leave(self, overlay, objects):
        pause = tools.in_force(settings_of(objects))["drain-pause"]
        for check in envoys_health_checks():
            interval, times = float(check["interval"].rstrip("s")), check["unhealthy_threshold"]
            self.assertGreater(pause, interval * times)

    @for_each_overlay
    def test_pods_are_not_killed_while_their_server_may_yet_go_on(self, overlay, objects):
        patience = patience_s(pod_of(objects)["containers"][0]["livenessProbe"])
        self.assertGreater(patience, tools.in_force(settings_of(objects))["step-timeout"])

    def test_a_gpu_is_asked_of_the_cluster_and_of_the_server(self):
        for overlay, objects in self.rendered.items():
            limits = pod_of(objects)["containers"][0]["resources"]["limits"]
            device = settings_of(objects).get("PHOTON_DEVICE")
            self.assertEqual("nvidia.com/gpu" in limits, device == "cuda", overlay)
            self.assertEqual(overlay.startswith("gpu"), device == "cuda", overlay)

    @for_each_overlay
    def test_pods_keep_to_the_restricted_standard(self, overlay, objects):
        pod = pod_of(objects)
        self.assertTrue(pod["securityContext"]["runAsNonRoot"])
        self.assertEqual(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault")
        for container in pod["containers"] + pod.get("initContainers", []):
            context = container["securityContext"]
            self.assertIs(context["allowPrivilegeEscalation"], False)
            self.assertIs(context["readOnlyRootFilesystem"], True)
            self.assertEqual(context["capabilities"]["drop"], ["ALL"])
            self.assertIn("memory", container["resources"]["limits"])

    @for_each_overlay
    def test_ports_and_names_refer_to_what_is_there(self, overlay, objects):
        pod = pod_of(objects)
        ports = {port["name"] for port in pod["containers"][0]["ports"]}
        numbers = {port["containerPort"] for port in pod["containers"][0]["ports"]}
        for each in objects:
            if each["kind"] == "Service" and each["metadata"]["name"] != "photon-envoy":
                self.assertLessEqual({p["targetPort"] for p in each["spec"]["ports"]}, ports)
            if each["kind"] == "InferencePool":
                self.assertLessEqual({p["number"] for p in each["spec"]["targetPorts"]}, numbers)
            if "scaleTargetRef" in each.get("spec", {}):
                self.assertEqual(each["spec"]["scaleTargetRef"]["name"], "photon")
        self.assertIn(pod["containers"][0]["readinessProbe"]["grpc"]["port"], numbers)
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        self.assertLessEqual(mounts, volumes)
        find(objects, "PriorityClass", pod["priorityClassName"])

    def test_grpc_is_routed_to_a_service_that_follows_affinity(self):
        contract = set()
        for path in (ROOT / "proto").rglob("*.proto"):
            text = path.read_text()
            (package,) = re.findall(r"^package ([\w.]+);", text, re.M)
            contract |= {f"{package}.{name}" for name in re.findall(r"^service (\w+)", text, re.M)}
        envoy = find(self.rendered["gpu"], "Service", "photon-envoy")
        routed = set()
        for rule in find(self.rendered["gpu"], "GRPCRoute")["spec"]["rules"]:
            routed |= {match["method"]["service"] for match in rule["matches"]}
            for backend in rule["backendRefs"]:
                self.assertEqual(backend["name"], envoy["metadata"]["name"])
                self.assertIn(backend["port"], [port["port"] for port in envoy["spec"]["ports"]])
        self.assertLessEqual(routed, contract)
        # An operator speaks to one replica. Health is the gateway's own business.
        self.assertEqual(contract - routed, {"photon.v1.AdminService", "grpc.health.v1.Health"})

    @for_each_overlay
    def test_pods_have_no_more_than_one_autoscaler(self, overlay, objects):
        scalers = [o for o in objects if o["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
        self.assertLessEqual(len(scalers), 1)

    def test_components_that_no_overlay_uses_do_not_exist(self):
        overlays = KUBERNETES.glob("overlays/*/kustomization.yaml")
        used = "".join(path.read_text() for path in overlays)
        for component in (KUBERNETES / "components").iterdir():
            self.assertIn(f"components/{component.name}\n", used)

    @for_each_overlay
    def test_the_settings_start_a_server(self, overlay, objects):
        with serving(settings_of(objects)) as (http, health):
            self.assertEqual(http.startswith("https:"), overlay == "gpu-mtls")
            self.assertTrue(health)

    def test_metrics_that_are_asked_for_exist(self):
        asked = set()
        for path in KUBERNETES.rglob("*.yaml"):
            asked |= set(re.findall(r"\bphoton_[a-z_]+\b", path.read_text()))
        self.assertIn("photon_num_requests_waiting", asked)
        with serving(settings_of(self.rendered["cpu"])) as (http, _):
            with urllib.request.urlopen(f"{http}/metrics", timeout=tools.PATIENCE_S) as response:
                names = set(re.findall(r"\b(photon_\w+)", response.read().decode()))
        self.assertEqual({name for name in asked - names if not is_rule(name)}, set())


def is_rule(name):
    """Whether `name` is the middle of a recorded series, as in model:photon_step_rows:mean5m."""
    rules = (ROOT / "deploy/prometheus/recording.rules.yml").read_text()
    return f":{name}:" in rules


def files_of(settings, directory):
    """Real keys and certificates in place of those that Secrets hold."""
    files = {}
    if "PHOTON_API_KEYS" in settings:
        path = pathlib.Path(directory, "keys")
        path.write_text(tools.run(tools.SERVER, "keys", "create", "alice").stdout)
        files["PHOTON_API_KEYS"] = str(path)
    if "PHOTON_TLS_CERT" in settings:
        certificate, key = pathlib.Path(directory, "tls.crt"), pathlib.Path(directory, "tls.key")
        made = tools.run(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "1", "-subj", "/CN=photon", "-keyout", key, "-out", certificate,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        files["PHOTON_TLS_CERT"] = files["PHOTON_TLS_CLIENT_CA"] = str(certificate)
        files["PHOTON_TLS_KEY"] = str(key)
    return files


@contextlib.contextmanager
def serving(settings):
    """A server with the settings of a pod: the addresses of its HTTP port and of plain health."""
    kept = ("PATH", "ASAN_OPTIONS", "UBSAN_OPTIONS")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    with tempfile.TemporaryDirectory() as directory:
        # Where this machine is not the pod: its addresses, volumes, size and device.
        settings = {
            **settings,
            "PHOTON_MODEL": str(ROOT / "models/demo"),
            "PHOTON_LISTEN": "0.0.0.0:0",
            "PHOTON_HTTP_LISTEN": "0.0.0.0:0",
            "PHOTON_HEALTH_LISTEN": "127.0.0.1:0",
            "PHOTON_KV_MEMORY": "64MiB",
            "PHOTON_THREADS": "1",
            "PHOTON_DRAIN_PAUSE": "0",  # nobody balances here
            **files_of(settings, directory),
        }
        settings.pop("PHOTON_DEVICE", None)
        process = subprocess.Popen(
            [tools.SERVER],
            env={**environment, **settings},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        log, http, health = [], None, None
        try:
            for line in process.stderr:
                log.append(line)
                if match := re.search(r"HTTP at (https?)://\S+:(\d+)", line):
                    http = f"{match.group(1)}://127.0.0.1:{match.group(2)}"
                if match := re.search(r"health on (\S+:\d+)", line):
                    health = match.group(1)
                if "serving " in line:
                    break
            else:
                raise AssertionError("the server did not start:\n" + "".join(log))
            yield http, health
        finally:
            process.terminate()
            process.stderr.read()
            code = process.wait(tools.PATIENCE_S)
            process.stderr.close()
        assert code == 0, f"the server ended with {code}"


if __name__ == "__main__":
    unittest.main()
