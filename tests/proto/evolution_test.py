"""scripts/check_proto: the wire contract keeps what its clients rely on, and would say if it did not."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUF = ROOT / "build/test-clients/bin/buf"


def check(directory):
    return subprocess.run(
        [ROOT / "scripts/check_proto", directory], capture_output=True, text=True, check=False
    )


@unittest.skipUnless(BUF.exists() or "CI" in os.environ, "run scripts/install_test_clients")
class EvolutionTest(unittest.TestCase):
    def changed(self, file, old, new):
        """What the check says of the contract with `old` replaced by `new`."""
        with tempfile.TemporaryDirectory() as directory:
            copy = pathlib.Path(directory, "proto")
            shutil.copytree(ROOT / "proto", copy)
            path = copy / "photon/v1" / file
            text = path.read_text()
            self.assertIn(old, text)
            path.write_text(text.replace(old, new, 1))
            return check(copy)

    def assert_refused(self, mention, *change):
        result = self.changed(*change)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(mention, result.stdout)

    def test_the_contract_keeps_what_clients_rely_on(self):
        result = check(ROOT / "proto")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_additions_are_fine(self):
        result = self.changed(
            "generation.proto",
            "message TokenIds {\n",
            "message TokenIds {\n  string added = 1000;\n",
        )
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_a_removed_field_is_found(self):
        self.assert_refused(
            '"ignore_eos"', "generation.proto", "  bool ignore_eos = 3;\n", ""
        )

    def test_a_renumbered_field_is_found(self):
        self.assert_refused(
            '"id"', "document.proto", "string id = 1;", "string id = 1000;"
        )

    def test_a_changed_type_is_found(self):
        self.assert_refused(
            '"int64"', "model.proto", "int64 num_parameters = 4;", "int32 num_parameters = 4;"
        )

    def test_a_removed_method_is_found(self):
        self.assert_refused(
            '"Drain"', "admin.proto", "rpc Drain(DrainRequest) returns (DrainResponse);", ""
        )

    def test_names_of_another_style_are_found(self):
        self.assert_refused(
            "lower_snake_case",
            "generation.proto",
            "message TokenIds {\n",
            "message TokenIds {\n  string notSnake = 1000;\n",
        )


if __name__ == "__main__":
    unittest.main()
