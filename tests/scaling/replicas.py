"""Three real photon-servers behind a real Envoy that runs the configuration of deploy/envoy."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request

import programs
from programs import PATIENCE_S

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENVOY = ROOT / "build/test-clients/bin/envoy"
DEPLOYED = ROOT / "deploy/envoy"


def eventually(condition):
    """Until what happens in other processes has happened."""
    give_up = time.monotonic() + PATIENCE_S
    while not (result := condition()):
        if time.monotonic() > give_up:
            raise AssertionError("it did not happen")
        time.sleep(0.02)
    return result


class Envoy:
    """Runs a configuration file with the names of replicas, and its own addresses, replaced."""

    def __init__(self, servers, configuration="envoy.yaml", tls_files=None):
        self._directory = tempfile.TemporaryDirectory()
        directory = pathlib.Path(self._directory.name)
        shutil.copy(DEPLOYED / "routes.yaml", directory)
        (directory / "secrets").mkdir()
        for path in (DEPLOYED / "secrets").iterdir():
            # Certificates of tests are for this machine.
            text = path.read_text().replace("photon.example.com", "localhost")
            (directory / "secrets" / path.name).write_text(text)
        (directory / "tls").mkdir()
        for name, path in (tls_files or {}).items():
            shutil.copy(path, directory / "tls" / name)
        text = (DEPLOYED / configuration).read_text()
        endpoint = re.compile(
            r"^( *- endpoint: .*)address: photon-headless, port_value: (\d+)(.*)$", re.MULTILINE
        )
        ports = {"50051": [s.address for s in servers]}
        ports["8000"] = [s.http_url.split("/")[2] for s in servers]

        def replicas(match):
            lines = []
            for address in ports[match.group(2)]:
                host, port = address.split(":")
                lines.append(f"{match.group(1)}address: {host}, port_value: {port}{match.group(3)}")
            return "\n".join(lines)

        text, replaced = endpoint.subn(replicas, text)
        assert replaced == 2, "the configuration's replicas are written otherwise"
        text = text.replace("address: 127.0.0.1, port_value: 9901", "address: 127.0.0.1, port_value: 0")
        text = re.sub(r"address: 0\.0\.0\.0, port_value: \d+", "address: 127.0.0.1, port_value: 0", text)
        (directory / configuration).write_text(text)
        self._log = open(directory / "access.log", "w+")
        self._errors = open(directory / "envoy.log", "w+")
        admin = directory / "admin"
        self._process = subprocess.Popen(
            [ENVOY, "-c", configuration, "--concurrency", "1", "--disable-hot-restart"]
            + ["--drain-strategy", "immediate", "--log-level", "warning", "--file-flush-interval-msec", "100"]
            + ["--admin-address-path", admin],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._errors,
        )
        try:
            eventually(lambda: self._running() and admin.exists() and admin.read_text())
            self.admin_address = admin.read_text()
            listeners = eventually(
                lambda: self.admin("/listeners?format=json").get("listener_statuses")
            )
            address = listeners[0]["local_address"]["socket_address"]
            self.address = f"{address['address']}:{address['port_value']}"
            eventually(lambda: all(len(up) == len(servers) for up in self.healthy().values()))
        except BaseException:
            self.stop()
            raise

    def _running(self):
        if self._process.poll() is not None:
            self._errors.seek(0)
            raise AssertionError("Envoy ended:\n" + self._errors.read())
        return True

    def admin(self, path):
        with urllib.request.urlopen(f"http://{self.admin_address}{path}", timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def healthy(self):
        """The addresses that each cluster sends calls to."""
        clusters = {}
        for cluster in self.admin("/clusters?format=json")["cluster_statuses"]:
            clusters[cluster["name"]] = {
                "{address}:{port_value}".format(**host["address"]["socket_address"])
                for host in cluster.get("host_statuses", ())
                if host["health_status"] == {"eds_health_status": "HEALTHY"}
            }
        return clusters

    def access_log(self):
        """One line per request that ended."""
        self._log.flush()
        self._log.seek(0)
        return [json.loads(line) for line in self._log.read().splitlines() if line.endswith("}")]

    def stop(self):
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        for file in (self._log, self._errors):
            file.close()
        self._directory.cleanup()


@contextlib.contextmanager
def envoy(servers, *args, **settings):
    process = Envoy(servers, *args, **settings)
    try:
        yield process
    finally:
        process.stop()


class Replicas:
    """Servers that can be ended and started again at their addresses."""

    _numbers = itertools.count()

    def __init__(self, number=3, *flags):
        self._flags = flags
        self._addresses = [programs.own_addresses(next(self._numbers)) for _ in range(number)]
        self.servers = []
        try:
            for index in range(number):
                self.servers.append(self._start(index))
        except BaseException:
            self.stop()
            raise

    def __getitem__(self, index):
        return self.servers[index]

    def _start(self, index):
        listen, http_listen = self._addresses[index]
        return programs.ServerProcess(*self._flags, listen=listen, http_listen=http_listen)

    def restart(self, index):
        self.servers[index] = self._start(index)

    def stop(self):
        for server in self.servers:
            server.stop()


@contextlib.contextmanager
def replicas(*args):
    started = Replicas(*args)
    try:
        yield started
    finally:
        started.stop()


def missing():
    """Why tests with Envoy are to be skipped, if they are."""
    return None if ENVOY.exists() or "CI" in os.environ else "run scripts/install_test_clients"
