"""Relative links in the repository's Markdown lead to files and headings that exist."""

import pathlib
import re
import subprocess
import unittest

from pages import ROOT


def markdown_files():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]


def prose_of(path):
    """The text without its blocks and spans of code, in which brackets mean other things."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors_of(path):
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*?) *$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(path):
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(path)):
        if re.match(r"[a-z]+:", target):
            continue  # of other sites, which tests do not ask
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if not linked.exists():
            dead.append(target)
        elif anchor and linked.suffix == ".md" and anchor not in anchors_of(linked):
            dead.append(target)
    return dead


class LinksTest(unittest.TestCase):
    def test_they_lead_somewhere(self):
        files = markdown_files()
        self.assertIn(ROOT / "README.md", files)
        for path in files:
            with self.subTest(page=str(path.relative_to(ROOT))):
                self.assertEqual(dead_links(path), [])

    def test_operators_pages_are_all_in_their_index(self):
        index = ROOT / "docs/operate/README.md"
        for page in index.parent.glob("*.md"):
            if page != index:
                self.assertIn(f"({page.name})", index.read_text())

    def test_a_dead_link_would_be_found(self):
        page = pathlib.Path(ROOT / "docs/operate/README.md")
        self.assertEqual(dead_links(page), [])
        original = prose_of(page)
        globals()["prose_of"], kept = lambda _: original + "[a](no.md) [b](#none)", prose_of
        try:
            self.assertEqual(dead_links(page), ["no.md", "#none"])
        finally:
            globals()["prose_of"] = kept


if __name__ == "__main__":
    unittest.main()
