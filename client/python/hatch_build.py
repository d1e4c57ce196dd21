"""Generates the messages of photon.v1 when a wheel is built."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateMessages(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        own = Path(self.root, "proto")
        # Beside them in a source distribution, else at the root of the repository.
        contract = own if (own / "photon").exists() else Path(self.root, "../../proto").resolve()
        self._generated = tempfile.TemporaryDirectory()
        output = Path(self._generated.name)
        subprocess.run(
            [sys.executable, "-m", "grpc_tools.protoc", f"-I{own}", f"-I{contract}"]
            + [f"--python_out={output}", f"--pyi_out={output}"]
            + [str(file) for file in (own / "photon_client").glob("*.proto")]
            + [str(file) for file in (contract / "photon").rglob("*.proto")],
            check=True,
        )
        for file in output.rglob("*.py*"):
            build_data["force_include"][str(file)] = str(file.relative_to(output))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name == "wheel":
            self._generated.cleanup()
