"""The programs under test, and a photon-server to talk to."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading

import grpc

# Taken out: a photon-server would look for settings of such names.
SERVER = os.environ.pop("PHOTON_SERVER_PROGRAM")
CLI = os.environ.pop("PHOTON_CLI_PROGRAM")
MODEL = os.environ.pop("PHOTON_TEST_MODEL")

# Longer than anything here takes, under a sanitizer too: a test that hangs fails.
PATIENCE_S = 90

# Flags of a server whose streams of hundreds of tokens last long enough to be met half way.
SLOW = ("--threads", "1", "--compute", "f32")

STORY = "Once upon a time there was a little girl"


# What systemd does before it starts a service: two sockets become descriptors 3 and 4.
HAND_OVER = """
import fcntl, os, sys
for target, fd in enumerate([fcntl.fcntl(int(fd), fcntl.F_DUPFD, 64) for fd in sys.argv[1:3]], 3):
    os.dup2(fd, target)
os.environ.update(LISTEN_FDS="2", LISTEN_FDNAMES="grpc:http", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[3], sys.argv[3:])
"""


def server_environment():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PHOTON_")}
    # An allocation that cannot be had fails under AddressSanitizer as it does without.
    options = environment.get("ASAN_OPTIONS", "")
    environment["ASAN_OPTIONS"] = f"{options}:allocator_may_return_null=1"
    return environment


class ServerProcess:
    """A photon-server on a free loopback port, serving from the moment it is made."""

    def __init__(
        self, *flags, model=MODEL, listen="127.0.0.1:0", http_listen="127.0.0.1:0", sockets=()
    ):
        """With `sockets`, it takes over two listening ones as systemd hands them over."""
        if sockets:
            listen, http_listen = "fd:grpc", "fd:http"
        command = [SERVER, "--model", model, "--listen", listen, "--http-listen", http_listen, *flags]
        fds = [socket.fileno() for socket in sockets]
        self._process = subprocess.Popen(
            [sys.executable, "-c", HAND_OVER, *map(str, fds), *command] if sockets else command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=fds,
            env=server_environment(),
        )
        self._lines = []
        self.address = None
        self.health_address = None
        self.http_url = None
        for line in self._process.stderr:
            self._lines.append(line)
            if match := re.search(r"HTTP at (\S+)", line):
                self.http_url = match.group(1)
            if match := re.search(r"health on \S+:(\d+)", line):
                self.health_address = "127.0.0.1:" + match.group(1)
            if match := re.search(r"serving \S+ on (\S+):(\d+)", line):
                host = match.group(1) if match.group(1).startswith("127.") else "127.0.0.1"
                self.address = f"{host}:{match.group(2)}"
                break
        # A pipe that nobody reads would hold up the server's log.
        self._reader = threading.Thread(target=lambda: self._lines.extend(self._process.stderr))
        self._reader.start()
        if self.address is None:
            self.wait()
            raise RuntimeError("photon-server did not start:\n" + self.log)

    @property
    def is_running(self):
        return self._process.poll() is None

    @property
    def pid(self):
        return self._process.pid

    def signal(self, number=signal.SIGTERM):
        self._process.send_signal(number)

    def wait(self):
        """The exit code."""
        code = self._process.wait(PATIENCE_S)
        self._reader.join()
        self._process.stderr.close()
        # Whatever a test was about: nobody is left who has pages.
        pages = re.search(r"(\d+) cache pages in use", self.log)
        if code == 0 and pages is not None and pages.group(1) != "0":
            raise RuntimeError(f"photon-server ended with {pages.group(0)}:\n{self.log}")
        return code

    @property
    def log(self):
        return "".join(self._lines)

    def stop(self):
        """Drains the server; anything but a clean end is an error."""
        if self._process.returncode is not None:
            return
        self.signal()
        try:
            code = self.wait()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.wait()
            raise
        if code != 0:
            raise RuntimeError(f"photon-server ended with {code}:\n{self.log}")


def own_addresses(number):
    """(gRPC, HTTP) to listen on, which stay free while nobody listens there, for a server that is started again:
    any connection may take a free port of 127.0.0.1. Of this process, and each number other ones."""
    pid = os.getpid()
    host = f"127.{1 + (pid >> 16) % 254}.{(pid >> 8) % 256}.{pid % 256}"
    return f"{host}:{20000 + number}", f"{host}:{28000 + number}"


@contextlib.contextmanager
def server(*flags, **settings):
    process = ServerProcess(*flags, **settings)
    try:
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def channel_to(process):
    with grpc.insecure_channel(process.address) as channel:
        yield channel


def stats(process):
    """What a server without keys says of itself."""
    # Not everybody who comes here has the stubs of services.
    from photon.v1 import admin_pb2, admin_pb2_grpc

    with channel_to(process) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        return stub.GetStats(admin_pb2.GetStatsRequest(), timeout=PATIENCE_S)
