"""Docstrings as Markdown: examples, and lists whose columns are aligned with spaces.

Markdown would take the `>>>` of an example for a quotation, and would run the lines of such a list together.
"""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.*\S.*)*", re.MULTILINE)  # as far as the next empty line, as for doctest
ITEM = r"^\S(?:.*?\S)? {2,}\S.*(?:\n {4,}\S.*)*(?:\n|\Z)"  # a name, its meaning, lines that continue the meaning
COLUMNS = re.compile(f"(?:{ITEM}){{2,}}", re.MULTILINE)


class MarkdownBlocks(griffe.Extension):
    """Puts fences around the examples that begin at the left margin, and makes the aligned lists Markdown's."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            lists = COLUMNS.sub(lambda found: _list(found[0]), obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", lists)


def _list(lines: str) -> str:
    """Lines of `NAME   MEANING` as a Markdown list; an example's lines unchanged."""
    if ">>> " in lines:
        return lines
    items = [re.split(r" {2,}", item[0], maxsplit=1) for item in re.finditer(ITEM, lines, re.MULTILINE)]
    return "".join(f"- `{name}`: {' '.join(meaning.split())}\n" for name, meaning in items)
