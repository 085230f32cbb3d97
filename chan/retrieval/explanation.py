"""Why a caption finds an image: the region that each of its content words picked.

Shapes: N images and C captions of a split, L words of a caption, K regions of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chan.data.splits import FeatureSplit
from chan.packing import Packed
from chan.retrieval.retriever import Retriever
from chan.retrieval.search import Query, Results
from chan.retrieval.words import NO_REGIONS, Word, WordMatch, is_content_word
from data_tools.captions.splits import Split
from data_tools.errors import InputError
from data_tools.layout import images_folder, load_id_mapping


@dataclass(frozen=True)
class Answer:
    """One of the best images for a caption.

    Attributes:
        file: the image file; None if it is not known.
        score: by the model.
        correct: whether the caption describes this image.
        matches: what each content word found, in the order of the words.
    """

    file: Path | None
    score: float
    correct: bool
    matches: tuple[WordMatch, ...]


@dataclass(frozen=True)
class Explanation:
    """A caption, which of its words are content words, and its best images, best first."""

    words: list[str]
    content: list[int]  # positions in `words`, in order
    answers: list[Answer]
    rank: int | None = None  # of the right image among all, from 1; None where no image is known to be right
    heading: str = ""  # drawn above the caption


def image_files(data: Path, opened: FeatureSplit) -> list[Path]:
    """The image file of each image of the split; `InputError` names an id that has none."""
    mapping, folder = load_id_mapping(data / "id_mapping.json"), images_folder(data)
    for image_id in opened.split.image_ids:
        if image_id not in mapping:
            raise InputError(f"{data / 'id_mapping.json'}: lacks image {image_id} of {opened.split.name}")
    return [folder / mapping[image_id] for image_id in opened.split.image_ids]


class Explainer:
    """Explains captions over the images of a split.

    Args:
        retriever: a trained model.
        opened: the split; its features need boxes, unless the model has one vector and so scores alone.
        files: the image file of each image of the split.
        regions: the embeddings of the split's images.

    Raises:
        InputError: the features have no boxes.
    """

    def __init__(self, retriever: Retriever, opened: FeatureSplit, files: Sequence[Path], regions: Packed) -> None:
        if not retriever.model.has_one_vector:
            opened.boxes(0)  # a file without boxes should be refused before the work, not after it
        self.retriever, self.opened, self.files, self.regions = retriever, opened, files, regions

    def explain(self, text: str, own: int | None = None, images: Sequence[int] | int = 3) -> Explanation:
        """The words of a caption in images, best image first.

        Args:
            text: the caption.
            own: the image that it describes, as a position in the split; None if no image is known to be right.
            images: the number of best images, or positions of images in the split.

        Raises:
            InputError: the caption has no word.
        """
        caption = self.retriever.encode_captions([text])
        words = self.retriever.words([text])[0]
        scores = self.retriever.score(self.regions, caption)[:, 0]
        order = scores.argsort(descending=True, stable=True).tolist()
        shown = order[:images] if isinstance(images, int) else sorted(images, key=order.index)
        content = _content(words)
        chosen = [words[place] for place in content]
        answers = []
        for image in shown:
            matches = self._matches(image, caption, chosen) if chosen else ()
            answers.append(Answer(self.files[image], scores[image].item(), image == own, matches))
        rank = None if own is None else int((~(scores < scores[own])).sum())
        return Explanation([word.text for word in words], content, answers, rank, _heading(words))

    def _matches(self, image: int, caption: Packed, words: Sequence[Word]) -> tuple[WordMatch, ...]:
        regions, boxes = self.regions.slice(image, image + 1), self.opened.boxes(image)
        return tuple(self.retriever.explain(regions, caption, words, boxes))

    def of_captions(self, captions: Sequence[int], images: Sequence[int] | int = 3) -> list[Explanation]:
        """The same for captions of the split, given by their positions."""
        split = self.opened.split
        return [
            self.explain(split.captions[caption], int(split.caption_images[caption]), images)
            for caption in captions
        ]


def explainer_or_reason(
    retriever: Retriever, opened: FeatureSplit, data: Path, regions: Packed
) -> Explainer | str:
    """An explainer of the split, or why there can be none: the data have no boxes or no pictures."""
    try:
        return Explainer(retriever, opened, image_files(data, opened), regions)
    except InputError as error:
        return str(error)


def position_of(split: Split, image_id: str) -> int:
    """The position of an image in a split; `InputError` if it is not in it."""
    if image_id not in split.image_ids:
        raise InputError(f"--image {image_id}: the split {split.name} has no such image")
    return list(split.image_ids).index(image_id)


def chosen_captions(split: Split, image: int | None, count: int) -> list[int]:
    """At most `count` captions, evenly spaced over those of an image or, without one, of the split.

    Raises:
        InputError: there are none.
    """
    owners = split.caption_images
    captions = np.arange(len(owners)) if image is None else np.flatnonzero(owners == image)
    if not len(captions):
        raise InputError(f"split {split.name}: no caption to explain")
    places = np.linspace(0, len(captions) - 1, min(count, len(captions))).round().astype(int)
    return captions[np.unique(places)].tolist()


def from_results(query: Query, results: Results) -> Explanation:
    """The explanation of a search's results."""
    content = _content(query.words)
    answers = [
        Answer(hit.file, hit.score, False, tuple(hit.words[place] for place in content)) for hit in results.hits
    ]
    return Explanation([word.text for word in query.words], content, answers, heading=_heading(query.words))


def _content(words: Sequence[Word]) -> list[int]:
    """The places of the content words that have embeddings, and so may have regions."""
    return [place for place, word in enumerate(words) if word.tokens and is_content_word(word.text)]


def _heading(words: Sequence[Word]) -> str:
    return "" if any(word.tokens for word in words) else NO_REGIONS
