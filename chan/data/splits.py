"""A split of a data set, ready to be read: its images' features and its captions' ids."""

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from chan.packing import Packed, offsets_of, pack
from chan.text.tokenizers import CaptionTokenizer, WordIds, read_words
from data_tools.captions.splits import Split, load_split
from data_tools.errors import InputError
from data_tools.layout import feature_source, precomp_folder
from data_tools.store.features import RegionFeatures, open_features


@dataclass(frozen=True)
class FeatureSplit:
    """A split and the features of its images; image i of the split is row `rows[i]` of the features."""

    split: Split
    features: RegionFeatures
    rows: np.ndarray
    source: Path

    def regions(self, image: int) -> np.ndarray:
        """(K, F) float16 or float32: the features of the image at this position of the split."""
        return self.features.read(int(self.rows[image]))

    @cached_property
    def counts(self) -> np.ndarray:
        """(N,) int64: regions of each image of the split."""
        return self.features.counts[self.rows]

    def gather(self, images: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """(R, F): the features of the images at these positions, one after the other; `out` as for a reader."""
        return self.features.gather(self.rows[images], out)

    def boxes(self, image: int) -> np.ndarray:
        """(K, 4) float32 x1 y1 x2 y2 in pixels of the upright image.

        Raises:
            InputError: the features have no boxes.
        """
        boxes = self.features.boxes(int(self.rows[image]))
        if boxes is None:
            raise InputError(f"{self.source}: holds no boxes of the regions; a feature store with boxes does")
        return boxes


def open_split(data: Path, name: str, features: Path | None) -> FeatureSplit:
    """Open a split of the data set in the folder `data`; `features` as for `feature_source`.

    Raises:
        InputError: a file is absent or malformed, or an image has no features or no regions.
        UsageError: it is not clear which features are meant.
    """
    split = load_split(precomp_folder(data), name)
    source = feature_source(data, name, features)
    reader = open_features(source, split)
    opened = FeatureSplit(split, reader, reader.rows(split.image_ids), source)
    empty = np.flatnonzero(opened.counts == 0)
    if len(empty):
        raise InputError(f"{source}: image {split.image_ids[empty[0]]}: expected at least one region")
    return opened


def check_dim(opened: FeatureSplit, dim: int) -> None:
    """`InputError` unless the features have `dim` numbers a region."""
    if opened.features.dim != dim:
        raise InputError(
            f"{opened.source}: features of {opened.features.dim} numbers a region; the model expects {dim}"
        )


def image_batch(opened: FeatureSplit, images: np.ndarray) -> Packed:
    """The regions, (R, F), of the images at these positions (n,)."""
    return Packed(torch.from_numpy(opened.gather(images)), offsets_of(torch.from_numpy(opened.counts[images])))


def caption_batch(words: WordIds, reader: CaptionTokenizer, captions: np.ndarray) -> Packed:
    """The ids, (W,) int64, of these captions (n,), none of them changed."""
    own = (chain.from_iterable(words.caption(index)) for index in captions)
    return pack([torch.tensor([*reader.prefix, *ids, *reader.suffix]) for ids in own])


def caption_lengths(words: WordIds, reader: CaptionTokenizer) -> np.ndarray:
    """(C,) int64: the ids that `caption_batch` gives each caption."""
    return np.diff(words.word_offsets[words.caption_offsets]) + len(reader.prefix) + len(reader.suffix)


def read_captions(opened: FeatureSplit, reader: CaptionTokenizer) -> WordIds:
    """The ids of the split's captions."""
    return read_words(reader, opened.split.captions)
