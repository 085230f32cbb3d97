"""A scan that Ray's actors share finds what a scan finds, also when one of them is killed."""

import os
import secrets
import signal
import threading
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chan.packing import pack
from chan.retrieval import ray_engine
from chan.retrieval.index import ImageIndex
from chan.retrieval.indexing import remove_from_index
from chan.retrieval.ray_engine import RaySearch, ScanWorker
from chan.retrieval.scan import ScanSearch
from chan.scoring.codings import CODINGS
from chan.scoring.pairwise import Scorer, pairwise_scores
from data_tools.clusters import LOOPBACK
from data_tools.errors import InputError

pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")

DIM = 16
POOLINGS = ("max", "mean", "sum", "softmax", "lse")
GONE = ["i3", "i1500"]
MARK = secrets.token_hex(16)


@pytest.fixture(scope="module")
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


@pytest.fixture
def search(made_index, images, cluster):
    """A search that two actors share, of an index from which two images were removed."""
    folder = made_index([images[:2000], images[2000:2001], images[2001:]])
    remove_from_index(folder, GONE)
    started = RaySearch(ImageIndex(folder), "cpu")
    yield started
    started.close()


def test_the_actors_rank_as_the_score_matrix_and_a_killed_one_costs_no_answer(search, images, queries):
    """In one test, because the actors take seconds to start."""
    kept = [image for number, image in enumerate(images) if f"i{number}" not in GONE]
    packed = pack([torch.from_numpy(image).float() for image in kept])
    for coding, pooling in product(CODINGS, POOLINGS):
        scorer = Scorer.from_names(coding, pooling)
        expected = pairwise_scores(
            packed.rows, packed.offsets, queries.rows, queries.offsets, coding=coding, pooling=pooling
        ).T.numpy()
        for own, scores in zip(search(scorer, queries, 10), expected, strict=True):
            assert (own.way, own.exact) == ("ray", True)
            np.testing.assert_allclose(own.scores, np.sort(scores)[:-11:-1], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(own.scores, scores[own.positions], rtol=1e-5, atol=1e-5)
            if coding in ("vha", "tha") and pooling in ("max", "mean", "sum"):
                np.testing.assert_array_equal(own.positions, np.argsort(-scores, kind="stable")[:10])
    check_stream_with_kills(search, queries)


def check_stream_with_kills(search, queries):
    """One worker is killed between two queries, the other at a moment of the stream."""
    scorer, before = Scorer.from_names("vha", "sum"), workers()
    expected = ScanSearch(search.index)(scorer, queries, 10)
    assert len(before) == 2
    first, second = sorted(before)
    killer = threading.Timer(0.02, os.kill, (second, signal.SIGKILL))
    answers = after = 0
    while after < 3:
        if answers == 2:
            os.kill(first, signal.SIGKILL)
            killer.start()
        for own, wanted in zip(search(scorer, queries, 10), expected, strict=True):
            np.testing.assert_array_equal(own.positions, wanted.positions)
            np.testing.assert_array_equal(own.scores, wanted.scores)
        answers += 1
        after += killer.finished.is_set()
    assert not workers() & before
    assert len(workers()) == 2


class DeadRay:
    """A cluster whose actors all die, or all fail with an error."""

    def __init__(self, error):
        import ray

        self.exceptions, self.error, self.started = ray.exceptions, error, 0

    def put(self, value):
        return value

    def cluster_resources(self):
        return {"CPU": 2}

    def remote(self, _):
        return self

    def options(self, **_):
        def start(*_):
            self.started += 1
            return SimpleNamespace(best=SimpleNamespace(remote=lambda *_: None))

        return SimpleNamespace(remote=start)

    def get(self, _):
        raise self.error(self.exceptions)


@pytest.mark.parametrize(
    ("error", "line", "started"),
    [
        (lambda known: known.ActorDiedError(), "3 workers of the Ray cluster died", 2 + 3),
        (lambda known: known.RayTaskError("best", "", InputError("segment-0.h5: no such file")), "segment-0", 2),
    ],
)
def test_deaths_at_one_search_have_an_end_and_errors_of_workers_are_passed_on(
    made_index, images, queries, monkeypatch, error, line, started
):
    dead = DeadRay(error)
    monkeypatch.setattr(ray_engine, "connect_to_ray", lambda address: dead)
    with pytest.raises(InputError, match=line):
        RaySearch(ImageIndex(made_index([images[:20]])), "cpu")(Scorer.from_names(), queries, 3)
    assert dead.started == started


def test_a_worker_keeps_to_the_manifest_that_it_was_given(made_index, images, queries):
    index = ImageIndex(made_index([images[:20]]))
    remove_from_index(index.folder, ["i1"])
    rows, offsets = queries.rows.numpy(), queries.offsets.numpy()
    worker = ScanWorker(index.folder, index.manifest, 0, 1, "cpu")
    for own, wanted in zip(
        worker.best(Scorer.from_names(), rows, offsets, 20),
        ScanSearch(index)(Scorer.from_names(), queries, 20),
        strict=True,
    ):
        np.testing.assert_array_equal(own[0], wanted.positions)
