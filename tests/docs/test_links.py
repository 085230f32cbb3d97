"""The page of public files: that all of the project's addresses are on it, and the program that asks them."""

import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.links import PAGE, addresses

ROOT = Path(__file__).parents[2]
FILES = re.compile(r"https?://[^\s`'\"<>)]+\.(?:zip|pkl|pth|caffemodel|tsv|csv|gz)\b")


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(405 if self.path == "/shy" else 200 if self.path == "/good" else 404)
        self.send_header("Content-Length", "2500000")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(206 if self.path == "/shy" else 404)
        self.send_header("Content-Range", "bytes 0-0/7000000")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_answers_and_what_does_not(server: str, tmp_path: Path) -> None:
    page = tmp_path / "links.md"
    line = [sys.executable, "-m", "tests.links", "--page", str(page)]
    page.write_text(f"| <{server}/good> | <{server}/shy> | <{server}/good> |\n")
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert [row.split() for row in done.stdout.splitlines()] == [
        ["ok", "2.5", "MB", f"{server}/good"],
        ["ok", "7.0", "MB", f"{server}/shy"],
        ["2", "of", "2", "addresses", "answer"],
    ]
    page.write_text(f"<{server}/gone>, <{server}/good>, <http://127.0.0.1:1/nobody>\n")
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert [row.split()[0] for row in done.stdout.splitlines()] == ["FAILED", "ok", "FAILED", "1"]
    assert "HTTP 404" in done.stdout


def test_every_file_that_the_project_names_is_on_the_page() -> None:
    known = set(addresses(PAGE.read_text()))
    assert len(known) > 20
    sources = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "extract").rglob("*.py")]
    named = {address for path in sources for address in FILES.findall(path.read_text())}
    assert named
    assert named <= known
