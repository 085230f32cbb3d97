"""The command `chan` in processes of its own, on a data set in SCAN's layout."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

BIN = Path(sys.executable).parent
COLOURS = ("red", "green", "blue", "yellow")
SETTINGS = (
    "model.dim=16", "model.text.word_dim=8", "loss.warmup_epochs=9", "train.epochs=3", "train.batch_size=20",
    "train.grad_cache_chunks=2", "train.lr=5e-3", "train.schedule=cosine",
)  # fmt: skip


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def chan(*arguments):
    line = [str(BIN / "chan"), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment())


def succeeded(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def one_line(done, code):
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("encoding")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of three coloured regions, ten numbers each, and captions that name the colours."""
    folder = tmp_path_factory.mktemp("data") / "colours"
    (folder / "precomp").mkdir(parents=True)
    random = np.random.default_rng(0)
    codes = random.standard_normal((len(COLOURS), 10))
    for split, images in (("train", 16), ("dev", 5), ("test", 6)):
        chosen = random.integers(len(COLOURS), size=(images, 3))
        features = codes[chosen] + 0.1 * random.standard_normal((images, 3, 10))
        np.save(folder / "precomp" / f"{split}_ims.npy", features.astype(np.float16))
        captions = [f"{COLOURS[a]} and {COLOURS[b]} , {COLOURS[c]} {n}" for a, b, c in chosen for n in range(5)]
        (folder / "precomp" / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
        (folder / "precomp" / f"{split}_ids.txt").write_text("".join(f"{split}{n}\n" for n in range(images)))
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "run"
    done = chan("train", "--config", "f30k_bigru", "--data", data, "--out", folder, *SETTINGS)
    assert succeeded(done).endswith(f"of 3: {folder / 'best.safetensors'}\n")
    assert done.stderr.count("dev after epoch") == 3
    return folder


def test_scores_ensemble_and_their_errors(data, run, tmp_path):
    scores, where = tmp_path / "a.npy", ("--data", data, "--split", "test")
    options = ("--folds", 2, "--precision", "bf16", "--scores", scores, "--json")
    found = json.loads(succeeded(chan("evaluate", run, *where, *options)))
    assert np.load(scores).shape == (6, 30)
    assert found["folds"] == 2
    twice = json.loads(succeeded(chan("ensemble", scores, scores, *where, "--folds", 2, "--json")))
    assert twice == found  # the average of a matrix with itself
    assert "not a NumPy array" in one_line(chan("ensemble", scores, data / "precomp" / "test_ids.txt", *where), 1)


@pytest.mark.slow
def test_a_killed_training_ends_as_if_it_had_not_been(data, run, tmp_path):
    folder = tmp_path / "run"
    arguments = ("--data", data, "--out", folder)
    line = [str(BIN / "chan"), "train", "--config", "f30k_bigru", *map(str, arguments), *SETTINGS]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment())
    deadline = time.monotonic() + 120
    while process.poll() is None and not (folder / "last.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    succeeded(chan("train", *arguments, "--resume"))
    for file in ("last.safetensors", "best.safetensors"):
        one, other = load_file(folder / file), load_file(run / file)
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert "a cosine" in one_line(chan("train", *arguments, "--resume", "train.epochs=9"), 2)


@pytest.mark.slow
def test_two_processes_train_like_one(data, run, tmp_path):
    folder = tmp_path / "run"
    line = [
        str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "-m", "chan", "train", "--config",
        "f30k_bigru", "--data", str(data), "--out", str(folder), "--device", "cpu", "--json", *SETTINGS,
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment())
    assert json.loads(succeeded(done))["epochs"] == 3  # one document, not two
    alone, together = load_file(run / "last.safetensors"), load_file(folder / "last.safetensors")
    for name, value in alone.items():
        if name.endswith("in_proj_bias"):
            continue  # that of the keys has no gradient but rounding, which AdamW makes as large as any other's
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-3)


def test_a_malicious_checkpoint_is_one_line_and_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trace"),)

    torch.save({"model": [Evil()] * 4, "opt": Evil()}, tmp_path / "evil.pth")
    done = chan("import", tmp_path / "evil.pth", "--vocab", "v.json", "--out", tmp_path / "run")
    assert "nothing of it was run" in one_line(done, 1)
    assert not (tmp_path / "trace").exists()
