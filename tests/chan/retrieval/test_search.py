"""A search finds what the score matrix ranks first, whatever coding, pooling and layout of the index."""

import numpy as np
import pytest
import torch

from chan.packing import Packed, pack
from chan.retrieval import scan as scanning
from chan.retrieval.documents import of_sentence
from chan.retrieval.index import ImageIndex
from chan.retrieval.indexing import remove_from_index
from chan.retrieval.scan import best, scan
from chan.scoring.codings import CODINGS
from chan.scoring.pairwise import Scorer, pairwise_scores
from data_tools.errors import InputError

DIM = 16
POOLINGS = ("max", "mean", "sum", "softmax", "lse")


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


def ranked(matrix: np.ndarray) -> np.ndarray:
    """(Q, N): the images of each query from best to worst; equal ones in their order."""
    return np.argsort(-np.asarray(matrix, np.float64), axis=1, kind="stable")


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("coding", CODINGS)
def test_the_scan_ranks_as_the_score_matrix(made_index, queries, monkeypatch, coding, pooling):
    monkeypatch.setattr(scanning, "CHUNK_REGIONS", 7)
    images = collection(1, 40)
    index = ImageIndex(made_index([images[:23], images[23:24], images[24:]]))
    scorer = Scorer.from_names(coding, pooling)
    all_images = pack([torch.from_numpy(image).float() for image in images])
    expected = pairwise_scores(
        all_images.rows, all_images.offsets, queries.rows, queries.offsets, coding=coding, pooling=pooling
    ).T.numpy()
    found = scan(index, scorer, queries)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    if coding in ("vha", "tha") and pooling in ("max", "mean", "sum"):
        np.testing.assert_array_equal(found, expected)
        order = np.stack([best(scores, 10) for scores in found])
        np.testing.assert_array_equal(order, ranked(expected)[:, :10])


def test_a_removed_image_is_not_found_and_the_others_keep_their_scores(made_index, queries):
    images = collection(2, 12)
    folder = made_index([images[:5], images[5:]])
    scorer = Scorer.from_names()
    before = scan(ImageIndex(folder), scorer, queries)
    assert remove_from_index(folder, ["i3", "i7"]).images == 10
    index = ImageIndex(folder)
    assert index.image_ids == [f"i{n}" for n in range(12) if n not in (3, 7)]
    np.testing.assert_array_equal(scan(index, scorer, queries), np.delete(before, [3, 7], axis=1))


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_best_is_a_stable_sort(k):
    scores = np.array([0.5, 0.75, 0.5, -np.inf, 0.75, 0.5, 0.1], np.float32)
    np.testing.assert_array_equal(best(scores, k), np.argsort(-scores, kind="stable")[:k])


def test_scores_that_are_no_numbers_come_last(made_index):
    index = ImageIndex(made_index([[np.full((1, DIM), np.nan), np.ones((1, DIM))]]))
    [scores] = scan(index, Scorer.from_names(), pack([torch.ones(1, DIM)]))
    assert scores[0] == -np.inf
    assert best(scores, 2).tolist() == [1, 0]


def test_a_sentence_finds_images_with_the_regions_of_its_words(made_index, retriever):
    images = collection(3, 30)
    searched = retriever.open_index(made_index([images]))
    query = searched.query("A red circle and a zebra")
    assert query.unknown == ["zebra"]
    results = searched.search(query, k=4)
    all_images = pack([torch.from_numpy(image).float() for image in images])
    scores = retriever.score(all_images, query.tokens)[:, 0]
    assert [hit.position for hit in results.hits] == scores.argsort(descending=True, stable=True)[:4].tolist()
    assert results.exact
    for hit in results.hits:
        cosines = query.tokens.rows.numpy() @ images[hit.position].T
        for word, match in zip(query.words, hit.words, strict=True):
            assert match.word == word.text
            assert match.value == pytest.approx(cosines[word.tokens[0]].max(), abs=1e-5)
            assert cosines[word.tokens[0], match.region] == pytest.approx(match.value, abs=1e-5)
            rest = [row for place, row in enumerate(query.tokens.rows) if place not in word.tokens]
            image = pack([torch.from_numpy(images[hit.position]).float()])
            struck = retriever.score(image, pack([torch.stack(rest)])).item()
            assert match.drop == pytest.approx(hit.score - struck, abs=1e-4)


