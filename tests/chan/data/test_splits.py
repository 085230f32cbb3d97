from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from chan.data.splits import caption_batch, caption_lengths, image_batch, open_split, read_captions
from chan.text.tokenizers import BertTokenizer, VocabularyTokenizer
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError


def test_batches_hold_images_and_captions_in_order(dataset: Path) -> None:
    feature_split = open_split(dataset, "dev", None)
    images = image_batch(feature_split, np.array([3, 1, 2]))
    expected = [feature_split.gather(np.array([image])) for image in (3, 1, 2)]
    assert images.lengths.tolist() == [len(rows) for rows in expected]
    assert torch.equal(images.rows, torch.from_numpy(np.concatenate(expected)))

    tokenizer = VocabularyTokenizer(Vocabulary.build(feature_split.split.captions, threshold=1))
    read = read_captions(feature_split, tokenizer)
    captions = caption_batch(read, tokenizer, np.array([3, 2]))
    spelled = tokenizer.words([feature_split.split.captions[caption] for caption in (3, 2)])
    assert captions.rows.tolist() == [index for words in spelled for _, own in words for index in own]
    assert captions.lengths.tolist() == [len(words) for words in spelled]
    assert caption_lengths(read, tokenizer)[[3, 2]].tolist() == captions.lengths.tolist()


def test_lengths_count_what_bert_puts_around_a_caption(dataset: Path, bert_folder: str) -> None:
    feature_split, tokenizer = open_split(dataset, "dev", None), BertTokenizer(bert_folder)
    read = read_captions(feature_split, tokenizer)
    captions = caption_batch(read, tokenizer, np.arange(len(read)))
    assert caption_lengths(read, tokenizer).tolist() == captions.lengths.tolist()


def test_an_image_without_regions_is_named(dataset: Path, tmp_path: Path) -> None:
    with h5py.File(dataset / "precomp" / "features.h5") as source, h5py.File(tmp_path / "f.h5", "w") as store:
        for name in ("image_ids", "features"):
            source.copy(name, store)
        store.attrs.update(source.attrs)
        offsets = source["offsets"][:]
        offsets[13] = offsets[12]  # image 12, the first of dev, loses its regions to the next one
        store["offsets"] = offsets
    with pytest.raises(InputError, match=r"f\.h5: image 12: expected at least one region"):
        open_split(dataset, "dev", tmp_path / "f.h5")
