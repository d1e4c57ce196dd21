"""The repository, the programs under test, and tools that may be missing."""

import os
import pathlib
import re
import subprocess
import tomllib
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ROOT / "build/test-clients/bin"
SERVER = os.environ["PHOTON_SERVER_PROGRAM"]
CLI = os.environ["PHOTON_CLI_PROGRAM"]
PATIENCE_S = 100


def need(*names):
    """Skips where a tool is missing, except for whoever checks a change."""
    for name in names:
        if not (TOOLS / name).exists() and "CI" not in os.environ:
            raise unittest.SkipTest(f"no {name}: run scripts/install_test_clients")


def run(*command, **settings):
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        **settings,
    )


def server_variables():
    """The environment variables that photon-server reads, by its own help."""
    return set(re.findall(r"Env:(PHOTON_\w+)", run(SERVER, "--help").stdout))


def in_force(variables):
    """The settings that photon-server has in an environment, by their names in a file."""
    printed = run(SERVER, "--print-config", "--model", ROOT / "models/demo", env=variables)
    if printed.returncode != 0:
        raise AssertionError(printed.stderr)
    return tomllib.loads(printed.stdout)