def test_several_sentences_in_one_pass_find_the_same(made_index, retriever):
    searched = retriever.open_index(made_index([collection(4, 25)]))
    texts = ["a red square", "circle", "the blue triangle is beside a circle"]
    together = searched.search_all(texts, k=5)
    for text, results in zip(texts, together, strict=True):
        assert [hit.image_id for hit in results.hits] == [hit.image_id for hit in searched.search(text, k=5).hits]


def test_a_struck_word_does_not_count_and_a_weight_counts_as_often(made_index, retriever):
    searched = retriever.open_index(made_index([collection(6, 25)]))
    query = searched.query("red circle")
    rows = query.tokens.rows
    assert [word.text for word in query.words] == ["<start>", "red", "circle", "<end>"]
    weighted = query.weighted([0, 1, 2, 0]).scored.rows
    torch.testing.assert_close(weighted, rows[[1, 2, 2]], rtol=0, atol=0)
    for wrong in ([1, 1, 1], [1, 1, 1, 6], [0, 0, 0, 0], [1, 1, -1, 1]):
        with pytest.raises(InputError):
            query.weighted(wrong)


def test_a_region_finds_the_images_that_hold_one_like_it(made_index, retriever):
    images = collection(7, 20)
    searched = retriever.open_index(made_index([images[:9], images[9:]]))
    wanted = images[4][0]
    results = searched.like("i4", 0, k=20)
    cosines = np.array([(image @ wanted).max() for image in images])
    assert [hit.position for hit in results.hits] == ranked(cosines[None])[0].tolist()
    for hit in results.hits:
        assert (images[hit.position] @ wanted)[hit.region] == cosines[hit.position]
    with pytest.raises(InputError, match="regions"):
        searched.like("i4", 99)
    with pytest.raises(InputError, match="nobody"):
        searched.like("nobody", 0)


def test_sentences_for_an_image_are_ranked_by_their_score(made_index, retriever):
    images = collection(8, 6)
    searched = retriever.open_index(made_index([images]))
    captions = ["a red square", "a blue circle", "the green triangle"]
    found = searched.captions_for("i2", captions, k=2)
    scores = retriever.score(pack([torch.from_numpy(images[2]).float()]), retriever.encode_captions(captions))[
        0
    ].numpy()
    assert [hit.caption for hit in found] == [captions[place] for place in ranked(scores[None])[0][:2]]


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_sentence_is_refused(made_index, retriever, text):
    searched = retriever.open_index(made_index([collection(9, 3)]))
    with pytest.raises(InputError, match="no word"):
        searched.search(text)


def test_a_region_without_a_box_is_no_place_in_the_picture(made_index, retriever):
    """Neither for the words that it wins nor for a point, and the plain data of a page have null."""
    random = np.random.default_rng(7)
    columns = {
        "boxes": np.array([[0, 0, 9, 9], [0, 0, 4, 4]], np.float32),
        "box_confidence": np.array([0, 0.9], np.float32),
    }
    searched = retriever.open_index(made_index([[random.normal(size=(2, DIM))]], columns=columns))
    [hit] = searched.search("a red square and a blue circle", k=1).hits
    won = {match.region: match.box for match in hit.words}
    assert 0 in won
    assert all((box is None) == (region == 0) for region, box in won.items())
    [plain] = of_sentence(searched, searched.query("a red square"), searched.search("a red square"), str)["hits"]
    assert plain["regions"] == [None, [0.0, 0.0, 4.0, 4.0]]
    assert all(word["box"] == plain["regions"][word["region"]] for word in plain["words"])
    assert searched.region_at("i0", 3, 3) == 1
    with pytest.raises(InputError, match="no region holds the point 8, 8"):
        searched.region_at("i0", 8, 8)


def test_a_search_rounds_no_product_to_tf32(retriever):
    found = set()
    encoders = (retriever.model.image_encoder, retriever.model.text_encoder)
    hooks = [
        encoder.register_forward_hook(lambda *_: found.add(torch.backends.cuda.matmul.fp32_precision))
        for encoder in encoders
    ]
    images = retriever.encode_images([np.ones((2, retriever.dim), np.float32)])
    captions = retriever.encode_captions(["a red circle"])
    for hook in hooks:
        hook.remove()
    assert found == {"ieee"}
    assert retriever.score(images, captions).shape == (1, 1)
