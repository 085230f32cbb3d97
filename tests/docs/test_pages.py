"""The documents: links between files, and the pages that the site's hooks make."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), ROOT / "benchmarks/README.md"])
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@pytest.fixture
def command_pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    monkeypatch.delitem(sys.modules, "command_pages", raising=False)
    return importlib.import_module("command_pages")


@pytest.fixture
def site(command_pages: ModuleType) -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    titles = HEADING.findall(without_code(path.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(path: Path) -> None:
    for target, anchor in LINK.findall(without_code(path.read_text())):
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path}: links to {target}"
        if anchor and not anchor.startswith(("data_tools.", "extract.", "chan.")):  # those are of docstrings
            assert anchor in anchors(file), f"{path}: {target} has no heading {anchor}"


@pytest.mark.parametrize("name", ["extract-features", "butd", "chan", "data-tools"])
def test_every_command_and_option_is_on_its_page(command_pages: ModuleType, name: str) -> None:
    module, attribute = command_pages.APPS[name]
    command = typer.main.get_command(getattr(importlib.import_module(module), attribute))
    page = command_pages.command_page(name)
    for subcommand_name, subcommand in getattr(command, "commands", {"": command}).items():
        path = f"{name} {subcommand_name}".strip()
        section = re.split(rf"^#+ {path}$", page, flags=re.MULTILINE)[1].split("\n## ")[0]
        options = {option for parameter in subcommand.params for option in parameter.opts if option[:2] == "--"}
        missing = {option for option in options if not re.search(rf"`[^`]*{option}\b", section)}
        assert options, f"{path} has no options"
        assert not missing, f"{path}: {missing} are not in the reference"


def test_examples_and_defaults_have_places_of_their_own(command_pages: ModuleType) -> None:
    page = command_pages.command_page("data-tools")
    assert "```console\n$ data-tools verify data/coco\n```" in page
    assert re.search(r"^\| `--seed [^`]*` \| [^|]* \| `2022`; at least 0 \|$", page, re.MULTILINE)


def test_lists_and_examples_of_docstrings_become_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    griffe = pytest.importorskip("griffe", reason="the extra docs is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    text = "Kinds:\n\nab   one\n     more of it\nc d  two\n\n>>> f(1)\n2\n\nArgs:\n    x: a number.\n"
    obj = griffe.Module("m", docstring=griffe.Docstring(text))
    importlib.import_module("docstring_blocks").MarkdownBlocks().on_object(obj=obj)
    expected = (
        "Kinds:\n\n- `ab`: one more of it\n- `c d`: two\n\n```pycon\n>>> f(1)\n2\n```\n\nArgs:\n    x: a number."
    )
    assert obj.docstring.value == expected


def test_what_the_repository_s_pages_link_to_is_on_the_site(site: ModuleType) -> None:
    made = {*site.PAGES.values(), *site.TARGETS.values()}
    pages = {file: site.with_page_links(file, without_code((ROOT / file).read_text())) for file in site.PAGES}
    links = {(file, target) for file, text in pages.items() for target, _ in LINK.findall(text) if target}
    assert len(links) > 20
    assert not {link for link in links if link[1] not in made and not (ROOT / "docs" / link[1]).is_file()}


@pytest.mark.parametrize("package", ["data_tools", "extract", "chan"])
def test_the_modules_of_public_names_are_in_the_reference(package: str) -> None:
    exported = importlib.import_module(package)
    modules = {getattr(exported, name).__module__ for name in exported.__all__}
    documented = set(
        re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api" / f"{package}.md").read_text(), re.MULTILINE)
    )
    assert modules
    assert modules <= documented


def test_the_notebook_is_a_page(site: ModuleType) -> None:
    page = site.notebook_page(ROOT / "examples" / "own_photos.ipynb")
    assert page.startswith("# Find your own photographs")
    assert "```python\nfrom extract import Extractor\n" in page
