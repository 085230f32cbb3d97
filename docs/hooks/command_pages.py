"""The pages of the command reference, made of the help texts of the commands."""

import importlib
import re
from collections.abc import Iterator
from typing import Any

import typer

APPS = {
    "extract-features": ("extract.command_line", "extract_features_app"),
    "butd": ("extract.command_line", "butd_app"),
    "chan": ("chan.command_line", "app"),
    "data-tools": ("data_tools.command_line", "app"),
}
REMARKS = re.compile(r"\s*\[([^\[\]]*(?:\[[^\[\]]*\])?[^\[\]]*)\]$")  # "[default: 5; x>=0]" behind a help text


def command_page(name: str) -> str:
    """The Markdown page of the command `name` and of its subcommands."""
    module, attribute = APPS[name]
    command = typer.main.get_command(getattr(importlib.import_module(module), attribute))
    return "\n".join(_section(command, name)) + "\n"


def _section(command: Any, path: str, parent: Any = None) -> Iterator[str]:
    """The section of one command, then those of its subcommands."""
    context = command.make_context(path, [], parent=parent, resilient_parsing=True)
    subcommands = getattr(command, "commands", {})
    yield from (f"{'#' if parent is None else '##'} {path}", "")
    yield from _prose(command.help)
    if subcommands:
        yield from (f"- [`{path} {name}`](#{path}-{name})" for name in subcommands)
        yield ""
    else:
        yield from ("```", " ".join([path, *command.collect_usage_pieces(context)]), "```", "")
    yield from _prose(command.epilog)
    yield from _tables(command, context)
    for name, subcommand in subcommands.items():
        yield from _section(subcommand, f"{path} {name}", context)


def _prose(text: str | None) -> Iterator[str]:
    """Paragraphs of a help text; those that begin with `Example:` become blocks of code."""
    for paragraph in re.split(r"\n\s*\n", (text or "").replace("\b", "").strip()):
        if paragraph.startswith("Example:"):
            example, _, remark = " ".join(paragraph.removeprefix("Example:").split("\n")).strip().partition("   ")
            yield from ("```console", f"$ {' '.join(example.split())}", "```", "")
            yield from (_escaped(remark.strip(" ()")), "") if remark else ()
        elif paragraph:
            yield from (_escaped(" ".join(paragraph.split())), "")


def _tables(command: Any, context: Any) -> Iterator[str]:
    """One table per group of arguments and options, in the order of the help, arguments first."""
    groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    for parameter in command.params:
        record = parameter.get_help_record(context)  # None where it is hidden
        kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
        if record is not None:
            groups.setdefault(parameter.rich_help_panel or kind, []).append(record)
    for title, records in groups.items():
        if records:
            yield from (f"| {title} | | Default |", "| --- | --- | --- |")
            yield from (_row(name, text) for name, text in records)
            yield ""


def _row(name: str, text: str) -> str:
    remarks = REMARKS.search(text)
    meaning = text[: remarks.start()] if remarks else text
    return f"| {_code(name)} | {_escaped(meaning)} | {_default(remarks[1]) if remarks else ''} |"


def _default(remarks: str) -> str:
    """`default: 5; x>=0` as the last column shows it."""
    parts = []
    for remark in remarks.split("; "):
        bounds = re.fullmatch(r"(?:(\S+?)<=)?x(?:(>=|<=)(\S+))?", remark)
        if remark.startswith("default: ("):  # a description of the default, not a value
            parts.append(_escaped(remark.removeprefix("default: (").removesuffix(")")))
        elif remark.startswith("default: "):
            parts.append(_code(remark.removeprefix("default: ")))
        elif bounds and bounds[1] and bounds[3]:
            parts.append(f"{bounds[1]} to {bounds[3]}")
        elif bounds and bounds[3]:
            parts.append(f"{'at least' if bounds[2] == '>=' else 'at most'} {bounds[3]}")
        else:
            parts.append(_escaped(remark))
    return "; ".join(parts)


def _code(text: str) -> str:
    return f"`{text}`"  # bars in it are no table borders


def _escaped(text: str) -> str:
    """`text` as Markdown shows it literally: no tags, no emphasis, no table borders; option names as code."""
    literal = re.sub(r"([\\|<>*_`\[\]])", r"\\\1", text)
    return re.sub(r"(?<![\w-])--[a-z][a-z-]*[a-z]", r"`\g<0>`", literal)
