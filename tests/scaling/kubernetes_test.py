"""Envoy as a component of the Kubernetes manifests."""

import pathlib
import shutil
import subprocess
import tempfile
import unittest
import urllib.error
import urllib.request

from photon_client import Client

import replicas
from programs import PATIENCE_S, STORY

KUBECTL = replicas.ENVOY.with_name("kubectl")
OVERLAY = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: photon
resources: [../cpu]
components: [../../../envoy]
"""


@unittest.skipIf(replicas.missing(), replicas.missing())
class KubernetesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import yaml

        with tempfile.TemporaryDirectory() as directory:
            deploy = pathlib.Path(directory, "deploy")
            shutil.copytree(replicas.ROOT / "deploy", deploy)
            overlay = deploy / "kubernetes/overlays/with-envoy"
            overlay.mkdir()
            (overlay / "kustomization.yaml").write_text(OVERLAY)
            rendered = subprocess.run(
                [KUBECTL, "kustomize", overlay], capture_output=True, text=True, check=False
            )
        assert rendered.returncode == 0, rendered.stderr
        objects = [o for o in yaml.safe_load_all(rendered.stdout) if o]
        cls.objects = [o for o in objects if o["metadata"]["name"].startswith("photon-envoy")]
        cls.services = {o["metadata"]["name"]: o for o in objects if o["kind"] == "Service"}
        (cls.deployment,) = [o for o in cls.objects if o["kind"] == "Deployment"]
        cls.pod = cls.deployment["spec"]["template"]["spec"]
        (cls.container,) = cls.pod["containers"]

    def test_every_object_fits_its_schema(self):
        import kubernetes_validate

        self.assertEqual(len(self.objects), 4)
        for each in self.objects:
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)

    def test_the_pod_runs_the_configuration_beside_it(self):
        (configuration,) = [o for o in self.objects if o["kind"] == "ConfigMap"]
        self.assertEqual(
            self.pod["volumes"][0]["configMap"]["name"], configuration["metadata"]["name"]
        )
        for name, text in configuration["data"].items():
            self.assertEqual(text, (replicas.DEPLOYED / name).read_text())
        self.assertIn("envoy.yaml", self.container["command"])
        self.assertEqual(self.container["workingDir"], self.container["volumeMounts"][0]["mountPath"])
        self.assertIn("photon-headless", configuration["data"]["envoy.yaml"])
        self.assertEqual(self.services["photon-headless"]["spec"]["clusterIP"], "None")
        selector = self.services["photon-envoy"]["spec"]["selector"]
        self.assertEqual(selector, self.deployment["spec"]["template"]["metadata"]["labels"])

    def test_a_pod_that_ends_lets_streams_finish(self):
        command = list(self.container["lifecycle"]["preStop"]["exec"]["command"])
        self.assertIn("sleep 60", command[-1])
        self.assertGreater(self.pod["terminationGracePeriodSeconds"], 60)
        with replicas.replicas(1, "--threads", "1") as servers:
            with replicas.envoy(servers.servers) as envoy, Client(envoy.address) as client:
                ready = f"http://{envoy.address}/envoy/ready"
                with urllib.request.urlopen(ready, timeout=PATIENCE_S) as answer:
                    self.assertEqual(answer.status, 200)
                stream = client.stream(STORY, max_tokens=200, ignore_eos=True, timeout_s=PATIENCE_S)
                chunks = [next(stream)]
                admin = envoy.admin_address.replace(":", "/")
                command[-1] = command[-1].replace("127.0.0.1/9901", admin).replace("sleep 60", "true")
                subprocess.run(command, check=True, timeout=PATIENCE_S)
                chunks.extend(stream)
                self.assertEqual(sum(len(chunk.token_ids) for chunk in chunks), 200)
                with self.assertRaises((urllib.error.HTTPError, OSError)) as caught:
                    urllib.request.urlopen(ready, timeout=PATIENCE_S)
                if isinstance(caught.exception, urllib.error.HTTPError):
                    caught.exception.close()


if __name__ == "__main__":
    unittest.main()
