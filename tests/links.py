"""Whether the public files of docs/links.md still answer: `python -m tests.links`, or `make links`.

Each address is asked for its head, or, where a server refuses that, for its first byte. Prints what it answers and
the size that it announces; the exit code is 1 if one does not answer.
"""

import argparse
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "links.md"
TIMEOUT = 30.0
REFUSED_HEAD = (403, 405, 501)


def addresses(page: str) -> Iterator[str]:
    """The addresses of a Markdown page, in angle brackets, in their order, each once."""
    yield from dict.fromkeys(re.findall(r"<(https?://[^>\s]+)>", page))


def ask(address: str) -> tuple[bool, str]:
    """Whether an address answers, and its answer in a few words."""
    for method, more in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):
        request = urllib.request.Request(address, method=method, headers={"User-Agent": "links", **more})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                size = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get(
                    "Content-Length", ""
                )
                return True, f"{int(size) / 1e6:,.1f} MB" if size.isdigit() else "no size"
        except urllib.error.HTTPError as error:
            if method == "GET" or error.code not in REFUSED_HEAD:
                return False, f"HTTP {error.code}"
        except (OSError, ValueError) as error:
            return False, str(getattr(error, "reason", error))
    raise AssertionError("unreachable")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.links", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    found = [(address, *ask(address)) for address in addresses(parser.parse_args().page.read_text())]
    for address, answers, answer in found:
        print(f"{'ok' if answers else 'FAILED':7}{answer:>16}  {address}")
    failed = sum(not answers for _, answers, _ in found)
    print(f"{len(found) - failed} of {len(found)} addresses answer")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
