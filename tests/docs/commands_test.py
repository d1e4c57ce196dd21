"""Every command that README.md and docs/operate tell people to type is typed here, or is listed as not run."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

import pages
from pages import ROOT

PROGRAMS = {
    "build/release/server/photon-server": os.environ["PHOTON_SERVER_PROGRAM"],
    "build/release/client/photon": os.environ["PHOTON_CLI_PROGRAM"],
    "build/release/bench/photon-engine-bench": os.environ["PHOTON_BENCH_PROGRAM"],
}
TOOLS = ("curl", "openssl", "promtool", "kubectl")
PATIENCE_S = 100

# Ports of its own, where the system allows it: the default ones may be taken.
ISOLATED = ["unshare", "--map-root-user", "--net"]
LOOPBACK_UP = """
import fcntl, socket, struct
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
"""

PRELUDE = """
set -euo pipefail
stop_server() {
  [[ -z ${_server-} ]] && return
  kill "$_server"
  wait "$_server"
  _server=
}
trap 'stop_server; exit 1' ERR
"""

SERVER = """
stop_server
(
{text}
) >server.out 2>server.log &
_server=$!
until grep -q ' serving \\|"serving ' server.log; do
  kill -0 "$_server" || {{ cat server.log >&2; exit 1; }}
  sleep 0.05
done
"""


def script_of(blocks):
    """What the page's blocks say, as one shell script."""
    parts = [PRELUDE]
    for block in blocks:
        parts.append(f"echo '== {block}' >&2\n")
        if block.mark == "server":
            # The shell that the page's reader types into becomes the server.
            lines = block.text.rstrip("\n").rpartition("\n")
            parts.append(SERVER.format(text=f"{lines[0]}\nexec {lines[2]}"))
        elif block.mark == "run":
            parts.append(f"set -x\n{block.text}{{ set +x; }} 2>/dev/null\n")
    return "".join([*parts, "stop_server\n"])


def run(command, folder, environment):
    """The exit code and what was said. Whatever the command leaves behind is ended."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PHOTON_")}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**kept, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(PATIENCE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return code, output.read()


class CommandsTest(unittest.TestCase):
    def path(self, directory):
        """Where the shell looks for programs: as if they were installed."""
        for name, program in PROGRAMS.items():
            (directory / pathlib.Path(name).name).symlink_to(program)
        return f"{directory}:{ROOT}/build/test-clients/bin:{os.environ['PATH']}"

    def check(self, page):
        blocks = pages.blocks_of(page)
        for block in blocks:
            self.assertIn(block.mark, pages.RUN_HERE + pages.NOT_RUN_HERE, str(block))
            syntax = subprocess.run(["bash", "-n"], input=block.text, text=True, check=False)
            self.assertEqual(syntax.returncode, 0, str(block))
            if block.mark in pages.NOT_RUN_HERE:
                print(f"\n{block}: not run, needs: {block.mark}", flush=True)
                self.check_what_is_named(block)
        if not any(block.mark in pages.RUN_HERE for block in blocks):
            return
        with tempfile.TemporaryDirectory() as scratch:
            folder, bin_folder = pathlib.Path(scratch, "photon"), pathlib.Path(scratch, "bin")
            folder.mkdir()
            bin_folder.mkdir()
            path = self.path(bin_folder)
            for tool in TOOLS:
                if shutil.which(tool, path=path) is None and re.search(
                    rf"^\s*{tool}\b", "".join(b.text for b in blocks if b.mark == "run"), re.M
                ):
                    self.assertNotIn("CI", os.environ, f"no {tool}")
                    self.skipTest(f"no {tool}: run scripts/install_deps --checks")
            # A copy to type in: what pages name is there, and what they write stays here.
            for name in ("models", "docs", "deploy", "scripts", "proto"):
                (folder / name).symlink_to(ROOT / name)
            for name, program in PROGRAMS.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).symlink_to(program)
            command = ["bash", "-c", script_of(blocks)]
            if subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode == 0:
                up = 'python3 -c "$1" && exec bash -c "$2"'
                command = [*ISOLATED, "bash", "-c", up, "-", LOOPBACK_UP, script_of(blocks)]
            code, said = run(command, folder, {"PATH": path, "HOME": scratch})
            log = folder / "server.log"
            self.assertEqual(code, 0, said + (log.read_text() if log.exists() else ""))

    def check_what_is_named(self, block):
        """Paths and flags of commands that cannot run here."""
        for path in re.findall(r"\b(?:deploy|scripts|models|docs)/[\w./-]*\w", block.text):
            self.assertTrue((ROOT / path).exists(), f"{block}: {path}")
        for line in block.text.replace("\\\n", " ").splitlines():
            words = line.split()
            for name, program in PROGRAMS.items():
                if not words or pathlib.Path(words[0]).name != pathlib.Path(name).name:
                    continue
                command = [w for w in words[1:2] if not w.startswith("-") and "server" not in name]
                text = subprocess.run(
                    [program, *command, "--help"], capture_output=True, text=True, check=False
                ).stdout
                for flag in re.findall(r"\s(--[\w-]+)", line):
                    self.assertIn(flag, text, f"{block}: {line}")

    def test_a_command_that_fails_would_be_found(self):
        page = ROOT / "README.md"
        for block in (
            pages.Block(page, 0, "run", "photon-server --no-such-flag\n"),
            pages.Block(page, 0, "run", "false\ntrue\n"),
            pages.Block(page, 0, "server", "photon-server --model nowhere\n"),
        ):
            with tempfile.TemporaryDirectory() as scratch:
                path = self.path(pathlib.Path(scratch))
                code, _ = run(["bash", "-c", script_of([block])], scratch, {"PATH": path})
                self.assertNotEqual(code, 0, block.text)


def add_page(page):
    name = str(page.relative_to(ROOT)).replace("/", "_").replace(".md", "").lower()
    setattr(CommandsTest, f"test_commands_of_{name}", lambda self: self.check(page))


for each_page in pages.PAGES:
    add_page(each_page)


if __name__ == "__main__":
    unittest.main()
