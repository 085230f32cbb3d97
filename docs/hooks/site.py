"""What mkdocs adds to the pages of docs/: files of the repository, the commands, configurations and the notebook.

A link of such a file to another file of the repository becomes a link to that file's page. A link that leads to no
page is not changed, and `mkdocs build --strict` reports it.
"""

import importlib
import inspect
import json
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_pages import APPS, command_page

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {  # files of the repository that are pages as they are
    "README.md": "index.md",
    "benchmarks/README.md": "measurements.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
TARGETS = {  # what else such a file may link to, and the page about it
    "benchmarks": "measurements.md",
    "benchmarks/results": "measurements.md",
    "configs": "configurations.md",
    "CITATION.cff": "licence.md",
    "LICENSE": "licence.md",
    "NOTICE": "licence.md",
    "examples/own_photos.ipynb": "own_photos.md",
}
PUBLIC_NAMES = re.compile(r"<!-- public names of (\w+) -->")
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: "Files", config: Any) -> "Files":
    """Add the generated pages."""
    from mkdocs.structure.files import File  # the other functions here need no mkdocs

    pages = {page: with_page_links(file, (ROOT / file).read_text()) for file, page in PAGES.items()}
    pages |= {f"commands/{name}.md": command_page(name) for name in APPS}
    pages["configurations.md"] = configuration_page()
    pages["licence.md"] = licence_page()
    pages["own_photos.md"] = notebook_page(ROOT / "examples" / "own_photos.ipynb")
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table of a package's public names in the place of its marker."""
    return PUBLIC_NAMES.sub(lambda found: public_names(found[1]), markdown)


def public_names(package: str) -> str:
    """A table of the names that a package exports, each with the first sentence of its docstring."""
    lines = ["| name | |", "| --- | --- |"]
    module = importlib.import_module(package)
    for name in sorted(getattr(module, "__all__", ()), key=str.lower):
        value = getattr(module, name)
        summary = (inspect.getdoc(value) or "").split("\n\n")[0]
        lines.append(f"| [`{name}`][{value.__module__}.{name}] | {' '.join(summary.split())} |")
    return "\n".join(lines)


def with_page_links(file: str, text: str) -> str:
    """The text of a file of the repository with its links to other files turned into links to pages."""

    def page_link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), found[1]))
        page = PAGES.get(target) or TARGETS.get(target) or target.removeprefix("docs/")
        return f"]({page}{found[2] or ''})"

    return LINK.sub(page_link, text)


def configuration_page() -> str:
    """Every shipped configuration, with the command for it in its first lines."""
    lines = ["# Shipped configurations", ""]
    for title, package in (("Detectors", "extract"), ("Retrieval models", "chan")):
        lines += [f"## {title}", ""]
        for path in sorted((ROOT / "configs" / package).glob("*.yaml")):
            lines += [f"### {path.stem}", "", "```yaml", path.read_text().rstrip(), "```", ""]
    return "\n".join(lines)


def notebook_page(path: Path) -> str:
    """A notebook's text and code; what the code prints is not in the file."""
    cells = json.loads(path.read_text())["cells"]
    blocks = []
    for cell in cells:
        text = "".join(cell["source"])
        blocks.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(blocks) + "\n"


def licence_page() -> str:
    """NOTICE, CITATION.cff and LICENSE, verbatim."""
    lines = ["# Licence and citation", ""]
    for title, file, kind in (
        ("Notices", "NOTICE", "text"),
        ("Citation", "CITATION.cff", "yaml"),
        ("Licence", "LICENSE", "text"),
    ):
        lines += [f"## {title}", "", f"```{kind}", (ROOT / file).read_text().strip("\n"), "```", ""]
    return "\n".join(lines)
