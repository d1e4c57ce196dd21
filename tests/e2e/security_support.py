"""Keys and certificates for tests, made afresh with the programs that users have."""

import pathlib
import subprocess
import threading
import time

import programs
from programs import PATIENCE_S


def create_key(name, *flags):
    """(key, its line for the file)"""
    result = subprocess.run(
        [programs.SERVER, "keys", "create", name, *flags],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    return result.stderr.split()[-1], result.stdout


def bearer(key):
    return (("authorization", f"Bearer {key}"),)


def eventually(condition):
    """Until what happens in another process has happened."""
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > give_up:
            raise AssertionError("it did not happen")
        threading.Event().wait(0.01)


class Authority:
    """An authority, and the certificates that it signs, in a folder."""

    def __init__(self, directory, name="authority"):
        self._directory = pathlib.Path(directory)
        self._name = name
        self.key = self._directory / f"{name}.key"
        self.certificate = self._directory / f"{name}.pem"
        self._openssl(
            "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 1",
            *("-subj", f"/CN={name}", "-keyout", self.key, "-out", self.certificate),
        )

    def issue(self, name):
        """(certificate, key): good for localhost and 127.0.0.1, and for clients."""
        stem = self._directory / f"{self._name}-{name}"
        certificate, key, request = (stem.with_suffix(end) for end in (".pem", ".key", ".csr"))
        extensions = self._directory / "extensions"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self._openssl(
            "req -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256",
            *("-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        self._openssl(
            "x509 -req -days 1 -CAcreateserial",
            *("-in", request, "-CA", self.certificate, "-CAkey", self.key),
            *("-extfile", extensions, "-out", certificate),
        )
        return certificate, key

    @staticmethod
    def _openssl(command, *arguments):
        subprocess.run(
            ["openssl", *command.split(), *map(str, arguments)], check=True, capture_output=True
        )
