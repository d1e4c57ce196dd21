"""photon_client as its users get it: the wheel, in a new environment with packages from PyPI; and its types."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
TOOLS = ROOT / "build/python-client-tools"
CLIENT = ROOT / "client/python"

USER_CODE = """
import asyncio
from photon_client import AsyncClient, Client, PhotonError, RegularExpression

def story(client: Client) -> str:
    try:
        return client.generate("Once", max_tokens=4, stop=["."], mode="exact").text
    except PhotonError as error:
        return error.code

async def stream(client: AsyncClient) -> list[str]:
    vote = await client.vote("Once", 3, answer=RegularExpression("a"))
    return [vote.answer] + [chunk.text async for chunk in client.stream("Once", n=2)]
"""
WRONG_CODE = """
from photon_client import Client
Client().generate("Once", max_tokens="4")
Client().generate("Once", warmth=1)
Client().generate("Once", mode="fast")
"""


def run(*command, **settings):
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **settings
    )
    if result.returncode:
        raise AssertionError(f"{command}: {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


@unittest.skipUnless(TOOLS.exists() or "CI" in os.environ, "run scripts/install_test_clients")
class WheelTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.directory = pathlib.Path(directory.name)
        # As `python -m build` does: the wheel is made of the source distribution.
        hatchling = (TOOLS / "bin/python", "-m", "hatchling", "build", "-d", cls.directory)
        run(*hatchling, "-t", "sdist", cwd=CLIENT)
        (sdist,) = cls.directory.glob("*.tar.gz")
        run("tar", "xzf", sdist, "-C", cls.directory)
        run(*hatchling, "-t", "wheel", cwd=sdist.with_suffix("").with_suffix(""))
        (cls.wheel,) = cls.directory.glob("*.whl")

    def test_the_wheel_works_with_packages_from_pypi(self):
        self.assert_tests_pass("pypi", "--find-links", TOOLS / "wheels")

    def test_the_wheel_works_with_the_systems_packages(self):
        self.assert_tests_pass("system", system_packages=True)

    def assert_tests_pass(self, name, *pip_options, system_packages=False):
        environment = self.directory / name
        run(
            *(sys.executable, "-m", "venv", environment),
            *(["--system-site-packages"] if system_packages else []),
        )
        run(
            *(environment / "bin/pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", *pip_options, self.wheel),
        )
        here = pathlib.Path(__file__).parent
        settings = {"cwd": here, "env": {**os.environ, "PYTHONPATH": f"{here}:{ROOT / 'tests/e2e'}"}}
        python = environment / "bin/python"
        where = run(python, "-c", "import photon_client; print(photon_client.__file__)", **settings)
        self.assertIn(str(environment), where)
        run(python, "-m", "unittest", "client_test.ClientTest", "aio_test", **settings)

    def test_types_hold_for_us_and_for_users(self):
        package = self.directory / "package"
        run(TOOLS / "bin/python", "-m", "zipfile", "-e", self.wheel, package)
        mypy = (TOOLS / "bin/mypy", "--config-file", CLIENT / "pyproject.toml", "--cache-dir", self.directory / "cache")
        environment = {**os.environ, "MYPYPATH": str(package)}
        run(*mypy, "-p", "photon_client", env=environment, cwd=package)
        run(*mypy, "-c", USER_CODE, env=environment, cwd=package)
        with self.assertRaises(AssertionError) as caught:
            run(*mypy, "-c", WRONG_CODE, env=environment, cwd=package)
        self.assertIn("Found 3 errors", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
