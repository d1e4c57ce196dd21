"""Blocks of shell commands in Markdown pages.

A block is fenced as ```sh MARK:

  run      runs and succeeds
  server   starts a server, which runs until the page's next such block or its end
  build    builds the project or an image of it, which takes too long for here
  cluster  needs a Kubernetes cluster
  gpu      needs an NVIDIA GPU
  engine   needs a container engine that runs images

Blocks of a page run in order, in one shell that ends with the first command that fails.
"""

import dataclasses
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/operate").glob("*.md"))]
RUN_HERE = ("run", "server")
NOT_RUN_HERE = ("build", "cluster", "gpu", "engine")


@dataclasses.dataclass
class Block:
    page: pathlib.Path
    line: int
    mark: str
    text: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page):
    """The page's blocks in order. A block of commands without a mark has the mark ""."""
    blocks, inside = [], None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if inside is None and (match := re.fullmatch(r"```(sh|bash|shell|console)( \w+)?", line)):
            inside = Block(page, number, (match.group(2) or "").strip(), "")
        elif inside is not None and line == "```":
            blocks.append(inside)
            inside = None
        elif inside is not None:
            inside.text += line + "\n"
    return blocks
