"""A trained model, ready to encode images and sentences, to score them and to say why.

Shapes: B_i images, B_t captions, R regions of all images, W token embeddings of all captions, K regions of one
image, F feature dimension, D joint dimension.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chan.data.splits import caption_batch
from chan.model.chan import Chan
from chan.packing import Packed, join, offsets_of
from chan.retrieval.manifest import MODEL, read_manifest
from chan.retrieval.search import IndexSearch
from chan.retrieval.words import SPECIAL, Word, WordMatch
from chan.runs.folder import load_best_model
from chan.runs.hub import fetched_index, fetched_run
from chan.text.tokenizers import CaptionTokenizer, tokenize_captions
from data_tools.arithmetic import float32_products
from data_tools.devices import resolve_device
from data_tools.errors import InputError
from data_tools.store.features import RegionFeatures

BATCH = 128  # images or captions encoded at a time


class Retriever:
    """Encodes images and captions with a trained model and scores them.

    >>> from chan.build import build_model
    >>> from chan.config import ModelConfig
    >>> from chan.text.tokenizers import VocabularyTokenizer
    >>> from data_tools.captions.vocabulary import Vocabulary
    >>> tokenizer = VocabularyTokenizer(Vocabulary.build(["a dog on the beach"], threshold=1))
    >>> model = build_model(ModelConfig(dim=8), 4, tokenizer, pretrained=False)
    >>> retriever = Retriever(model, tokenizer, 4, torch.device("cpu"))  # or Retriever.from_pretrained("runs/my")
    >>> images = retriever.encode_images([np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)])
    >>> retriever.score(images, retriever.encode_captions(["a dog"])).shape
    torch.Size([2, 1])

    Args:
        model: on `device`.
        tokenizer: of the model.
        dim: F.
        device: where to compute.
        folder: the run's, if it has one.
    """

    def __init__(
        self, model: Chan, tokenizer: CaptionTokenizer, dim: int, device: torch.device, folder: Path | None = None
    ) -> None:
        self.model, self.tokenizer, self.dim, self.device, self.folder = (
            model.eval(),
            tokenizer,
            dim,
            device,
            folder,
        )

    @classmethod
    def from_pretrained(cls, run: str | Path, device: str = "auto") -> "Retriever":
        """The best weights of a run.

        Args:
            run: a run folder, written by `chan train` or `chan import`, or the `model` folder of an index.
            device: auto, cpu, cuda or cuda:N.

        Raises:
            InputError: there is no run, no epoch of it is finished, or its files do not fit together.
            UsageError: this machine has no such device.
        """
        where, folder = resolve_device(device), fetched_run(run)
        model, dim, tokenizer = load_best_model(folder, where)
        return cls(model, tokenizer, dim, where, folder)

    @torch.inference_mode()
    def encode_images(self, features: RegionFeatures | Sequence[np.ndarray] | np.ndarray) -> Packed:
        """The region embeddings (R, D) of images, on the device.

        Args:
            features: an opened features file, all of whose images are encoded, one array (K, F) per image, or the
                array of a single image.

        Raises:
            InputError: the features have another dimension than the model's, or an image has no region.
        """
        if isinstance(features, np.ndarray):
            features = [features]
        if isinstance(features, Sequence):
            arrays = [np.asarray(array) for array in features]
            for number, array in enumerate(arrays):
                if array.ndim != 2 or array.shape[1] != self.dim or not len(array):
                    raise InputError(
                        f"image {number}: expected features of shape (regions, {self.dim}), found {array.shape}"
                    )
            batches = [arrays[first : first + BATCH] for first in range(0, len(arrays), BATCH)]
            parts = [self._encode(np.concatenate(batch), np.array([len(a) for a in batch])) for batch in batches]
        else:
            if features.dim != self.dim:
                raise InputError(f"features of {features.dim} numbers per region; the model expects {self.dim}")
            spans = [
                np.arange(first, min(first + BATCH, len(features))) for first in range(0, len(features), BATCH)
            ]
            parts = [self._encode(features.gather(rows), features.counts[rows]) for rows in spans]
        return join(parts)

    @torch.inference_mode()
    def encode_regions(self, features: np.ndarray, counts: np.ndarray) -> Packed:
        """Float32 embeddings, on the CPU, of the features (R, F) of images with (n,) numbers of regions.

        They are (R, D), or (n, D) of a model with one vector per image.
        """
        return self._encode(features, counts).to(torch.device("cpu"))

    @float32_products("ieee")
    def _encode(self, features: np.ndarray, counts: np.ndarray) -> Packed:
        batch = Packed(torch.from_numpy(features), offsets_of(torch.from_numpy(np.asarray(counts, np.int64))))
        return self.model.image_encoder(batch.to(self.device))

    @torch.inference_mode()
    @float32_products("ieee")
    def encode_captions(self, captions: Sequence[str]) -> Packed:
        """The token embeddings (W, D) of sentences, on the device.

        Raises:
            InputError: a sentence has no word.
        """
        for number, words in enumerate(self.words(captions)):
            if not any(word.text not in SPECIAL for word in words):
                raise InputError(f"query {number + 1} has no word: {captions[number]!r}")
        ids = tokenize_captions(self.tokenizer, captions)
        numbers = np.arange(len(captions))
        batches = [numbers[first : first + BATCH] for first in range(0, len(numbers), BATCH)]
        return join(
            [
                self.model.text_encoder(caption_batch(ids, self.tokenizer, batch).to(self.device))
                for batch in batches
            ]
        )

    @torch.inference_mode()
    def score(self, images: Packed, captions: Packed) -> Tensor:
        """(B_i, B_t) float32 scores of embeddings, by the model's coding and pooling."""
        return self.model.score(images, captions)

    def words(self, captions: Sequence[str]) -> list[list[Word]]:
        """The words of each sentence, and where their token embeddings are."""
        unknown, one_vector = self.tokenizer.unknown_id, self.model.has_one_vector
        spelled = []
        for words in self.tokenizer.words(captions):
            place, found = len(self.tokenizer.prefix), []
            for text, ids in words:
                tokens = () if one_vector else tuple(range(place, place + len(ids)))
                found.append(Word(text, tokens, known=text in SPECIAL or unknown not in ids))
                place += len(ids)
            spelled.append(found)
        return spelled

    @torch.inference_mode()
    @float32_products("ieee")
    def explain(
        self, image: Packed, caption: Packed, words: Sequence[Word], boxes: np.ndarray | None = None
    ) -> list[WordMatch]:
        """What each word found in an image; nothing where the model has one vector per image.

        Args:
            image: the (K, D) embeddings of one image.
            caption: the token embeddings of one sentence.
            words: the words of that sentence.
            boxes: (K, 4) of the regions, if they are known; NaN for a region that has none.
        """
        if self.model.has_one_vector:
            return []
        rows = image.rows.to(caption.rows.device, torch.float32)
        choices = self.model.scorer.coding.choices
        value, winner = (side.cpu().tolist() for side in choices(image.with_rows(rows), caption))
        matches = []
        for word in words:
            token = max(word.tokens, key=value.__getitem__)
            region = winner[token]
            box = None if boxes is None or np.isnan(boxes[region]).any() else boxes[region]
            matches.append(WordMatch(word.text, value[token], region, box))
        return matches

    def open_index(self, folder: Path | str) -> IndexSearch:
        """An index of this model's embeddings, or `hf://OWNER/NAME[@REVISION]`, to search in it.

        Raises:
            InputError: there is no index, it cannot be fetched, or it was made with other weights.
        """
        return IndexSearch(fetched_index(folder), self)


def open_index(folder: Path | str, device: str = "auto") -> IndexSearch:
    """An index, or `hf://OWNER/NAME[@REVISION]`, to search in, with its own copy of the model that made it.

    Raises:
        InputError: there is no index, it cannot be fetched, or it is damaged.
        UsageError: this machine has no such device.
    """
    found = fetched_index(folder)
    read_manifest(found)  # a folder without an index is that, not a folder without a run
    return Retriever.from_pretrained(found / MODEL, device).open_index(found)
