"""The text of a table in the encodings that spreadsheets write."""

import codecs
from pathlib import Path

from data_tools.errors import InputError, one_line


def read_table_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark, or in UTF-16 with one.

    Raises:
        InputError: the file is missing or in another encoding; the message gives the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {one_line(error)}") from None
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        if wide:
            raise InputError(f"{path}: damaged UTF-16 text; fix: save the file as UTF-8") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: not UTF-8 text; fix: save the file as UTF-8, for instance with "
            "iconv -f LATIN1 -t UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}, line {line}: a NUL byte, which is no text; fix: save the file as UTF-8")
    return text
