from pathlib import Path

import numpy as np
import torch

from chan.data.augmentation import changed_words, generator, kept_regions
from chan.data.batches import Batch, TrainingPairs, epoch_order, training_batches
from chan.data.feature_cache import make_cache
from chan.data.splits import FeatureSplit, open_split
from chan.packing import join, pack
from chan.text.tokenizers import VocabularyTokenizer
from data_tools.captions.vocabulary import Vocabulary

CPU = torch.device("cpu")


def make_pairs(dataset: Path, keep: float = 0.8, change: float = 0.2) -> TrainingPairs:
    feature_split = open_split(dataset, "train", None)
    tokenizer = VocabularyTokenizer(Vocabulary.build(feature_split.split.captions))
    return TrainingPairs(feature_split, tokenizer, keep, change, seed=3)


def regions_of(feature_split: FeatureSplit, image: int) -> torch.Tensor:
    return torch.from_numpy(feature_split.gather(np.array([image])))


def parts(batch: Batch) -> list[torch.Tensor]:
    return [*(getattr(side, f) for side in (batch.images, batch.captions) for f in ("rows", "offsets"))]


def test_every_caption_comes_once_in_whole_batches() -> None:
    batches = epoch_order(23, 5, seed=0, epoch=1)
    assert [len(batch) for batch in batches] == [5] * 4
    assert len({caption for batch in batches for caption in batch}) == 20
    assert batches != epoch_order(23, 5, seed=0, epoch=2)


def test_few_captions_make_one_batch() -> None:
    assert sorted(epoch_order(3, 128, seed=0, epoch=0)[0]) == [0, 1, 2]


def test_workers_change_nothing(dataset: Path) -> None:
    pairs = make_pairs(dataset)
    steps = epoch_order(len(pairs), 16, seed=3, epoch=2)
    alone = list(training_batches(pairs, 2, steps, workers=0, device=CPU))
    shared = list(training_batches(pairs, 2, steps, workers=2, device=CPU))
    assert len(alone) == len(shared) == 3
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.image_of_pair, other.image_of_pair)
        assert all(torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


def test_epochs_are_augmented_differently(dataset: Path) -> None:
    pairs = make_pairs(dataset, keep=0.5)
    kept = []
    for epoch in range(2):
        pairs.epoch = epoch
        kept.append(pairs[list(range(len(pairs)))].images.lengths.tolist())
    assert kept[0] != kept[1]


def test_a_pair_is_an_image_and_its_caption(dataset: Path) -> None:
    pairs = make_pairs(dataset, keep=1.0, change=0.0)
    batch = pairs[[7, 23, 9]]
    assert batch.image_of_pair.tolist() == [1, 4, 1]  # five captions per image
    regions, ids = batch.images, batch.captions
    for place, (caption, image) in enumerate([(7, 1), (23, 4), (9, 1)]):
        assert torch.equal(regions.slice(place, place + 1).rows, regions_of(pairs.feature_split, image))
        words = pairs.tokenizer.words([pairs.feature_split.split.captions[caption]])[0]
        expected = [index for _, own in words for index in own]
        assert ids.slice(place, place + 1).rows.tolist() == expected


def test_a_batch_is_its_pairs_one_by_one(dataset: Path) -> None:
    pairs, captions = make_pairs(dataset, keep=0.5), [41, 0, 17, 3, 41]
    pairs.epoch = 5
    feature_split, tokenizer, ids, rows = pairs.feature_split, pairs.tokenizer, [], []
    for caption in captions:
        random = generator(3, 5, caption)
        regions = regions_of(feature_split, int(feature_split.split.caption_images[caption]))
        rows.append(regions[kept_regions(len(regions), 0.5, random)])
        words = pairs.words.caption(caption)
        ids.append(torch.tensor(changed_words(words, 0.2, tokenizer.mask_id, tokenizer.vocab_size, random)))
    whole = pairs[captions]
    for side, expected in ((whole.images, pack(rows)), (whole.captions, pack(ids))):
        assert side.rows.dtype == expected.rows.dtype
        assert torch.equal(side.rows, expected.rows)
        assert torch.equal(side.offsets, expected.offsets)


def test_a_batch_is_not_written_into_again(dataset: Path) -> None:
    """The images of all batches are read into one block, of which a batch must be a copy."""
    pairs = make_pairs(dataset, keep=1.0)
    first = pairs[[0, 1, 2]]
    before = first.images.rows.clone()
    pairs[[30, 31, 32]]
    assert torch.equal(first.images.rows, before)


def test_a_cache_changes_nothing(dataset: Path) -> None:
    pairs, steps = make_pairs(dataset), epoch_order(60, 16, seed=3, epoch=2)
    mapped = list(training_batches(pairs, 2, steps, workers=0, device=CPU))
    for kind in ("memory", "device"):
        cache = make_cache(pairs.feature_split, kind, CPU)
        assert cache is not None
        cached = TrainingPairs(pairs.feature_split, pairs.tokenizer, 0.8, 0.2, seed=3, cache_starts=cache.starts)
        for workers in (0, 2):
            batches = list(training_batches(cached, 2, steps, workers=workers, device=CPU, cache=cache))
            for one, other in zip(mapped, batches, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


def test_auto_leaves_features_in_their_file_where_there_is_no_gpu(dataset: Path) -> None:
    feature_split = open_split(dataset, "train", None)
    assert make_cache(feature_split, "auto", CPU) is None
    assert make_cache(feature_split, "mmap", CPU) is None


def test_a_cache_keeps_the_stored_type(flickr8k: Path) -> None:
    feature_split = open_split(flickr8k, "dev", None)
    cache = make_cache(feature_split, "memory", CPU)
    assert cache is not None
    assert cache.rows.dtype == torch.float16
    assert torch.equal(cache.rows[cache.starts[7] :][:36], regions_of(feature_split, 7))


def test_the_parts_of_a_batch_are_the_batch(dataset: Path) -> None:
    batch = next(training_batches(make_pairs(dataset), 0, [list(range(7))], workers=0, device=CPU))
    split = batch.split(3)
    assert [len(part.images) for part in split] == [2, 2, 3]
    for whole, joined in (
        (batch.images, join([part.images for part in split])),
        (batch.captions, join([part.captions for part in split])),
    ):
        assert torch.equal(whole.rows, joined.rows)
        assert torch.equal(whole.offsets, joined.offsets)
    assert torch.equal(batch.image_of_pair, torch.cat([part.image_of_pair for part in split]))
