import numpy as np
import pytest

from chan.data.augmentation import changed_words, generator, kept_regions

MASK, VOCABULARY = 999, 500
WORDS = [[1000 + word] for word in range(40_000)]


def test_regions_stay_with_their_probability() -> None:
    kept = kept_regions(40_000, 0.8, generator(0, 0, 0))
    assert len(kept) / 40_000 == pytest.approx(0.8, abs=0.01)
    assert (np.diff(kept) > 0).all()


def test_one_region_always_stays() -> None:
    seen = {tuple(kept_regions(3, 0.0, generator(0, 0, index)).tolist()) for index in range(60)}
    assert seen == {(0,), (1,), (2,)}


def test_keeping_all_regions_changes_nothing() -> None:
    assert kept_regions(7, 1.0, generator(0, 0, 0)).tolist() == list(range(7))


def test_words_change_in_their_shares() -> None:
    ids = changed_words(WORDS, 0.2, MASK, VOCABULARY, generator(0, 0, 0))
    total = len(WORDS)
    masked = ids.count(MASK)
    replaced = sum(index < VOCABULARY for index in ids)
    assert masked / total == pytest.approx(0.2 * 0.5, abs=0.005)
    assert replaced / total == pytest.approx(0.2 * 0.1, abs=0.003)
    assert (total - len(ids)) / total == pytest.approx(0.2 * 0.4, abs=0.005)
    unchanged = [index for index in ids if index >= 1000]
    assert unchanged == sorted(unchanged)


def test_no_change_at_probability_zero() -> None:
    assert changed_words(WORDS[:9], 0.0, MASK, VOCABULARY, generator(0, 0, 0)) == list(range(1000, 1009))


def test_pieces_of_a_word_change_together() -> None:
    words = [[1000 + word, 1000 + word, 1000 + word] for word in range(3000)]
    ids = changed_words(words, 0.5, MASK, VOCABULARY, generator(0, 0, 0))
    assert len(ids) % 3 == 0
    for first in range(0, len(ids), 3):
        pieces = ids[first : first + 3]
        assert len(set(pieces)) == 1 or max(pieces) < VOCABULARY  # random ids differ, word by word or not


def test_one_word_always_stays() -> None:
    for index in range(200):
        ids = changed_words([[1], [2, 3]], 1.0, MASK, VOCABULARY, generator(0, 0, index))
        assert ids
    assert changed_words([], 1.0, MASK, VOCABULARY, generator(0, 0, 0)) == []


def test_a_removed_caption_keeps_a_word_as_it_was() -> None:
    seen = set()
    for index in range(200):
        ids = changed_words([[1001]], 1.0, MASK, VOCABULARY, generator(0, 0, index))
        seen.add("word" if ids == [1001] else "other")
    assert seen == {"word", "other"}


def test_random_numbers_depend_on_seed_epoch_and_pair() -> None:
    first = generator(1, 2, 3).random(4).tolist()
    assert generator(1, 2, 3).random(4).tolist() == first
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert generator(*other).random(4).tolist() != first
