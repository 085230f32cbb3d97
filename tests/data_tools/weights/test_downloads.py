"""Fetching weights from a server that behaves in every way that servers do."""

import http.server
import io
import pickle
import threading
import time
import zipfile

import caffe_writer
import numpy as np
import pytest

from data_tools.errors import InputError
from data_tools.weights import downloads
from data_tools.weights.downloads import cache_folder, download
from extract.weights.locating import find_weights

WEIGHTS = pickle.dumps({"model": {"a": np.zeros(1000, np.float32)}})
CAFFE = caffe_writer.network([caffe_writer.Layer(name, "InnerProduct", [np.zeros((50, 9))]) for name in "ab"])


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a/data.pkl", b"x" * 5000)
    return content.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path: how many bytes are announced, and what is sent."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.asked.append(self.path)
        name = self.path.strip("/").split("/")[0]
        if name.startswith("to-"):
            self.send_response(302)
            places = {"to-ftp": "ftp://x/y.pth", "to-file": "file:///etc/passwd"}
            self.send_header("Location", places.get(name, "/good/m.pth"))
            self.end_headers()
            return
        body = {"page": b"<!DOCTYPE html><html>sign in</html>", "empty": b"", "zip": archive()}.get(name, WEIGHTS)
        body = CAFFE if name.startswith("caffe") else body
        self.send_response(404 if name == "missing" else 200)
        if name not in ("no-length", "no-length-cut", "zip-cut", "caffe", "caffe-cut", "endless"):
            self.send_header("Content-Length", str(10**15 if name == "huge" else len(body)))
        self.end_headers()
        if name == "endless":
            while True:
                self.wfile.write(b"x" * 1000)
                time.sleep(0.01)
        body = archive() if name == "zip-cut" else body
        self.wfile.write(body[: len(body) * 2 // 3] if name.endswith("cut") else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("PIXELS_TO_RECALL_CACHE", str(tmp_path / "cache"))
    Handler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.daemon_threads = True
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.mark.parametrize("name", ["good", "no-length", "zip", "caffe", "to-good"])
def test_a_whole_file_is_fetched_once(server, name):
    path = download(f"{server}/{name}/m.pth")
    assert path.read_bytes() == {"zip": archive(), "caffe": CAFFE}.get(name, WEIGHTS)
    asked = len(Handler.asked)
    assert download(f"{server}/{name}/m.pth") == path
    assert len(Handler.asked) == asked


@pytest.mark.parametrize(
    "name",
    ["cut", "no-length-cut", "zip-cut", "caffe-cut", "page", "empty", "missing", "huge", "to-ftp", "to-file"],
)
def test_what_is_no_whole_weight_file_is_one_line_and_not_kept(server, name):
    url = f"{server}/{name}/m.pth"
    for _ in range(2):  # the second time is no better
        with pytest.raises(InputError) as raised:
            download(url)
        assert str(raised.value).startswith(f"{url}: could not be fetched (")
        assert "\n" not in str(raised.value)
        assert "cannot be written" not in str(raised.value)
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []


def test_a_body_without_end_is_given_up(server, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(downloads, "CHUNK", 1000)
    with pytest.raises(InputError, match="too long"):
        download(f"{server}/endless/m.pth")
    monkeypatch.setattr(downloads, "MAX_SECONDS", 60)
    monkeypatch.setattr(downloads, "MAX_BYTES", 20_000)
    with pytest.raises(InputError, match="too many"):
        download(f"{server}/endless/m.pth")


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/m.pth", "https://127.0.0.1:9/m.pth"])
def test_a_server_that_is_not_there_is_one_line(address, tmp_path, monkeypatch):
    monkeypatch.setenv("PIXELS_TO_RECALL_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="could not be fetched"):
        download(address)


@pytest.mark.parametrize("spec", ["detector/model_final.pth", "runs/m.pkl", "a/b.safetensors", "none", "~/x.bin"])
def test_a_typing_error_is_no_repository(spec, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: pytest.fail("asked a hub"))
    start = time.monotonic()
    with pytest.raises(InputError, match="no such weight file"):
        find_weights(spec)
    assert time.monotonic() - start < 5
