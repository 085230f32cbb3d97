"""A served index of the shapes."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chan.retrieval.indexing import create_index, open_collection
from chan.retrieval.retriever import open_index
from chan.retrieval.search import IndexSearch

pytest.importorskip("starlette", reason="the extra serve is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")


@pytest.fixture(scope="module")
def searched(run: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> IndexSearch:
    folder = tmp_path_factory.mktemp("served") / "shapes.index"
    create_index(folder, run, open_collection(dataset), "cpu")
    return open_index(folder, "cpu")


@pytest.fixture(scope="module")
def address(searched: IndexSearch) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    from chan.retrieval.server.app import make_app

    server = uvicorn.Server(uvicorn.Config(make_app(searched), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(5)
