"""Three real photon-servers behind a real Envoy that runs the configuration of deploy/envoy."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request

import programs
from programs import PATIENCE_S

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENVOY = ROOT / "build/test-clients/bin/envoy"
DEPLOYED = ROOT / "deploy/envoy"


def until(condition):
    """Asks again and again, which is `condition`'s own work, until the answer is yes."""
    give_up = time.monotonic() + PATIENCE_S
    while not (result := condition()):
        assert time.monotonic() < give_up, "it did not happen"
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
        self._num_clusters = len(re.findall(r"^  - name: .*\n    type: STRICT_DNS$", text, re.MULTILINE))
        text = text.replace("address: 127.0.0.1, port_value: 9901", "address: 127.0.0.1, port_value: 0")
        text = re.sub(r"address: 0\.0\.0\.0, port_value: \d+", "address: 127.0.0.1, port_value: 0", text)
        (directory / configuration).write_text(text)
        admin = directory / "admin"
        self._changed = threading.Condition()
        self._said = []  # lines that are no JSON
        self._events = []  # requests that ended; replicas that came and went
        self._ended = False
        self._process = subprocess.Popen(
            [ENVOY, "-c", configuration, "--concurrency", "1", "--disable-hot-restart"]
            + ["--drain-strategy", "immediate", "--file-flush-interval-msec", "100"]
            + ["--log-level", "warning", "--component-log-level", "config:info"]
            + ["--admin-address-path", admin],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            self._await(lambda: any("starting workers" in line for line in self._said))
            self.admin_address = admin.read_text()
            listener = self.admin("/listeners?format=json")["listener_statuses"][0]
            address = listener["local_address"]["socket_address"]
            self.address = f"{address['address']}:{address['port_value']}"
            until(self._accepts)
            self.await_replicas(len(servers))
        except BaseException:
            self.stop()
            raise

    def _read(self):
        for line in self._process.stdout:
            with self._changed:
                if line.startswith("{"):
                    self._events.append(json.loads(line))
                else:
                    self._said.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _await(self, condition):
        """Until what Envoy says makes `condition` true."""
        with self._changed:
            happened = self._changed.wait_for(lambda: self._ended or condition(), PATIENCE_S)
            assert happened and condition(), "Envoy did not say so:\n" + "".join(self._said)

    def _accepts(self):
        host, port = self.address.split(":")
        try:
            socket.create_connection((host, int(port)), PATIENCE_S).close()
        except ConnectionRefusedError:
            return False
        return True

    def admin(self, path):
        with urllib.request.urlopen(f"http://{self.admin_address}{path}", timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def _healthy(self):
        """The addresses in each cluster that are healthy."""
        clusters = {}
        for event in self._events:
            if "cluster_name" not in event:
                continue
            up = clusters.setdefault(event["cluster_name"], set())
            address = "{address}:{port_value}".format(**event["host"]["socket_address"])
            if "add_healthy_event" in event:
                up.add(address)
            elif "eject_unhealthy_event" in event:
                up.discard(address)
        return clusters

    def await_replicas(self, number):
        """Until Envoy sends all kinds of calls to that many."""

        def all_clusters():
            clusters = self._healthy()
            return len(clusters) == self._num_clusters and all(
                len(up) == number for up in clusters.values()
            )

        self._await(all_clusters)

    def await_gone(self, address):
        """Until Envoy sends no calls to a replica's gRPC port."""
        self._await(lambda: not any(address in up for up in self._healthy().values()))

    def await_request(self, request_id):
        """The line of the log about a request, once that has ended."""
        found = {}
        self._await(lambda: found.update(self._requests()) or request_id in found)
        return found[request_id]

    def _requests(self):
        return {event["id"]: event for event in self._events if "id" in event}

    def stop(self):
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        self._reader.join()
        self._process.stdout.close()
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
        """All at a time: each may take its pause."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(programs.ServerProcess.stop, self.servers))


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
