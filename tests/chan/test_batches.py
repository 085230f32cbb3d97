from pathlib import Path

import torch

from chan.batches import Batch, TrainingPairs, epoch_order, training_batches
from chan.splits import open_split
from chan.word_ids import VocabularyReader
from data_tools.vocabulary import Vocabulary

CPU = torch.device("cpu")


def make_pairs(dataset: Path, keep: float = 0.8, change: float = 0.2) -> TrainingPairs:
    opened = open_split(dataset, "train", None)
    reader = VocabularyReader(Vocabulary.build(opened.split.captions))
    return TrainingPairs(opened, reader, keep, change, seed=3)


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
    alone = list(training_batches(pairs, 2, 16, workers=0, device=CPU))
    shared = list(training_batches(pairs, 2, 16, workers=2, device=CPU))
    assert len(alone) == len(shared) == 3
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.image_of_pair, other.image_of_pair)
        assert all(torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


def test_epochs_are_augmented_differently(dataset: Path) -> None:
    pairs = make_pairs(dataset, keep=0.5)
    kept = []
    for epoch in range(2):
        pairs.epoch = epoch
        kept.append([len(pairs[index][0]) for index in range(len(pairs))])
    assert kept[0] != kept[1]


def test_a_pair_is_an_image_and_its_caption(dataset: Path) -> None:
    pairs = make_pairs(dataset, keep=1.0, change=0.0)
    regions, ids, image = pairs[7]
    assert image == 1  # five captions an image
    assert torch.equal(regions, torch.from_numpy(pairs.opened.regions(1)))
    words = pairs.reader.words([pairs.opened.split.captions[7]])[0]
    assert ids.tolist() == [index for _, own in words for index in own]
