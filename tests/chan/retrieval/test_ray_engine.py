"""A scan that Ray's actors share finds what a scan finds, also when one of them is killed."""

import os
import secrets
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from chan.packing import pack
from chan.retrieval import ray_engine
from chan.retrieval.index import ImageIndex
from chan.retrieval.indexing import remove_from_index
from chan.retrieval.ray_engine import RaySearch
from chan.retrieval.scan import ScanSearch
from chan.scoring.codings import CODINGS
from chan.scoring.pairwise import Scorer, pairwise_scores
from data_tools.clusters import LOOPBACK
from data_tools.errors import InputError

pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")

DIM = 16
POOLINGS = ("max", "mean", "sum", "softmax", "lse")
MARK = secrets.token_hex(16)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A cluster of two workers on this machine; `RaySearch` uses one that this process is connected to."""
    os.environ.update({**LOOPBACK, "TEST_OF_SEARCH": MARK})
    import ray

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()
    del os.environ["TEST_OF_SEARCH"]


def workers() -> set[int]:
    """The processes of the actors of this cluster."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            mine = MARK.encode() in entry.with_name("environ").read_bytes()
            if mine and entry.read_bytes().startswith(b"ray::ScanWorker"):
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


def exact_rows(random: np.random.Generator, rows: int) -> np.ndarray:
    """Small multiples of 1/8: their products are exact in any order of summation."""
    return random.integers(-3, 4, (rows, DIM)) / 8


@pytest.fixture
def images():
    """Ragged images, more regions than one chunk has, of which the second half repeats the first: scores tie."""
    random = np.random.default_rng(1)
    half = [exact_rows(random, int(random.integers(1, 6))) for _ in range(1500)]
    return [*half, *half]


@pytest.fixture
def queries():
    random = np.random.default_rng(5)
    return pack([torch.from_numpy(exact_rows(random, length)).float() for length in (4, 1, 7)])


def test_the_actors_rank_as_the_score_matrix(made_index, images, queries):
    index = ImageIndex(made_index([images[:2000], images[2000:2001], images[2001:]]))
    packed = pack([torch.from_numpy(image).float() for image in images])
    search = RaySearch(index, "cpu")
    for coding in CODINGS:
        for pooling in POOLINGS:
            scorer = Scorer.from_names(coding, pooling)
            expected = pairwise_scores(
                packed.rows, packed.offsets, queries.rows, queries.offsets, coding=coding, pooling=pooling
            ).T.numpy()
            for own, scores in zip(search(scorer, queries, 10), expected, strict=True):
                assert (own.way, own.exact) == ("ray", True)
                np.testing.assert_allclose(own.scores, scores[own.positions], rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(own.scores, np.sort(scores)[:-11:-1], rtol=1e-5, atol=1e-5)
                if coding in ("vha", "tha") and pooling in ("max", "mean", "sum"):
                    np.testing.assert_array_equal(own.positions, np.argsort(-scores, kind="stable")[:10])
    search.close()


def test_a_killed_worker_costs_no_answer(made_index, images, queries):
    folder = made_index([images])
    remove_from_index(folder, ["i3", "i1500"])
    index = ImageIndex(folder)
    scorer, search = Scorer.from_names("vha", "sum"), RaySearch(index, "cpu")
    expected = ScanSearch(index)(scorer, queries, 10)
    search(scorer, queries, 10)
    before = workers()
    assert len(before) == 2
    first, second = sorted(before)
    killer = threading.Timer(0.05, os.kill, (second, signal.SIGKILL))
    answers, after_kill = 0, 0
    while after_kill < 3:
        if answers == 2:
            os.kill(first, signal.SIGKILL)
        if answers == 4:
            killer.start()
        for own, wanted in zip(search(scorer, queries, 10), expected, strict=True):
            np.testing.assert_array_equal(own.positions, wanted.positions)
            np.testing.assert_array_equal(own.scores, wanted.scores)
        answers += 1
        after_kill += killer.finished.is_set()
    search(scorer, queries, 10)
    assert not workers() & before
    search.close()


def test_a_share_at_which_all_workers_die_ends_the_search(made_index, images, queries, monkeypatch):
    class Dying(ray_engine.ScanWorker):
        def best(self, *_):
            os._exit(1)

    monkeypatch.setattr(ray_engine, "ScanWorker", Dying)
    with pytest.raises(InputError, match="3 workers of the Ray cluster died"):
        RaySearch(ImageIndex(made_index([images])), "cpu")(Scorer.from_names(), queries, 3)


def test_an_index_that_was_compacted_meanwhile_gives_one_line(made_index, images, queries):
    index = ImageIndex(made_index([images[:20]]))
    (index.folder / "segment-0.h5").unlink()
    with pytest.raises(InputError, match="segment-0.h5"):
        RaySearch(index, "cpu")(Scorer.from_names(), queries, 3)
