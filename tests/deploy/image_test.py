"""The Dockerfile. scripts/build_image builds from it; that takes too long for here."""

import re
import unittest

import tools
from tools import ROOT


class ImageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        tools.need("hadolint")
        cls.dockerfile = (ROOT / "Dockerfile").read_text()

    def test_hadolint_finds_no_fault(self):
        result = tools.run(tools.TOOLS / "hadolint", ROOT / "Dockerfile")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_every_setting_in_it_is_one_of_the_server(self):
        settings = set(re.findall(r"^\s*(?:ENV )?\s*(PHOTON_\w+)=", self.dockerfile, re.MULTILINE))
        self.assertIn("PHOTON_MODEL", settings)
        self.assertLessEqual(settings, tools.server_variables())

    def test_what_it_copies_is_not_ignored(self):
        allowed = {
            line[1:].rstrip("/")
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line.startswith("!")
        }
        folders = re.findall(r"add_subdirectory\((\w+)", (ROOT / "CMakeLists.txt").read_text())
        for path in {*folders, "cmake", "scripts/install_deps", "models", "LICENSE"} - {"tests"}:
            self.assertTrue(path in allowed, f"{path} is built from, and .dockerignore hides it")
        for path in allowed:
            self.assertTrue((ROOT / path).exists(), path)

    def test_shell_scripts_in_it_parse(self):
        for script in (ROOT / "deploy/image").iterdir():
            self.assertEqual(tools.run("sh", "-n", script).returncode, 0, script)

    def test_the_sbom_of_this_machine_is_spdx(self):
        # The part of install-runtime that writes it, on whatever packages are installed here.
        script = (ROOT / "deploy/image/install-runtime").read_text()
        writer = script[script.index("# SPDX") : script.index("} >/usr/share")]
        writer = writer.replace("mkdir -p /usr/share/photon", "") + "}"
        text = tools.run("sh", "-euc", writer, "install-runtime", "packages", "0.1.0").stdout
        self.assertTrue(text.startswith("SPDXVersion: SPDX-2.3\n"), text[:200])
        packages = text.split("\n\n")[1:]
        self.assertGreater(len(packages), 10)
        identifiers = [re.search(r"^SPDXID: SPDXRef-([A-Za-z0-9.-]+)$", p, re.M) for p in packages]
        self.assertNotIn(None, identifiers)
        for package in packages[1:]:
            self.assertRegex(package, r"(?m)^ExternalRef: PACKAGE-MANAGER purl pkg:deb/\S+@\S+$")


if __name__ == "__main__":
    unittest.main()
