import http.server
import io
import pickle
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from data_tools.errors import InputError, UsageError
from extract.build import build_network
from extract.config import load_config
from extract.weights.locating import find_weights, find_weights_of
from extract.weights.placing import ANCHORS
from extract.weights.reading import read_weights


class Malicious:
    def __reduce__(self):
        return (open, ("opened-by-a-pickle", "w"))


@pytest.fixture(scope="module")
def state(scenes_config):
    torch.manual_seed(5)
    return build_network(scenes_config, None, torch.device("cpu")).state_dict()


def load(path):
    return build_network(load_config("scenes"), path, torch.device("cpu"))


@pytest.mark.parametrize("form", ["torch", "torch in a checkpoint", "safetensors"])
def test_every_format_gives_the_same_network(tmp_path, state, form):
    path = tmp_path / "weights"  # no ending: the contents say what it is
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state if form == "torch" else {"model": state, "iteration": 7}, path)
    loaded = load(path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_what_does_not_fit_is_listed(tmp_path, state):
    wrong = dict(state)
    del wrong["backbone.stem.conv1.weight"]
    wrong["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(9)
    wrong["classifier.weight"] = torch.zeros(1)
    torch.save(wrong, tmp_path / "w.pth")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "w.pth")
    assert "missing: backbone.stem.conv1.weight" in str(caught.value)
    assert "unexpected: classifier.weight" in str(caught.value)
    assert "wrong shape: roi_heads.box_predictor.cls_score.bias (9,), expected (5,)" in str(caught.value)


def test_anchors_of_a_checkpoint_are_used_and_counters_ignored(tmp_path, state):
    anchors = torch.arange(24.0).reshape(6, 4)
    torch.save(
        {**state, ANCHORS: anchors, "backbone.other.num_batches_tracked": torch.tensor(3)}, tmp_path / "w.pth"
    )
    assert torch.equal(load(tmp_path / "w.pth").get_buffer(ANCHORS), anchors)


def test_anchors_of_another_shape_are_refused(tmp_path, state):
    torch.save({**state, ANCHORS: torch.zeros(12, 4)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"cell_anchors\.0 \(12, 4\), expected \(6, 4\)"):
        load(tmp_path / "w.pth")


def test_a_pickle_that_carries_code_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, save in (("plain.pkl", lambda v, p: p.write_bytes(pickle.dumps(v))), ("torch.pth", torch.save)):
        save({"model": {"a": torch.zeros(1)}, "extra": Malicious()}, tmp_path / name)
        with pytest.raises(InputError, match=r"holds io.open, not only arrays|holds more than tensors") as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "opened-by-a-pickle").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 not a zip", bytes(8) + b"{", b"\x80\x02}q\x00."])
def test_damaged_files_are_one_line(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_weights(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_a_repository_comes_from_the_cache_and_its_absence_is_one_line(tmp_path, monkeypatch, state):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for spec in ("unc-nlp/frcnn-vg-finetuned", "hf://unc-nlp/frcnn-vg-finetuned"):
        with pytest.raises(InputError, match="the hub cannot be reached, and it is not in the cache") as caught:
            find_weights(spec)
        assert "\n" not in str(caught.value)
    commit = "0" * 40
    folder = tmp_path / "models--unc-nlp--frcnn-vg-finetuned"
    held = folder / "snapshots" / commit
    held.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    torch.save(state, held / "pytorch_model.bin")
    assert find_weights("unc-nlp/frcnn-vg-finetuned") == held / "pytorch_model.bin"
    assert find_weights(f"hf://unc-nlp/frcnn-vg-finetuned@{commit}") == held / "pytorch_model.bin"
    safetensors.torch.save_file(state, held / "model.safetensors")
    assert find_weights("unc-nlp/frcnn-vg-finetuned") == held / "model.safetensors"  # safer than a pickle
    assert find_weights("hf://unc-nlp/frcnn-vg-finetuned/pytorch_model.bin") == held / "pytorch_model.bin"
    assert read_weights(held / "model.safetensors").keys() == read_weights(held / "pytorch_model.bin").keys()


def test_a_run_s_weights_go_with_its_own_configuration_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("own", "vg_r50"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("VERSION: 2\n")
        with pytest.raises(UsageError, match=f"--config {name} needs --weights FILE"):
            find_weights_of(name, None)
        (tmp_path / name / "model_final.pth").touch()
    assert find_weights_of("own", None) == Path("own", "model_final.pth")
    assert find_weights_of("own/config.yaml", None) == Path("own", "model_final.pth")
    assert find_weights_of("own", "random") is None
    with pytest.raises(UsageError, match="--config vg_r50 needs --weights FILE"):
        find_weights_of("vg_r50", None)  # the shipped one, though a folder has the name


def test_a_missing_file_is_an_error():
    with pytest.raises(InputError, match="no such weight file"):
        find_weights("runs/detector/model_final.pth")


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` whatever it is asked for."""

    content = b""
    asked: list[str] = []  # noqa: RUF012 - set by the fixture


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path.endswith("/absent.pth"):
            self.send_error(404)
            return
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path.endswith("/cut.pth") else content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(state, tmp_path, monkeypatch):
    """A local web server that has the state as a weight file."""
    monkeypatch.setenv("PIXELS_TO_RECALL_CACHE", str(tmp_path / "cache"))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.content, running.asked = buffer.getvalue(), []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_a_url_is_fetched_once(server, state):
    url = f"http://127.0.0.1:{server.server_port}/models/weights.pth?download=1"
    path = find_weights(url)
    assert path.name == "weights.pth"
    assert sorted(read_weights(path)) == sorted(state)
    assert find_weights(url) == path
    assert server.asked == ["/models/weights.pth?download=1"]


@pytest.mark.parametrize(
    ("name", "reason"), [("absent.pth", "404|Not Found"), ("cut.pth", "of .* bytes|IncompleteRead")]
)
def test_a_failed_fetch_is_one_line_and_leaves_nothing(server, tmp_path, name, reason):
    with pytest.raises(InputError, match=reason) as caught:
        find_weights(f"http://127.0.0.1:{server.server_port}/{name}")
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_an_unreachable_host_is_one_line():
    with pytest.raises(InputError, match="could not be fetched"):
        find_weights("http://127.0.0.1:1/weights.pth")
