"""Runs and features on a hub: a local server that speaks as much of its protocol as the client needs."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from chan.config import load_config
from chan.retrieval.retriever import open_index
from chan.runs.hub import Upload, fetched_checkpoint, fetched_run
from chan.runs.train import train
from data_tools.errors import InputError, UsageError
from data_tools.weights.hub import HubSpec, is_hub, pinned

BIN = Path(sys.executable).parent


class Hub(ThreadingHTTPServer):
    """Repositories by kind and name; each is a list of commits, each of them files by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[tuple[str, str], list[dict[str, bytes]]] = {}
        self.token: str | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def files(self, kind: str, name: str, revision: str) -> dict[str, bytes] | None:
        commits = self.server.repositories.get((kind, name))
        if commits is None:
            self.answer(401, {"error": "no"}, X_Error_Code="RepoNotFound", X_Error_Message="no such repository")
            return None
        found = commits[-1] if revision == "main" else next((c for c in commits if commit_of(c) == revision), None)
        if found is None:
            self.answer(404, {"error": "no"}, X_Error_Code="RevisionNotFound", X_Error_Message="no such revision")
        return found

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api" and parts[1] in ("models", "datasets"):
            revision = parts[5] if len(parts) > 5 else "main"
            files = self.files(parts[1], "/".join(parts[2:4]), revision)
            if files is not None and parts[4:5] == ["tree"]:
                listed = [{"type": "file", "path": path, "size": len(files[path]), "oid": "0"} for path in files]
                self.answer(200, listed)
            elif files is not None:
                siblings = [{"rfilename": path} for path in files]
                self.answer(200, {"id": "/".join(parts[2:4]), "sha": commit_of(files), "siblings": siblings})
            return
        kind = "datasets" if parts[0] == "datasets" else "models"
        owner, name, _, revision, *path = parts[1:] if kind == "datasets" else parts
        files = self.files(kind, f"{owner}/{name}", revision)
        if files is not None and "/".join(path) not in files:
            self.answer(404, {"error": "no"}, X_Error_Code="EntryNotFound", X_Error_Message="no such file")
        elif files is not None:
            content = files["/".join(path)]
            self.answer(
                200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit_of(files)
            )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer(401, {"error": "Invalid username or password."})
            return
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[1:] == ["repos", "create"]:
            wanted = json.loads(body)
            kind = {"dataset": "datasets"}.get(wanted.get("type", "model"), "models")
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            self.server.repositories.setdefault((kind, name), [{}])
            prefix = "datasets/" if kind == "datasets" else ""
            self.answer(200, {"url": f"{self.server.address}/{prefix}{name}"})
        elif parts[1] == "validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif parts[4] == "preupload":
            files = json.loads(body)["files"]
            self.answer(
                200,
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]},
            )
        else:
            kind, name = parts[1], "/".join(parts[2:4])
            files = dict(self.server.repositories[(kind, name)][-1])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.server.repositories[(kind, name)].append(files)
            self.answer(
                200, {"commitOid": commit_of(files), "commitUrl": f"{self.server.address}/{name}/commit/x"}
            )


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, dataset: Path, tiny_config: Path) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder, load_config(str(tiny_config), ["train.epochs=1"]), dataset, None, torch.device("cpu"), False)
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def chan(hub: Hub, tmp_path: Path) -> Any:
    """Runs `chan` with this hub and an empty cache; the token of the hub, if it has one, is not given."""

    def run(*arguments: object, code: int = 0, **more: str) -> str:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
            **more,
        }
        command = [str(BIN / "chan"), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


def test_a_pushed_run_is_used_from_the_hub(
    hub: Hub, chan: Any, finished_run: Path, dataset: Path, tmp_path: Path
) -> None:
    pushed = json.loads(chan("push", finished_run, "me/scenes", "--json", HF_TOKEN="t"))
    assert pushed == {"kind": "run", "repository": "me/scenes", "address": f"{hub.address}/me/scenes"}
    files = hub.repositories[("models", "me/scenes")][-1]
    assert {"config.yaml", "README.md", "best.safetensors", "vocab.json"} <= files.keys()
    assert not {"state.pt", "last.safetensors"} & files.keys()  # only resuming needs them
    assert not any("tfevents" in name or name.startswith(".") for name in files)
    assert files["best.safetensors"] == (finished_run / "best.safetensors").read_bytes()

    evaluate = ("--data", dataset, "--split", "test", "--device", "cpu", "--json")
    local = json.loads(chan("evaluate", finished_run, *evaluate))
    assert json.loads(chan("evaluate", "hf://me/scenes", *evaluate)) == local
    commit = commit_of(files)
    chan("index", f"hf://me/scenes@{commit}", "--data", dataset, "--device", "cpu", "--out", tmp_path / "i.index")
    recorded = json.loads((tmp_path / "i.index" / "model" / "features.json").read_text())
    assert recorded["run"] == f"hf://me/scenes@{commit}"

    chan("push", tmp_path / "i.index", "me/index", HF_TOKEN="t")
    [fetched] = json.loads(chan("search", "hf://me/index", "a red square", "--device", "cpu", "--json"))
    own = open_index(tmp_path / "i.index", "cpu").search("a red square")
    assert [hit["id"] for hit in fetched["hits"]] == [hit.image_id for hit in own.hits]

    hub.shutdown()
    hub.server_close()
    assert json.loads(chan("evaluate", "hf://me/scenes", *evaluate)) == local  # from the cache
    line = chan("evaluate", "hf://me/other", *evaluate, code=1)
    assert line.startswith("error: hf://me/other: the hub cannot be reached")
    assert line.count("\n") == 1
    train = ("--config", "f30k_bert", "--data", dataset, "--out", tmp_path / "bert")
    *notes, line = chan("train", *train, code=1, HF_HUB_OFFLINE="1").splitlines()
    assert line.startswith("error: bert-base-uncased: no such folder; the hub cannot be reached")
    assert all(note.startswith("note: ") for note in notes)


def test_features_come_from_the_hub_and_are_pinned(
    hub: Hub, chan: Any, dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    store = dataset / "precomp" / "features.h5"
    assert chan("push", store, "me/features", HF_TOKEN="t") == f"store: {hub.address}/datasets/me/features\n"
    files = hub.repositories[("datasets", "me/features")][-1]
    assert files["features.h5"] == store.read_bytes()
    train = ("--data", dataset, "--config", tiny_config, "--device", "cpu", "train.epochs=1", "--json")
    chan("train", *train, "--features", "hf://me/features", "--out", tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "features.json").read_text())
    assert recorded["features"] == f"hf://me/features@{commit_of(files)}"


@pytest.fixture
def here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process uses the hub, too."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "wrong")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("hf://me/none", "the hub has no such model, or it is private"),
        ("hf://me/run@v9", "it has no revision v9"),
        ("hf://me/run", "holds none of config.yaml"),
        ("hf://me", "expected hf://OWNER/NAME"),
        ("hf://me/run/best.safetensors", "expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(hub: Hub, run: str, message: str) -> None:
    hub.repositories[("models", "me/run")] = [{"notes.txt": b"nothing"}]
    with pytest.raises(InputError, match=message) as caught:
        fetched_run(run)
    assert str(caught.value).startswith(run.split("@")[0])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("here")
def test_a_checkpoint_is_fetched_by_its_file_or_its_folder(hub: Hub) -> None:
    files = {"a/model_best.pth": b"one", "a/log.txt": b"no", "b/last.pth": b"other"}
    hub.repositories[("models", "me/old")] = [files]
    commit = commit_of(files)
    for spec in ("hf://me/old/a", "hf://me/old/a/model_best.pth", f"hf://me/old@{commit}/a"):
        path = fetched_checkpoint(spec)
        assert path.read_bytes() == b"one"
        assert pinned(path) == f"hf://me/old@{commit}"
        assert not (path.parent / "log.txt").exists()
    for spec, message in (
        ("hf://me/old/b", "holds none of b/model_best.pth"),
        ("hf://me/old", "expected hf://OWNER/NAME/FILE"),
        ("hf://me/old/../x", "expected hf://OWNER/NAME or"),
        ("hf://me/none/a", "the hub has no such model"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            fetched_checkpoint(spec)
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("here")
def test_a_push_without_a_login_is_one_line(hub: Hub, finished_run: Path) -> None:
    hub.token = "secret"
    with pytest.raises(InputError, match=r"^me/new: could not be pushed \(log in first: hf auth login\)$"):
        Upload.of(finished_run).push("me/new", private=False)


def test_only_runs_stores_and_indexes_are_pushed(tmp_path: Path, finished_run: Path) -> None:
    assert Upload.of(finished_run).kind == "run"
    (tmp_path / "notes.txt").write_text("nothing")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="expected a run folder"):
            Upload.of(path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UsageError, match="no epoch of this run is finished"):
        Upload.of(tmp_path)
    with pytest.raises(UsageError, match="expected OWNER/NAME"):
        Upload.of(finished_run).push("scenes", private=False)


def test_names_on_the_hub_and_in_its_cache() -> None:
    assert is_hub("hf://me/run")
    assert is_hub(Path("hf://me/run"))
    assert not is_hub("runs/hf")
    commit = "0123456789abcdef0123456789abcdef01234567"
    path = Path(f"/cache/hub/models--me--my-run.v2/snapshots/{commit}/best.safetensors")
    assert pinned(path) == f"hf://me/my-run.v2@{commit}"
    assert pinned(Path("runs/my")) is None
    assert HubSpec.parse("hf://me/run.v2@refs/pr/3") == HubSpec("me/run.v2", "refs/pr/3")
    assert HubSpec.parse(str(Path("hf://me/run@v1/a/b.pth"))) == HubSpec("me/run", "v1", "a/b.pth")
