"""Candidates with exact lists rank as the score matrix and certify it; approximate ones are near and say so."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from chan.packing import Packed, pack
from chan.retrieval import candidates, indexing, region_lists
from chan.retrieval.candidates import CandidateSearch
from chan.retrieval.index import ImageIndex
from chan.retrieval.indexing import (
    add_to_index,
    compact_index,
    create_index,
    open_collection,
    remove_from_index,
)
from chan.retrieval.manifest import Manifest, read_manifest
from chan.retrieval.region_lists import EXACT_KIND, build_lists
from chan.retrieval.retriever import open_index
from chan.retrieval.scan import ScanSearch
from chan.scoring.codings import CODINGS
from chan.scoring.pairwise import Scorer, pairwise_scores
from data_tools.errors import InputError

pytest.importorskip("faiss", reason="the extra search is not installed")

DIM = 16
RISING = ("max", "mean", "sum", "lse")


def exact_rows(random: np.random.Generator, rows: int) -> np.ndarray:
    """Small multiples of 1/8: their products are exact in any order of summation."""
    return random.integers(-3, 4, (rows, DIM)) / 8


def collection(seed: int, images: int) -> list[np.ndarray]:
    """Ragged images, of which every third repeats an earlier one, so that scores tie."""
    random = np.random.default_rng(seed)
    made: list[np.ndarray] = []
    for number in range(images):
        made.append(made[number // 2] if number % 3 == 2 else exact_rows(random, int(random.integers(1, 6))))
    return made


@pytest.fixture
def queries() -> Packed:
    random = np.random.default_rng(5)
    return pack([torch.from_numpy(exact_rows(random, length)).float() for length in (4, 1, 7)])


def with_lists(folder, numbers=None, kind=EXACT_KIND):
    """Give segments of an index lists; None: all."""
    index, segments = ImageIndex(folder), []
    for number, opened in enumerate(index.segments):
        chosen = numbers is None or number in numbers
        if chosen:
            build_lists(folder, opened, kind)
        segments.append(replace(opened.segment, lists=chosen))
    replace(index.manifest, segments=tuple(segments)).save(folder)
    return folder


def searching(index: ImageIndex) -> CandidateSearch:
    search = CandidateSearch.of(index)
    assert search is not None
    return search


def matrix(images, queries, coding, pooling):
    packed = pack([torch.from_numpy(image).float() for image in images])
    return pairwise_scores(
        packed.rows, packed.offsets, queries.rows, queries.offsets, coding=coding, pooling=pooling
    ).T.numpy()


@pytest.mark.parametrize("listed", [1, 6, 40, 500])
@pytest.mark.parametrize("pooling", RISING)
def test_a_certified_answer_is_the_score_matrix_s(made_index, queries, monkeypatch, pooling, listed):
    monkeypatch.setattr(candidates, "BATCH", 3)
    images = collection(1, 120)
    folder = with_lists(made_index([images[:80], images[80:81], images[81:]]), {0, 1})
    search = searching(ImageIndex(folder))
    expected = matrix(images, queries, "vha", pooling)
    found = replace(search, listed=listed)(Scorer.from_names("vha", pooling), queries, 5)
    for own, scores in zip(found, expected, strict=True):
        order = np.argsort(-scores.astype(np.float64), kind="stable")
        assert own.way == "candidates"
        outside = np.ones(len(images), bool)
        if own.exact:
            np.testing.assert_array_equal(own.positions, order[:5])
            np.testing.assert_allclose(own.scores, scores[order[:5]], rtol=1e-6)
            outside[own.positions] = False
            assert scores[outside].max() <= own.scores[-1]
        assert own.exact or listed < 500  # every region is listed: the certificate holds
        np.testing.assert_allclose(own.scores, scores[own.positions], rtol=1e-5)


def test_few_lists_certify_and_few_images_are_scored(made_index, monkeypatch):
    monkeypatch.setattr(candidates, "BATCH", 4)
    images = [0.1 * row for row in collection(2, 200)]
    images[150] = np.ones((1, DIM))
    search = searching(ImageIndex(with_lists(made_index([images]))))
    [found] = replace(search, listed=20)(Scorer.from_names(), pack([torch.ones(2, DIM) / 4]), 1)
    assert found.exact
    assert found.positions.tolist() == [150]
    assert found.scored <= 4
    assert found.bound < found.scores[0]


def test_the_bound_holds_for_every_image_that_was_not_listed(made_index, queries):
    images = collection(3, 150)
    search = searching(ImageIndex(with_lists(made_index([images]))))
    for pooling in RISING:
        for own, scores in zip(
            replace(search, listed=12)(Scorer.from_names("vha", pooling), queries, 150),
            matrix(images, queries, "vha", pooling),
            strict=True,
        ):
            unseen = np.setdiff1d(np.arange(150), own.positions)
            assert len(unseen)
            assert scores[unseen].max() <= own.bound + 1e-5
            assert not own.exact  # all were asked for


def test_softmax_has_no_certificate_and_other_codings_are_scanned(made_index, queries, retriever):
    images = collection(4, 60)
    folder = with_lists(made_index([images]))
    [softmax, *_] = searching(ImageIndex(folder))(Scorer.from_names("vha", "softmax"), queries, 5)
    assert not softmax.exact
    assert [coding for coding in CODINGS if CandidateSearch.serves(Scorer.from_names(coding))] == ["vha"]
    assert not CandidateSearch.serves(Scorer.from_names(precision="bf16"))


def test_one_vector_per_image(made_index, queries):
    images = [image[:1] for image in collection(5, 90)]
    search = searching(ImageIndex(with_lists(made_index([images]))))
    one = queries.slice(1, 2)
    [found] = search(Scorer.from_names(), one, 10)
    np.testing.assert_array_equal(
        found.positions, ScanSearch(search.index)(Scorer.from_names(), one, 10)[0].positions
    )
    assert found.exact


def test_removed_images_are_not_found_and_the_lists_stay(made_index, queries):
    images = collection(6, 80)
    folder = with_lists(made_index([images[:50], images[50:]]))
    gone = ["i0", "i2", "i51", "i7"]
    remove_from_index(folder, gone)
    assert all(segment.lists for segment in read_manifest(folder).segments)
    index = ImageIndex(folder)
    for scorer in (Scorer.from_names("vha", "max"), Scorer.from_names("vha", "sum")):
        found = searching(index)(scorer, queries, 10)
        for own, expected in zip(found, ScanSearch(index)(scorer, queries, 10), strict=True):
            np.testing.assert_array_equal(own.positions, expected.positions)
            assert own.exact


@pytest.mark.parametrize("kind", ["IVF{cells},SQ8", "IVF{cells},RaBitQ"])
def test_approximate_lists_find_nearly_the_same_and_say_so(made_index, kind):
    random = np.random.default_rng(7)
    centres = random.standard_normal((40, DIM))
    images = [centres[random.integers(40, size=4)] + 0.3 * random.standard_normal((4, DIM)) for _ in range(400)]
    images = [image / np.linalg.norm(image, axis=1, keepdims=True) for image in images]
    search = searching(ImageIndex(with_lists(made_index([images]), kind=kind)))
    queries = pack([torch.from_numpy(images[n][:2]).float() for n in range(0, 400, 20)])
    scorer = Scorer.from_names()
    shared = 0
    for own, expected in zip(
        search(scorer, queries, 10), ScanSearch(search.index)(scorer, queries, 10), strict=True
    ):
        assert not own.exact
        assert own.bound is not None
        shared += len(set(own.positions.tolist()) & set(expected.positions.tolist()))
    assert shared >= 190  # of 200


def test_a_search_picks_candidates_and_exact_insists_on_the_scan(made_index, retriever, monkeypatch):
    images = collection(8, 60)
    folder = with_lists(made_index([images]), kind="IVF{cells},SQ8")
    searched = retriever.open_index(folder)
    near, exact = searched.search("a red circle", 5), searched.search("a red circle", 5, exact=True)
    assert (near.way, near.exact, exact.way, exact.exact, exact.bound) == ("candidates", False, "scan", True, None)
    assert searched.like("i4", 0, 3).way == "candidates"
    assert searched.search("a red circle", 60).way == "scan" or len(searched.search("a red circle", 60).hits) == 60
    monkeypatch.setattr(region_lists, "find_spec", lambda name: None)  # FAISS is not installed
    alone = retriever.open_index(folder).search("a red circle", 5)
    assert (alone.way, alone.exact) == ("scan", True)
    assert [hit.image_id for hit in alone.hits] == [hit.image_id for hit in exact.hits]


def test_large_segments_get_lists_and_compaction_writes_them_anew(run, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(region_lists, "ENOUGH_REGIONS", 30)
    folder, ids = tmp_path / "large.index", tmp_path / "ids.txt"
    ids.write_text("".join(f"{n}\n" for n in range(20)))
    create_index(folder, run, open_collection(dataset, ids=ids), "cpu")
    monkeypatch.setattr(region_lists, "ENOUGH_REGIONS", 1000)
    add_to_index(folder, open_collection(dataset), "cpu")
    assert [segment.lists for segment in read_manifest(folder).segments] == [True, False]
    found = open_index(folder, "cpu").search("a red circle", 5)
    assert found.way == "candidates"
    monkeypatch.setattr(region_lists, "ENOUGH_REGIONS", 30)
    compact_index(folder)
    assert [segment.lists for segment in read_manifest(folder).segments] == [True]
    assert sorted(path.name for path in folder.glob("*.faiss")) == ["segment-2.faiss"]
    again = open_index(folder, "cpu").search("a red circle", 5)
    assert [hit.image_id for hit in again.hits] == [hit.image_id for hit in found.hits]


def test_missing_and_damaged_lists_are_named(made_index, retriever):
    folder = with_lists(made_index([collection(9, 30)]))
    path = folder / "segment-0.faiss"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"segment-0.faiss.*fix: chan index --compact"):
        retriever.open_index(folder).search("a red circle")
    path.unlink()
    with pytest.raises(InputError, match=r"segment-0.faiss.*fix: chan index --compact"):
        retriever.open_index(folder).search("a red circle")
    indexing.compact_index(folder)
    assert retriever.open_index(folder).search("a red circle").exact


@pytest.mark.parametrize("stop", ["build_lists", "save"])
def test_a_writer_that_ends_at_its_lists_leaves_the_index_as_it_was(
    run, dataset, tmp_path, retriever, monkeypatch, stop
):
    monkeypatch.setattr(region_lists, "ENOUGH_REGIONS", 30)
    folder = tmp_path / "large.index"
    create_index(folder, run, open_collection(dataset), "cpu")
    before = [hit.image_id for hit in retriever.open_index(folder).search("a red circle", 5).hits]

    def stopped(*arguments):
        if stop == "build_lists":
            build_lists(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(indexing if stop == "build_lists" else Manifest, stop, stopped)
        with pytest.raises(KeyboardInterrupt):
            compact_index(folder)
    assert (folder / "segment-1.faiss").exists()
    found = retriever.open_index(folder).search("a red circle", 5)
    assert (found.way, [hit.image_id for hit in found.hits]) == ("candidates", before)
    remove_from_index(folder, ["0"])
    assert sorted(path.name for path in folder.glob("segment*")) == [
        "segment-0.faiss",
        "segment-0.h5",
        "segment-0.json",
    ]
