"""extract-features on a Ray cluster of two workers, one of which is killed while it works."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import pytest

from data_tools.scenes.dataset import write_scenes

BIN = Path(sys.executable).parent
IMAGES, PART = 12, 1
TOKEN = secrets.token_hex(32)


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster on this machine with room for two workers."""
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a socket's path must be short
    line = [
        str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
        "--include-dashboard=false", f"--temp-dir={folder}",
        "--object-store-memory=100000000", "--disable-usage-stats",
    ]  # fmt: skip
    quiet = subprocess.DEVNULL
    head = subprocess.Popen(line, stdout=quiet, stderr=quiet, start_new_session=True, env=one_thread())
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"127.0.0.1:{port}"
    head.terminate()
    try:
        head.wait(20)
    finally:
        if head.poll() is None:
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def one_thread():
    """An environment in which sums have one order here and in the workers, and all know the cluster's token."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray") / "scenes"
    write_scenes(folder, train=IMAGES - 2, dev=1, test=1, seed=3)
    (folder / "images" / "broken.jpg").write_bytes(b"no picture")
    (folder / "id_mapping.json").unlink()  # every file in the folder, the broken one included
    return folder / "images"


def command(images, output, *more):
    return [
        str(BIN / "extract-features"), str(images), "--config", "scenes", "--weights", "random", "--workers", "0",
        "--part-size", str(PART), "--out", str(output), *more,
    ]  # fmt: skip


def workers():
    """The processes of this cluster's actors that write parts."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            mine = TOKEN.encode() in entry.with_name("environ").read_bytes()
            if mine and entry.read_bytes().startswith(b"ray::PartWorker"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def content(path):
    with h5py.File(path) as file:
        sets = {name: file[name][()].tobytes() for name in file}
        return {**sets, **{name: str(value) for name, value in file.attrs.items()}}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_a_killed_worker_leaves_no_trace(cluster, images, tmp_path):
    whole, spread = tmp_path / "whole.h5", tmp_path / "spread.h5"
    alone = subprocess.run(command(images, whole), env=one_thread(), capture_output=True, text=True, timeout=300)
    assert alone.returncode == 1, alone.stderr  # the broken picture
    running = subprocess.Popen(
        command(images, spread, "--engine", "ray", "--ray-address", cluster),
        env=one_thread(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    parts = spread.with_name("spread.h5.parts")
    deadline = time.monotonic() + 200
    victims = []
    while running.poll() is None and time.monotonic() < deadline:
        victims = workers()
        if len(victims) == 2 and list(parts.glob("part-*.h5")):
            break
        time.sleep(0.005)
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    written_at_the_kill = len(list(parts.glob("part-*.h5")))
    out, err = running.communicate(timeout=300)
    assert running.returncode == 1, err
    assert f"{IMAGES} of {IMAGES + 1} images" in out
    assert written_at_the_kill < (IMAGES + 1) / PART
    assert content(spread) == content(whole)


@pytest.mark.slow
def test_a_grid_is_the_same(cluster, images, tmp_path):
    whole, spread = tmp_path / "whole.h5", tmp_path / "spread.h5"
    for line in (
        command(images, whole, "--grid", "3"),
        command(images, spread, "--grid", "3", "--engine", "ray", "--ray-address", cluster),
    ):
        done = subprocess.run(line, env=one_thread(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 1, done.stderr  # the broken picture
        assert f"{IMAGES * 9} regions" in done.stdout
    assert content(spread) == content(whole)


@pytest.mark.slow
def test_errors_of_workers_are_one_line(cluster, images, tmp_path):
    line = command(images, tmp_path / "f.h5", "--engine", "ray", "--ray-address", cluster, "--on-error", "fail")
    done = subprocess.run(line, env=one_thread(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    complaints = [text for text in done.stderr.splitlines() if text.startswith("error:")]
    assert complaints == [
        f"error: {images}/broken.jpg: image broken cannot be read: not an image in a known format, or its "
        "header is damaged"
    ]


def test_an_address_without_a_cluster_is_one_line(images, tmp_path):
    pytest.importorskip("ray")
    line = command(images, tmp_path / "f.h5", "--engine", "ray", "--ray-address", "127.0.0.1:1")
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --ray-address 127.0.0.1:1: no connection (Connection refused)")
    assert done.stderr.count("\n") == 1


def test_weights_that_do_not_fit_leave_the_store_alone(images, tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    (tmp_path / "f.h5").write_bytes(b"a store of somebody")
    line = command(images, tmp_path / "f.h5", "--engine", "ray", "--overwrite")
    line[line.index("random")] = str(tmp_path / "junk.pth")
    done = subprocess.run(line, env=one_thread(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "junk.pth: not a readable weight file" in done.stderr
    assert (tmp_path / "f.h5").read_bytes() == b"a store of somebody"
