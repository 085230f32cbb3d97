"""Why a caption finds an image: the region that each of its content words picked.

Shapes: L words of a caption, K regions of an image.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chan.data.splits import FeatureSplit
from chan.evaluation.evaluate import encode
from chan.model.chan import Chan
from chan.packing import Packed
from chan.scoring.hard_assignment import best_keys
from chan.text.tokenizers import CaptionTokenizer
from data_tools.errors import InputError
from data_tools.layout import images_folder, load_id_mapping

SHOWN_CAPTIONS = 8
SHOWN_IMAGES = 3
FUNCTION_WORDS = frozenset(
    """a about above across after against all along also am among an and another any are around as at away be
    because been before behind being below beneath beside besides between beyond both but by can could did do
    does down during each either else every few for from front had has have having he her here hers him his
    how i if in inside into is it its itself just left like many me more most much my near next no nor not of off
    on one only onto or other others our out outside over own past per right she should so some something such than
    that the their them themselves then there these they this those through to together too toward towards
    under until up upon us very was we were what when where which while who whose why will with within without
    would you your n't 's 're 'll 've 'm 'd""".split()  # noqa: SIM905 - prose reads better than a list
)


@dataclass(frozen=True)
class Answer:
    """One of the best images for a caption.

    `boxes` (content words, 4) float32 holds for each content word the box x1 y1 x2 y2 of its region.
    """

    file: Path
    score: float
    correct: bool
    boxes: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """A caption, which of its words are content words, and its best images, best first."""

    words: list[str]
    content: list[int]  # positions in `words`, in order
    answers: list[Answer]
    rank: int  # of the right image among all, from 1


def is_content_word(word: str) -> bool:
    """Whether a word names something: no function word, no punctuation, no special token."""
    return bool(re.search(r"\w", word)) and not word.startswith("<") and word.lower() not in FUNCTION_WORDS


def image_files(data: Path, opened: FeatureSplit) -> list[Path]:
    """The image file of each image of the split; `InputError` names an id that has none."""
    mapping, folder = load_id_mapping(data / "id_mapping.json"), images_folder(data)
    for image_id in opened.split.image_ids:
        if image_id not in mapping:
            raise InputError(f"{data / 'id_mapping.json'}: lacks image {image_id} of {opened.split.name}")
    return [folder / mapping[image_id] for image_id in opened.split.image_ids]


@torch.inference_mode()
def explain(
    model: Chan, opened: FeatureSplit, tokenizer: CaptionTokenizer, files: list[Path], device: torch.device
) -> list[Explanation]:
    """Explain eight captions, evenly spaced over the split, or all of a smaller one.

    Args:
        model: a trained model.
        opened: the split; its features need boxes.
        tokenizer: the tokenizer of the model.
        files: the image file of each image of the split.
        device: where to compute.

    Raises:
        InputError: the features have no boxes.
    """
    opened.boxes(0)  # a file without boxes should be refused before the work, not after it
    regions, words = encode(model, opened, tokenizer, device)
    total = len(opened.split.captions)
    chosen = np.unique(np.linspace(0, total - 1, min(SHOWN_CAPTIONS, total)).round().astype(int)).tolist()
    rows = []
    for caption in chosen:
        embedded = words.slice(caption, caption + 1)
        scores = model.score(regions, embedded)[:, 0]
        spelled = tokenizer.words([opened.split.captions[caption]])[0]
        pieces = _piece_positions([ids for _, ids in spelled], len(tokenizer.prefix))
        content = [place for place, (word, _) in enumerate(spelled) if is_content_word(word)]
        own = int(opened.split.caption_images[caption])
        answers = []
        for image in scores.argsort(descending=True, stable=True)[:SHOWN_IMAGES].tolist():
            picked = picked_regions(regions.slice(image, image + 1), embedded, [pieces[w] for w in content])
            boxes = opened.boxes(image)[picked]
            answers.append(Answer(files[image], scores[image].item(), image == own, boxes))
        rank = int((~(scores < scores[own])).sum())
        rows.append(Explanation([word for word, _ in spelled], content, answers, rank))
    return rows


def picked_regions(image: Packed, caption: Packed, words: list[list[int]]) -> list[int]:
    """The region, 0 to K - 1, that each word picked; of a word in pieces, its most similar piece decides.

    Args:
        image: the (K, D) regions of one image.
        caption: the (L, D) embeddings of one caption.
        words: the positions among the L of each word.
    """
    similarity, winner = (values[:, 0] for values in best_keys(caption.rows, image))
    return [int(winner[max(pieces, key=lambda piece: _value(similarity, piece))]) for pieces in words]


def _value(similarity: Tensor, piece: int) -> float:
    return similarity[piece].item()


def _piece_positions(words: list[list[int]], first: int) -> list[list[int]]:
    """Where the ids of each word stand in the caption, whose first word begins at `first`."""
    positions = []
    for ids in words:
        positions.append(list(range(first, first + len(ids))))
        first += len(ids)
    return positions
